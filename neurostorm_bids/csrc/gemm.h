/* C = A W^T + bias for the row counts of one window: A is (m, k), W is torch's (n, k), packed once into panels of columns.
 *
 * Every output is one chain of fused multiply-adds over k, whatever tile it falls in, so results do not depend on how rows are
 * split among threads or batches. A panel is up to three vectors wide (AVX-512: up to four and a half, in half vectors, because
 * the model's 36 and 72 columns are not multiples of 16). Panels are padded with zeros to whole vectors; a row of C must have
 * room for `matrix_width` floats. The four columns that 36 leaves over are paired: one half vector holds them for two k at once.
 */
#ifndef NS_GEMM_H
#define NS_GEMM_H

#include "matrix.h"

typedef float element; /* of A: gemm_bfloat16.h has another */
INLINE void put(element *to, vf x) { v_store(to, x); }

/* n floats as rows of A; `room` is for those that must be rounded first */
static const element *as_operand(int64_t n, const float *x, element *room)
{
    (void)n, (void)room;
    return x;
}

#define PAIR_STRIDE (5 * W) /* of two k: vectors of the first, of the second, and of both for the last columns */

static void pack_pairs(float *out, const float *weight, int n, int k)
{
    for (int i = 0; i < k; i += 2, out += PAIR_STRIDE)
        for (int odd = 0; odd < 2; odd++)
            for (int column = 0; column < n; column++) {
                int tail = column - 2 * W;
                out[tail < 0 ? 2 * W * odd + column : 4 * W + 2 * tail + odd] = weight[(size_t)column * (size_t)k + (size_t)(i + odd)];
            }
}

static void pack_panels(const matrix *w, const float *weight, int n, int k)
{
    float *out = w->panels;
    for (int unit = 0, units; unit < w->units; unit += units) {
        units = panel_units(w->units - unit);
        int first = unit * UNIT, last = first + units * UNIT < n ? first + units * UNIT : n;
        for (int i = 0; i < k; i++, out += panel_stride(units))
            for (int column = first; column < last; column++)
                out[column - first] = weight[(size_t)column * (size_t)k + (size_t)i];
    }
}

/* weight is (n, k) row-major, bias may be NULL; false when memory runs out. `gathered`: for gemm_gather, which pairs no columns */
static int matrix_pack(matrix *w, const float *weight, const float *bias, int n, int k, int gathered)
{
    *w = (matrix){.k = k, .n = n, .units = padded(n, UNIT) / UNIT};
    w->paired = W == 16 && n > 32 && n <= 36 && k % 2 == 0 && !gathered;
    w->panels = aligned_floats((size_t)padded(w->units, PER_VECTOR) * UNIT * (size_t)k + (size_t)W * (size_t)k);
    w->bias = bias ? aligned_floats((size_t)padded(n, W)) : NULL;
    if (!w->panels || (bias && !w->bias))
        return 0;
    if (bias)
        memcpy(w->bias, bias, sizeof(float) * (size_t)n);
    w->paired ? pack_pairs(w->panels, weight, n, k) : pack_panels(w, weight, n, k);
    return 1;
}

INLINE void tile(const int rows, const int vectors, const int half, const int gather, const operand *x, int k,
                 const float *panel, const float *bias, float *c, int64_t ldc)
{
    vf sum[8][4];
    vhalf half_sum[8];
    UNROLL(8)
    for (int i = 0; i < rows; i++) {
        UNROLL(4)
        for (int j = 0; j < vectors; j++)
            sum[i][j] = bias ? v_load(bias + W * j) : v_zero();
        if (half)
            half_sum[i] = bias ? (vhalf)*(const vhalf_unaligned *)(bias + W * vectors) : (vhalf){};
    }
    for (int p = 0; p < k; p++, panel += W * (vectors + half)) {
        vf b[4];
        vhalf half_b;
        UNROLL(4)
        for (int j = 0; j < vectors; j++)
            b[j] = *(const vf *)(panel + W * j);
        if (half)
            half_b = *(const vhalf *)(panel + W * vectors);
        if (gather)
            __builtin_prefetch(x->a + x->offset[p] + x->ahead);
        UNROLL(8)
        for (int i = 0; i < rows; i++) {
            vf a = v_set(x->a[i * x->stride + (gather ? x->offset[p] : p)]);
            UNROLL(4)
            for (int j = 0; j < vectors; j++)
                sum[i][j] = v_fma(a, b[j], sum[i][j]);
            if (half)
                half_sum[i] = h_fma(h_low(a), half_b, half_sum[i]);
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

INLINE void panel_rows(const int most, const int vectors, const int half, const int gather, int m, operand x, int k,
                       const float *panel, const float *bias, float *c, int64_t ldc)
{
    int done = 0;
#define ROWS(count)                                                                \
    for (; done + (count) <= m; done += (count)) {                                 \
        tile(count, vectors, half, gather, &x, k, panel, bias, c + done * ldc, ldc); \
        x.a += (count) * x.stride;                                                 \
    }
    if (most == 8)
        ROWS(8)
    ROWS(4)
    ROWS(2)
    ROWS(1)
#undef ROWS
}

#if W == 16
INLINE void pair_tile(const int rows, const float *a, int64_t lda, const matrix *w, float *c, int64_t ldc)
{
    vf sum[8][2];
    vhalf tail[8];
    const float *panel = w->panels, *bias = w->bias;
    UNROLL(8)
    for (int i = 0; i < rows; i++) {
        sum[i][0] = bias ? v_load(bias) : v_zero(), sum[i][1] = bias ? v_load(bias + W) : v_zero();
        tail[i] = (vhalf){};
    }
    for (int p = 0; p < w->k; p += 2, panel += PAIR_STRIDE) {
        UNROLL(2)
        for (int odd = 0; odd < 2; odd++) {
            vf b0 = *(const vf *)(panel + 2 * W * odd), b1 = *(const vf *)(panel + 2 * W * odd + W);
            UNROLL(8)
            for (int i = 0; i < rows; i++) {
                vf x = v_set(a[i * lda + p + odd]);
                sum[i][0] = v_fma(x, b0, sum[i][0]);
                sum[i][1] = v_fma(x, b1, sum[i][1]);
            }
        }
        vhalf b2 = *(const vhalf *)(panel + 4 * W);
        UNROLL(8)
        for (int i = 0; i < rows; i++)
            tail[i] = h_fma(h_pair(a + i * lda + p), b2, tail[i]);
    }
    UNROLL(8)
    for (int i = 0; i < rows; i++) {
        v_store(c + i * ldc, sum[i][0]), v_store(c + i * ldc + W, sum[i][1]);
        h_store_pair_sums(c + i * ldc + 2 * W, tail[i], bias ? bias + 2 * W : NULL);
    }
}

static void gemm_pairs(int m, const float *a, int64_t lda, const matrix *w, float *c, int64_t ldc)
{
    int done = 0;
    for (; done + 8 <= m; done += 8)
        pair_tile(8, a + done * lda, lda, w, c + done * ldc, ldc);
    for (; done < m; done++)
        pair_tile(1, a + done * lda, lda, w, c + done * ldc, ldc);
}
#endif

INLINE void gemm_any(const int gather, int m, operand x, const matrix *w, float *c, int64_t ldc)
{
    const float *panel = w->panels;
    for (int unit = 0, units; unit < w->units; unit += units) {
        units = panel_units(w->units - unit);
        const float *bias = w->bias ? w->bias + unit * UNIT : NULL;
        float *out = c + unit * UNIT;
        switch (units) {
#define PANEL(units, most)                                                                                            \
    case units:                                                                                                       \
        panel_rows(most, units / PER_VECTOR, units % PER_VECTOR, gather, m, x, w->k, panel, bias, out, ldc);          \
        break;
#if W == 16
            PANEL(1, 8)
            PANEL(2, 8)
            PANEL(3, 8)
            PANEL(4, 8)
            PANEL(5, 8)
            PANEL(6, 8)
            PANEL(7, 4)
            PANEL(8, 4)
            PANEL(9, 4)
#else
            PANEL(1, 4)
            PANEL(2, 4)
            PANEL(3, 4)
#endif
#undef PANEL
        }
        panel += (int64_t)panel_stride(units) * w->k;
    }
}

static void gemm(int m, const element *a, int64_t lda, const matrix *w, float *c, int64_t ldc)
{
#if W == 16
    if (w->paired) {
        gemm_pairs(m, a, lda, w, c, ldc);
        return;
    }
#endif
    gemm_any(0, m, (operand){.a = a, .stride = lda}, w, c, ldc);
}

/* Floats of memory that gemm_gather works in */
static int gather_room(int m, int k)
{
    (void)m, (void)k;
    return 0;
}

static void gemm_gather(int m, operand x, const matrix *w, float *c, int64_t ldc, float *room)
{
    (void)room;
    gemm_any(1, m, x, w, c, ldc);
}

#endif
