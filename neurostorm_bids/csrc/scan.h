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

#include "gemm.h"
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
    float *y;                          /* may be u */
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

/* Double precision and libm, one channel at a time: the meaning that the fast path must keep. Writes only what `only`, a mask
 * of non-finite results of the fast path, asks for (NULL: everything), so that finite results never depend on their company. */
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

INLINE vf scan_row(const int states, const float *restrict decay, int64_t stride, vf delta, vf drive, vf *h,
                   const float *restrict b, const float *restrict c)
{
    vf even = v_zero(), odd = v_zero();
    UNROLL(16)
    for (int n = 0; n < states; n++) {
        vf kept = v_exp2_product(delta, *(const vf *)(decay + n * stride));
        h[n] = v_fma(kept, h[n], drive * v_set(b[n]));
        if (n % 2)
            odd = v_fma(h[n], v_set(c[n]), odd);
        else
            even = v_fma(h[n], v_set(c[n]), even);
    }
    return even + odd;
}

INLINE void scan_all_rows(const int states, const float *decay, int64_t stride, vf skip, const scan_rows *x, vf *h)
{
    for (int t = 0; t < x->rows; t++) {
        vf delta = v_load(x->delta + t * x->channel_stride), u = v_load(x->u + t * x->channel_stride);
        /* beyond 1e16 every decay is 0 either way, and an infinite product would become NaN */
        vf bounded = v_min_keep_nan(v_set(1e16f), v_max_keep_nan(v_set(-1e16f), delta));
        vf y = scan_row(states, decay, stride, bounded, delta * u, h, x->b + t * x->bc_stride, x->c + t * x->bc_stride);
        v_store(x->y + t * x->y_stride, v_fma(u, skip, y));
    }
}

/* The model's 16 states stay in registers; any other number in memory. */
static void scan_16_states(const float *decay, int64_t stride, vf skip, const scan_rows *x, vf *state)
{
    vf h[16];
    memcpy(h, state, sizeof h);
    scan_all_rows(16, decay, stride, skip, x, h);
    memcpy(state, h, sizeof h);
}

static void scan_any_states(const scan_weights *s, const float *decay, vf skip, const scan_rows *x, vf *state)
{
    scan_all_rows(s->states, decay, s->stride, skip, x, state);
}

/* state is (states, W), read and written */
static void scan_group(const scan_weights *s, int group, const scan_rows *x, float *state)
{
    float before[MOST_STATES * W] __attribute__((aligned(64)));
    const float *decay = s->decay + group * W;
    vf *h = (vf *)state, skip = *(const vf *)(s->skip + group * W), finite = v_zero();
    memcpy(before, state, sizeof(float) * (size_t)s->states * W);
    if (s->exact) {
        scan_exactly(s, group, x, before, state, 0);
        return;
    }
    if (s->states == 16)
        scan_16_states(decay, s->stride, skip, x, h);
    else
        scan_any_states(s, decay, skip, x, h);
    for (int n = 0; n < s->states; n++)
        finite = v_fma(h[n], v_zero(), finite);
    if (v_sum(finite) != 0.0f) /* NaN: a state is, or has been, infinite or NaN */
        scan_exactly(s, group, x, before, state, 1);
}

#endif
