/* gemm.h with both operands rounded to bfloat16 and sums in float32: twice as many products an instruction (AVX512_BF16).
 *
 * Pairs of k lie in 32 bits. Whoever computes rows of A writes them rounded, so that they are stored and read once and narrow.
 */
#ifndef NS_GEMM_BFLOAT16_H
#define NS_GEMM_BFLOAT16_H

#include "matrix.h"

typedef uint32_t pair __attribute__((may_alias)); /* k in the lower, k + 1 in the upper half */

static pair rounded_pair(float low, float high)
{
    __m128bh both = _mm_cvtne2ps_pbh(_mm_set_ss(high), _mm_set_ss(low));
    uint16_t halves[8];
    memcpy(halves, &both, sizeof halves);
    return (pair)halves[0] | (pair)halves[4] << 16;
}

static int matrix_pack(matrix *w, const float *weight, const float *bias, int n, int k, int gathered)
{
    (void)gathered;
    int pairs = (k + 1) / 2;
    *w = (matrix){.k = k, .n = n, .units = padded(n, UNIT) / UNIT};
    w->panels = aligned_floats((size_t)padded(w->units, PER_VECTOR) * UNIT * (size_t)pairs + (size_t)W * (size_t)pairs);
    w->bias = bias ? aligned_floats((size_t)padded(n, W)) : NULL;
    if (!w->panels || (bias && !w->bias))
        return 0;
    if (bias)
        memcpy(w->bias, bias, sizeof(float) * (size_t)n);
    pair *out = (pair *)w->panels;
    for (int unit = 0, units; unit < w->units; unit += units) {
        units = panel_units(w->units - unit);
        int first = unit * UNIT, last = first + units * UNIT < n ? first + units * UNIT : n;
        for (int i = 0; i < k; i += 2, out += panel_stride(units))
            for (int column = first; column < last; column++) {
                const float *row = weight + (size_t)column * (size_t)k + i;
                out[column - first] = rounded_pair(row[0], i + 1 < k ? row[1] : 0.0f);
            }
    }
    return 1;
}

/* Rounded rows: pair p of row i is at [i * row + p * step]. Gathered ones say where the next product's elements will be read. */
typedef struct {
    const pair *at;
    int64_t row, step;
    const float *next;
    const int64_t *offset;
} rounded;

INLINE void tile(const int rows, const int vectors, const int half, const int gather, const rounded *x, int pairs, const float *panel,
                 const float *bias, float *c, int64_t ldc)
{
    vf sum[8][4];
    vhalf half_sum[8];
    UNROLL(8)
    for (int i = 0; i < rows; i++) {
        UNROLL(4)
        for (int j = 0; j < vectors; j++)
            sum[i][j] = bias ? v_load(bias + W * j) : v_zero();
        if (half)
            half_sum[i] = bias ? (vhalf) * (const vhalf_unaligned *)(bias + W * vectors) : (vhalf){};
    }
    for (int p = 0; p < pairs; p++, panel += W * (vectors + half)) {
        if (gather) {
            __builtin_prefetch(x->next + x->offset[2 * p]);
            __builtin_prefetch(x->next + x->offset[2 * p + 1]);
        }
        UNROLL(8)
        for (int i = 0; i < rows; i++) {
            __m512i a = _mm512_set1_epi32((int32_t)x->at[i * x->row + p * x->step]);
            UNROLL(4)
            for (int j = 0; j < vectors; j++)
                sum[i][j] = (vf)_mm512_dpbf16_ps((__m512)sum[i][j], (__m512bh)a, (__m512bh)_mm512_load_si512(panel + W * j));
            if (half)
                half_sum[i] = (vhalf)_mm256_dpbf16_ps((__m256)half_sum[i], (__m256bh)_mm512_castsi512_si256(a),
                                                      (__m256bh)_mm256_load_si256((const __m256i *)(panel + W * vectors)));
        }
    }
    UNROLL(8)
    for (int i = 0; i < rows; i++) {
        UNROLL(4)
        for (int j = 0; j < vectors; j++)
            v_store(c + i * ldc + W * j, sum[i][j]);
        if (half)
            *(vhalf_unaligned *)(c + i * ldc + W * vectors) = half_sum[i];
    }
}

INLINE void panel_rows(const int most, const int vectors, const int half, const int gather, int m, rounded x, int pairs, const float *panel,
                       const float *bias, float *c, int64_t ldc)
{
    int done = 0;
#define ROWS(count)                                                             \
    for (; done + (count) <= m; done += (count)) {                              \
        tile(count, vectors, half, gather, &x, pairs, panel, bias, c + done * ldc, ldc); \
        x.at += (count) * x.row, x.next += gather ? (count) : 0;                \
    }
    if (most == 8)
        ROWS(8)
    ROWS(4)
    ROWS(2)
    ROWS(1)
#undef ROWS
}

INLINE void gemm_rounded(const int gather, int m, rounded x, const matrix *w, float *c, int64_t ldc)
{
    const float *panel = w->panels;
    int pairs = (w->k + 1) / 2;
    for (int unit = 0, units; unit < w->units; unit += units) {
        units = panel_units(w->units - unit);
        const float *bias = w->bias ? w->bias + unit * UNIT : NULL;
        switch (units) {
#define PANEL(units, most)                                                                                               \
    case units:                                                                                                          \
        panel_rows(most, units / PER_VECTOR, units % PER_VECTOR, gather, m, x, pairs, panel, bias, c + unit * UNIT, ldc);        \
        break;
            PANEL(1, 8)
            PANEL(2, 8)
            PANEL(3, 8)
            PANEL(4, 8)
            PANEL(5, 8)
            PANEL(6, 8)
            PANEL(7, 4)
            PANEL(8, 4)
            PANEL(9, 4)
#undef PANEL
        }
        panel += (int64_t)panel_stride(units) * pairs;
    }
}

typedef uint16_t element __attribute__((may_alias)); /* of A, rounded by who writes it; rows have even lengths */
INLINE void put(element *to, vf x) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }

/* n floats as rows of A, rounded into `room`; n is a multiple of W */
static const element *as_operand(int64_t n, const float *x, element *room)
{
    for (int64_t i = 0; i < n; i += W)
        put(room + i, v_load(x + i));
    return room;
}

static void gemm(int m, const element *a, int64_t lda, const matrix *w, float *c, int64_t ldc)
{
    gemm_rounded(0, m, (rounded){.at = (const pair *)a, .row = lda / 2, .step = 1}, w, c, ldc);
}

static __mmask16 first_lanes(int count) { return (__mmask16)(count >= W ? 0xffff : count > 0 ? (1 << count) - 1 : 0); }

/* Two gathered columns of A whose rows lie side by side; the second may be missing */
INLINE void round_columns(int m, const float *first, const float *second, __m512i interleaved, pair *to)
{
    for (int i = 0; i < m; i += W) {
        __mmask16 there = first_lanes(m - i);
        __m512 low = _mm512_maskz_loadu_ps(there, first + i);
        __m512 high = second ? _mm512_maskz_loadu_ps(there, second + i) : _mm512_setzero_ps();
        _mm512_store_si512(to + i, _mm512_permutexvar_epi16(interleaved, (__m512i)_mm512_cvtne2ps_pbh(high, low)));
    }
}

/* Where the halves of pairs lie after _mm512_cvtne2ps_pbh: those of the first column before those of the second */
static __m512i interleaving(void)
{
    int16_t from[2 * W];
    for (int i = 0; i < W; i++)
        from[2 * i] = (int16_t)i, from[2 * i + 1] = (int16_t)(W + i);
    return _mm512_loadu_si512(from);
}

/* Floats of memory that gemm_gather works in */
static int gather_room(int m, int k) { return (k + 1) / 2 * padded(m, W); }

static void gemm_gather(int m, operand x, const matrix *w, float *c, int64_t ldc, float *room)
{
    int pairs = (w->k + 1) / 2, row = padded(m, W);
    pair *space = (pair *)room;
    __m512i interleaved = interleaving();
    for (int p = 0; p < pairs; p++) {
        const float *first = x.a + x.offset[2 * p], *second = 2 * p + 1 < w->k ? x.a + x.offset[2 * p + 1] : NULL;
        if (x.stride == 1)
            round_columns(m, first, second, interleaved, space + (int64_t)p * row);
        else
            for (int i = 0; i < m; i++)
                space[(int64_t)p * row + i] = rounded_pair(first[i * x.stride], second ? second[i * x.stride] : 0.0f);
    }
    gemm_rounded(w->k % 2 == 0, m, (rounded){space, 1, row, x.a + x.ahead, x.offset}, w, c, ldc);
}

#endif
