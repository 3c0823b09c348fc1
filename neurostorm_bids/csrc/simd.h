/* One vector type, W floats wide, and the few operations the kernels need, for AVX-512, AVX2 + FMA and anything else.
 *
 * The kernels are written once over these and compiled once per instruction set. No -ffast-math anywhere: every operation
 * keeps its IEEE meaning, NaN and infinity travel through all of them. In v_max_keep_nan and v_min_keep_nan the bound comes
 * first, because x86 returns the second operand where one is NaN.
 */
#ifndef NS_SIMD_H
#define NS_SIMD_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL(n) _Pragma(UNROLL_TEXT(n))
#ifdef __clang__
#define UNROLL_TEXT(n) "unroll"
#else
#define UNROLL_TEXT_(n) #n
#define UNROLL_TEXT(n) UNROLL_TEXT_(GCC unroll n)
#endif

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX2__) && defined(__FMA__)
#define W 8
#else
#define W 4
#endif
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef float vf __attribute__((vector_size(4 * W), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * W), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * W), may_alias)); /* for bits of NaN, whose sums may run over */
typedef float vf_unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));

INLINE vf v_load(const float *p) { return *(const vf_unaligned *)p; }
INLINE void v_store(float *p, vf x) { *(vf_unaligned *)p = x; }
INLINE vf v_set(float x) { return x - (vf){}; }
INLINE vi v_seti(int32_t x) { return x - (vi){}; }
INLINE vf v_zero(void) { return (vf){}; }

/* where(mask, a, b): mask lanes are all ones or all zeros */
INLINE vf v_where(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vf v_abs(vf x) { return (vf)((vi)x & v_seti(0x7fffffff)); }

#if W == 16
/* half vectors, for the columns and channels that 16 lanes leave over */
typedef float vhalf __attribute__((vector_size(32), may_alias));
typedef float vhalf_unaligned __attribute__((vector_size(32), aligned(4), may_alias));
INLINE vhalf h_set(float x) { return x - (vhalf){}; }
INLINE vhalf h_low(vf x) { return (vhalf)_mm512_castps512_ps256((__m512)x); }
INLINE vhalf h_fma(vhalf a, vhalf b, vhalf c) { return (vhalf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vhalf h_fms(vhalf a, vhalf b, vhalf c) { return (vhalf)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vhalf h_max_keep_nan(vhalf bound, vhalf x) { return (vhalf)_mm256_max_ps((__m256)bound, (__m256)x); }
INLINE vhalf h_min_keep_nan(vhalf bound, vhalf x) { return (vhalf)_mm256_min_ps((__m256)bound, (__m256)x); }
/* x[0], x[1], x[0], x[1], ... */
INLINE vhalf h_pair(const float *x)
{
    double pair;
    memcpy(&pair, x, sizeof pair);
    return (vhalf)_mm256_set1_pd(pair);
}
/* four floats, the sums of neighbouring lanes, with bias (may be NULL) added; the four behind them become 0 */
INLINE void h_store_pair_sums(float *p, vhalf x, const float *bias)
{
    __m128 sums = _mm_hadd_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    _mm_storeu_ps(p, bias ? _mm_add_ps(sums, _mm_loadu_ps(bias)) : sums);
    _mm_storeu_ps(p + 4, _mm_setzero_ps());
}

INLINE vf v_fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf v_fms(vf a, vf b, vf c) { return (vf)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf v_max_keep_nan(vf bound, vf x) { return (vf)_mm512_max_ps((__m512)bound, (__m512)x); }
INLINE vf v_min_keep_nan(vf bound, vf x) { return (vf)_mm512_min_ps((__m512)bound, (__m512)x); }
INLINE vf v_load_n(const float *p, int n) { return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
INLINE void v_store_n(float *p, vf x, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x); }
INLINE vf v_first(vf x, int n) { return (vf)_mm512_maskz_mov_ps((__mmask16)((1u << n) - 1), (__m512)x); }
INLINE vf v_sqrt(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
INLINE float v_sum(vf x) { return _mm512_reduce_add_ps((__m512)x); }
#elif W == 8
INLINE vf v_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf v_fms(vf a, vf b, vf c) { return (vf)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf v_max_keep_nan(vf bound, vf x) { return (vf)_mm256_max_ps((__m256)bound, (__m256)x); }
INLINE vf v_min_keep_nan(vf bound, vf x) { return (vf)_mm256_min_ps((__m256)bound, (__m256)x); }
INLINE __m256i v_first_lanes(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf v_load_n(const float *p, int n) { return (vf)_mm256_maskload_ps(p, v_first_lanes(n)); }
INLINE void v_store_n(float *p, vf x, int n) { _mm256_maskstore_ps(p, v_first_lanes(n), (__m256)x); }
INLINE vf v_first(vf x, int n) { return (vf)((vi)x & (vi)v_first_lanes(n)); }
INLINE vf v_sqrt(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
#else
#ifdef __aarch64__
INLINE vf v_fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
INLINE vf v_fma(vf a, vf b, vf c) { return a * b + c; }
#endif
INLINE vf v_fms(vf a, vf b, vf c) { return v_fma(a, b, -c); }
INLINE vf v_max_keep_nan(vf bound, vf x) { return v_where(x < bound, bound, x); }
INLINE vf v_min_keep_nan(vf bound, vf x) { return v_where(x > bound, bound, x); }
INLINE vf v_load_n(const float *p, int n)
{
    vf x = v_zero();
    memcpy(&x, p, 4 * (size_t)n);
    return x;
}
INLINE void v_store_n(float *p, vf x, int n) { memcpy(p, &x, 4 * (size_t)n); }
INLINE vf v_first(vf x, int n)
{
    const vi lane = {0, 1, 2, 3};
    return (vf)((vi)x & (lane < n));
}
INLINE vf v_sqrt(vf x)
{
    for (int i = 0; i < W; i++)
        x[i] = __builtin_sqrtf(x[i]);
    return x;
}
#endif
#if W != 16
INLINE float v_sum(vf x)
{
    float s[W];
    memcpy(s, &x, sizeof s);
    for (int width = W / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            s[i] += s[i + width];
    return s[0];
}
#endif

/* Lane i of the result is the sum over the lanes of x[i], for W vectors: a transposition that adds on its way. */
#ifdef __clang__
INLINE vf v_sums(const vf *x)
{
    vf out = v_zero();
    for (int i = 0; i < W; i++)
        out[i] = v_sum(x[i]);
    return out;
}
#else
/* lanes with bit `step` clear get a pair of a's lanes summed, the others one of b's */
INLINE vf v_fold(vf a, vf b, const int step)
{
#if W == 16
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif W == 8
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
#else
    const vi lane = {0, 1, 2, 3};
#endif
    const vi from_b = ((lane & step) != 0) & W;
    return __builtin_shuffle(a, b, lane + from_b) + __builtin_shuffle(a, b, (lane ^ step) + from_b);
}

INLINE vf v_sums(const vf *x)
{
    vf level[W];
    UNROLL(16)
    for (int i = 0; i < W; i++)
        level[i] = x[i];
    UNROLL(4)
    for (int step = 1; step < W; step *= 2) {
        UNROLL(8)
        for (int i = 0; i < W / 2 / step; i++)
            level[i] = v_fold(level[2 * i], level[2 * i + 1], step);
    }
    return level[0];
}
#endif

#endif
