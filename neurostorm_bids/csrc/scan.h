/* The selective scan of Mamba-1 (Gu & Dao 2023, section 3.2) over the rows of one window:
 *
 *     h[t] = exp(delta[t] A) h[t-1] + delta[t] u[t] B[t],     y[t] = h[t] . C[t] + D u[t]
 *
 * A group is one vector of W channels; its states are vectors too, so nothing is summed across lanes. `lanes` index channels,
 * `n` states, `t` rows.
 */
#ifndef NS_SCAN_H
#define NS_SCAN_H

#include <math.h>

#ifdef __AVX512BF16__
#include "gemm_bfloat16.h"
#else
#include "gemm.h"
#endif
#include "vmath.h"

#define MOST_STATES 256

typedef struct {
    int channels, states, stride; /* stride: channels padded to W */
    int exact;                    /* A is outside the range that the fast exponential serves */
    float *a, *decay, *skip;      /* A (states, stride), A * log2(e), D (stride) */
} scan_weights;

/* What one group reads and writes; row t of x is x + t * stride. */
typedef struct {
    int rows;
    const float *u, *delta, *b, *c;
    int64_t channel_stride, bc_stride; /* of u and delta, of b and c */
    float *y;
    int64_t y_stride;
} scan_rows;

static int scan_pack(scan_weights *s, const float *a, const float *skip, int channels, int states)
{
    *s = (scan_weights){.channels = channels, .states = states, .stride = padded(channels, W)};
    size_t size = (size_t)states * (size_t)s->stride;
    s->a = aligned_floats(size), s->decay = aligned_floats(size), s->skip = aligned_floats((size_t)s->stride);
    if (!s->a || !s->decay || !s->skip)
        return 0;
    if (skip)
        memcpy(s->skip, skip, sizeof(float) * (size_t)channels);
    for (int c = 0; c < channels; c++)
        for (int n = 0; n < states; n++) {
            float value = a[c * states + n], size_of_value = fabsf(value);
            s->a[n * s->stride + c] = value;
            s->decay[n * s->stride + c] = (float)(value * 1.4426950408889634);
            s->exact |= !(size_of_value > 1e-13f && size_of_value < 1e8f);
        }
    return 1;
}

static void scan_free(scan_weights *s)
{
    free(s->a);
    free(s->decay);
    free(s->skip);
}

/* Double precision and libm, one channel at a time: the meaning that the fast path must keep. After the fast path it replaces only
 * what is not finite, so that no finite result depends on its company. */
static void scan_exactly(const scan_weights *s, int group, const scan_rows *x, const float *before, float *state,
                         int keep_finite)
{
    int lanes = s->channels - group * W < W ? s->channels - group * W : W;
    for (int lane = 0; lane < lanes; lane++) {
        double h[MOST_STATES];
        for (int n = 0; n < s->states; n++)
            h[n] = before[n * W + lane];
        for (int t = 0; t < x->rows; t++) {
            double delta = x->delta[t * x->channel_stride + lane], u = x->u[t * x->channel_stride + lane], y = 0;
            for (int n = 0; n < s->states; n++) {
                double decay = exp(delta * (double)s->a[n * s->stride + group * W + lane]);
                h[n] = decay * h[n] + delta * u * (double)x->b[t * x->bc_stride + n];
                y += h[n] * (double)x->c[t * x->bc_stride + n];
            }
            float *out = x->y + t * x->y_stride + lane;
            if (!keep_finite || !isfinite(*out))
                *out = (float)(y + u * (double)s->skip[group * W + lane]);
        }
        for (int n = 0; n < s->states; n++)
            if (!keep_finite || !isfinite(state[n * W + lane]))
                state[n * W + lane] = (float)h[n];
    }
}

/* The rows of one group for a vector type of `lanes` floats; states are `stride_h` floats apart. Delta is bounded because beyond
 * 1e16 every decay is 0 either way, and an infinite product would become NaN. */
#define DEFINE_SCAN(NAME, VECTOR, UNALIGNED, FMA, EXP2_PRODUCT, MIN, MAX)                                                        \
    INLINE void NAME(const int states, const float *decay, int64_t stride, const float *skip, const scan_rows *x, VECTOR *h)    \
    {                                                                                                                           \
        for (int t = 0; t < x->rows; t++) {                                                                                     \
            const float *b = x->b + t * x->bc_stride, *c = x->c + t * x->bc_stride;                                             \
            VECTOR delta = *(const UNALIGNED *)(x->delta + t * x->channel_stride);                                              \
            VECTOR u = *(const UNALIGNED *)(x->u + t * x->channel_stride), drive = delta * u;                                   \
            VECTOR bounded = MIN(1e16f - (VECTOR){}, MAX(-1e16f - (VECTOR){}, delta)), even = {}, odd = {};                     \
            UNROLL(16)                                                                                                          \
            for (int n = 0; n < states; n++) {                                                                                  \
                h[n] = FMA(EXP2_PRODUCT(bounded, *(const VECTOR *)(decay + n * stride)), h[n], drive * b[n]);                    \
                if (n % 2)                                                                                                      \
                    odd = FMA(h[n], c[n] - (VECTOR){}, odd);                                                                    \
                else                                                                                                            \
                    even = FMA(h[n], c[n] - (VECTOR){}, even);                                                                  \
            }                                                                                                                   \
            *(UNALIGNED *)(x->y + t * x->y_stride) = FMA(u, *(const VECTOR *)skip, even + odd);                                 \
        }                                                                                                                       \
    }

DEFINE_SCAN(scan_vector, vf, vf_unaligned, v_fma, v_exp2_product, v_min_keep_nan, v_max_keep_nan)

/* The model's 16 states stay in registers; any other number in memory. */
static void scan_16_states(const float *decay, int64_t stride, const float *skip, const scan_rows *x, float *state)
{
    vf h[16];
    memcpy(h, state, sizeof h);
    scan_vector(16, decay, stride, skip, x, h);
    memcpy(state, h, sizeof h);
}

#if W == 16
DEFINE_SCAN(scan_half_vector, vhalf, vhalf_unaligned, h_fma, h_exp2_product, h_min_keep_nan, h_max_keep_nan)

/* The same for a last group of at most 8 channels, as 72 = 4 * 16 + 8 leave it, at half the cost */
static void scan_16_states_half(const float *decay, int64_t stride, const float *skip, const scan_rows *x, float *state)
{
    vhalf h[16];
    for (int n = 0; n < 16; n++)
        h[n] = *(const vhalf *)(state + n * W);
    scan_half_vector(16, decay, stride, skip, x, h);
    for (int n = 0; n < 16; n++)
        *(vhalf *)(state + n * W) = h[n];
}
#endif

static void scan_quickly(const scan_weights *s, int group, const scan_rows *x, float *state)
{
    const float *decay = s->decay + group * W, *skip = s->skip + group * W;
    if (s->states != 16)
        scan_vector(s->states, decay, s->stride, skip, x, (vf *)state);
#if W == 16
    else if (s->channels - group * W <= 8)
        scan_16_states_half(decay, s->stride, skip, x, state);
#endif
    else
        scan_16_states(decay, s->stride, skip, x, state);
}

/* state is (states, W), read and written */
static void scan_group(const scan_weights *s, int group, const scan_rows *x, float *state)
{
    float before[MOST_STATES * W] __attribute__((aligned(64)));
    vf finite = v_zero();
    memcpy(before, state, sizeof(float) * (size_t)s->states * W);
    if (s->exact) {
        scan_exactly(s, group, x, before, state, 0);
        return;
    }
    scan_quickly(s, group, x, state);
    for (int n = 0; n < s->states; n++)
        finite = v_fma(v_load(state + n * W), v_zero(), finite);
    if (v_sum(finite) != 0.0f) /* NaN: a state is, or has been, infinite or NaN */
        scan_exactly(s, group, x, before, state, 1);
}

#endif
