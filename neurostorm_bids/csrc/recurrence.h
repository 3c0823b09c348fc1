/* The scan on its own, with the softplus before and the gate after it: `selective_scan` for torch, forward and backward. */
#ifndef NS_RECURRENCE_H
#define NS_RECURRENCE_H

#include "block.h"

typedef struct {
    const ns_scan *scan;
    scan_weights weights;
    work_list work;
    atomic_int failed;
} scan_job;

#define STRETCH 32 /* rows whose states the backward computes anew from the one before them */

static int groups_in(int channels) { return (channels + W - 1) / W; }
static int stretches_in(int length) { return (length + STRETCH - 1) / STRETCH; }

static int64_t scan_starts(int32_t batch, int32_t length, int32_t channels, int32_t states)
{
    return (int64_t)batch * groups_in(channels) * stretches_in(length) * states * W;
}

/* States of one group of one window before each stretch */
static float *starts_of(const ns_scan *s, int window, int group)
{
    return s->starts + ((int64_t)window * groups_in(s->channels) + group) * stretches_in(s->length) * s->states * W;
}

/* The rows of a group, stretch by stretch where the states between them are wanted */
static void scan_stretches(const scan_job *job, int window, int group, const scan_rows *all, float *state)
{
    const ns_scan *s = job->scan;
    size_t row = (size_t)s->states * W;
    int at_once = s->starts ? STRETCH : all->rows;
    for (int from = 0; from < all->rows; from += at_once) {
        scan_rows x = *all;
        x.rows = all->rows - from < at_once ? all->rows - from : at_once;
        x.u += from * x.channel_stride, x.delta += from * x.channel_stride, x.y += from * x.y_stride;
        x.b += (int64_t)from * x.bc_stride, x.c += (int64_t)from * x.bc_stride;
        if (s->starts)
            memcpy(starts_of(s, window, group) + from / STRETCH * row, state, sizeof(float) * row);
        scan_group(&job->weights, group, &x, state);
    }
}

/* Columns [from, from + lanes) of (rows, stride) as (rows, W), zeros beyond */
static void take_lanes(int rows, const float *x, int64_t stride, int lanes, float *out)
{
    for (int t = 0; t < rows; t++)
        v_store(out + t * W, lanes == W ? v_load(x + t * stride) : v_load_n(x + t * stride, lanes));
}

static void put_lanes(int rows, const float *x, int64_t stride, int lanes, float *out)
{
    for (int t = 0; t < rows; t++)
        if (lanes == W)
            v_store(out + t * stride, v_load(x + t * W));
        else
            v_store_n(out + t * stride, v_load(x + t * W), lanes);
}

static vf lanes_of(const float *x, int lanes) { return x ? v_load_n(x, lanes) : v_zero(); }

/* One group of channels of one window; scratch is (3, length, W) */
static void scan_item(scan_job *job, int window, int group, float *scratch)
{
    const ns_scan *s = job->scan;
    int length = s->length, lanes = s->channels - group * W < W ? s->channels - group * W : W;
    int64_t at = (int64_t)window * length * s->channels + group * W, size = (int64_t)length * W;
    float *u = scratch, *step = scratch + size, *y = step + size, state[MOST_STATES * W] __attribute__((aligned(64)));
    vf bias = s->delta_bias ? lanes_of(s->delta_bias + group * W, lanes) : v_zero();
    take_lanes(length, s->u + at, s->channels, lanes, u);
    take_lanes(length, s->delta + at, s->channels, lanes, step);
    for (int t = 0; t < length; t++)
        v_store(step + t * W, v_load(step + t * W) + bias);
    softplus(size, step);
    memset(state, 0, sizeof(float) * (size_t)s->states * W);
    scan_rows rows = {.rows = length, .u = u, .delta = step, .b = s->b + (int64_t)window * length * s->states,
                      .c = s->c + (int64_t)window * length * s->states, .channel_stride = W, .bc_stride = s->states,
                      .y = y, .y_stride = W};
    scan_stretches(job, window, group, &rows, state);
    if (s->z) {
        float *z = step; /* no longer needed */
        take_lanes(length, s->z + at, s->channels, lanes, z);
        silu(size, z);
        for (int64_t i = 0; i < size; i += W)
            v_store(y + i, v_load(y + i) * v_load(z + i));
    }
    put_lanes(length, y, s->channels, lanes, s->y + at);
}

static void scan_task(void *context, int member, int members)
{
    scan_job *job = context;
    const ns_scan *s = job->scan;
    (void)members;
    float *scratch = team_scratch(member, sizeof(float) * 3 * (size_t)s->length * W);
    int item, groups = groups_in(s->channels);
    if (!scratch) {
        atomic_store(&job->failed, 1);
        return;
    }
    while ((item = work_take(&job->work, s->batch * groups)) >= 0)
        scan_item(job, item / groups, item % groups, scratch);
}

static int scan_forward(const ns_scan *scan, int32_t threads)
{
    scan_job job = {.scan = scan};
    int done = scan_pack(&job.weights, scan->a, scan->skip, scan->channels, scan->states);
    if (done && scan->batch && scan->length)
        team_run(threads, scan_task, &job);
    scan_free(&job.weights);
    return !done || atomic_load(&job.failed) ? -1 : 0;
}

/* --- backward ---------------------------------------------------------------------------------------------------------
 *
 * With a[t] = exp(step[t] A) and the adjoint state p[t] = g[t] C[t] + a[t+1] p[t+1], g the gradient of y before the gate:
 *
 *     dC[t] = sum over channels of g h[t]        dB[t] = sum over channels of p step u        dstep = sum over n of e A + q u
 *     du = q step + g D                          dA = sum over rows and windows of e step     q = sum over n of p B,  e = p h[t-1] a
 *
 * The forward pass keeps the state before every STRETCH rows, and each stretch computes its states anew. Sums over channels go from group to group, sums over windows from window to window, whoever computes them.
 */
/* Rows of one group while its gradients are computed, (rows, W) each; `states` vectors a row in the last three */
typedef struct {
    float *u, *step, *slope, *y, *grad; /* slope: d step / d delta; grad: of y before the gate, after skip */
    float *states, *decays;             /* (STRETCH + 1), (STRETCH) rows */
    float *grad_b, *grad_c;             /* one row, padded to whole vectors of states */
    float *adjoint, *grad_a;            /* one row */
} backward_scratch;

typedef struct {
    vf u, step, grad, drive, drive_grad, step_grad;
} row_gradients;

/* One row forward that keeps the state after it and its decay */
INLINE vf recompute_row(const int states, const float *decay, int64_t stride, vf step, vf drive, const float *b, const float *c,
                        const float *before, float *after, float *decays)
{
    vf bounded = v_min_keep_nan(v_set(1e16f), step), y = v_zero();
    UNROLL(4)
    for (int n = 0; n < states; n++) {
        vf kept = v_exp2(bounded * *(const vf *)(decay + n * stride));
        vf h = v_fma(kept, *(const vf *)(before + n * W), drive * v_set(b[n]));
        y = v_fma(h, v_set(c[n]), y);
        *(vf *)(after + n * W) = h;
        if (decays)
            *(vf *)(decays + n * W) = kept;
    }
    return y;
}

INLINE void reverse_row(const int states, const float *a, int64_t stride, row_gradients *row, const float *b, const float *c,
                        const float *before, const float *decays, float *adjoint, float *grad_a, float *grad_b, float *grad_c)
{
    row->drive_grad = row->step_grad = v_zero();
    for (int first = 0; first < states; first += W) {
        vf for_b[W], for_c[W];
        UNROLL(16)
        for (int i = 0; i < W; i++) {
            int n = first + i;
            if (n >= states) {
                for_b[i] = for_c[i] = v_zero();
                continue;
            }
            vf p = v_fma(row->grad, v_set(c[n]), *(const vf *)(adjoint + n * W));
            vf kept = p * *(const vf *)(decays + n * W);
            vf e = kept * *(const vf *)(before + n * W);
            for_c[i] = row->grad * *(const vf *)(before + (states + n) * W);
            for_b[i] = p * row->drive;
            row->drive_grad = v_fma(p, v_set(b[n]), row->drive_grad);
            row->step_grad = v_fma(e, *(const vf *)(a + n * stride), row->step_grad);
            *(vf *)(grad_a + n * W) = v_fma(e, row->step, *(const vf *)(grad_a + n * W));
            *(vf *)(adjoint + n * W) = kept;
        }
        *(vf *)(grad_b + first) = v_sums(for_b);
        *(vf *)(grad_c + first) = v_sums(for_c);
    }
}

typedef struct {
    scan_job job;
    const ns_scan_gradients *to;
    work_list reduce;
    int groups, shared_groups; /* groups with a dB and dC of their own, or 1: groups of a window take turns on one */
    float *partial_b, *partial_c; /* (window, shared group, length, states padded to W) */
    float *partial_channels;      /* (window, states + 2, channels padded to W): dA, dD, d delta_bias */
} backward_job;

static float *lay_out_backward(int length, int states, backward_scratch *s, float *at)
{
    int row = states * W;
#define TAKE(field, floats) s->field = at, at += padded((int)(floats), LINE)
    TAKE(u, length * W), TAKE(step, length * W), TAKE(slope, length * W), TAKE(y, length * W), TAKE(grad, length * W);
    TAKE(states, (STRETCH + 1) * row), TAKE(decays, STRETCH * row);
    TAKE(grad_b, padded(states, W)), TAKE(grad_c, padded(states, W));
    TAKE(adjoint, row), TAKE(grad_a, row);
#undef TAKE
    return at;
}

/* Rows of u, step, slope, and of what they need from z and the output's gradient */
static void load_rows(const ns_scan *s, const float *grad_y, int64_t at, int group, int lanes, backward_scratch *to)
{
    vf bias = s->delta_bias ? v_load_n(s->delta_bias + group * W, lanes) : v_zero();
    take_lanes(s->length, s->u + at, s->channels, lanes, to->u);
    take_lanes(s->length, s->delta + at, s->channels, lanes, to->step);
    take_lanes(s->length, grad_y + at, s->channels, lanes, to->grad);
    for (int t = 0; t < s->length * W; t += W) {
        vf delta = v_load(to->step + t) + bias;
        v_store(to->step + t, delta), v_store(to->slope + t, delta);
    }
    softplus((int64_t)s->length * W, to->step);
    sigmoid((int64_t)s->length * W, to->slope);
}

/* dz of rows [from, to), at most STRETCH, and grad becomes the gradient before the gate */
static void reverse_gate(const ns_scan *s, float *grad_z, int64_t at, int from, int to, int lanes, vf skip, backward_scratch *r)
{
    float z[STRETCH * W] __attribute__((aligned(64))), slope[STRETCH * W] __attribute__((aligned(64)));
    take_lanes(to - from, s->z + at + (int64_t)from * s->channels, s->channels, lanes, z);
    memcpy(slope, z, sizeof(float) * (size_t)(to - from) * W);
    sigmoid((int64_t)(to - from) * W, slope);
    for (int t = from; t < to; t++) {
        vf open = v_load(slope + (t - from) * W), gate = v_load(z + (t - from) * W) * open, grad = v_load(r->grad + t * W);
        vf y = v_fma(v_load(r->u + t * W), skip, v_load(r->y + t * W));
        v_store_n(grad_z + at + (int64_t)t * s->channels, grad * y * v_fma(gate, v_set(1.0f) - open, open), lanes);
        v_store(r->grad + t * W, grad * gate);
    }
}

/* What one group leaves in the sums over channels: the first group sets, later ones add */
static void add_states(int states, const float *row, float *sum, int set)
{
    for (int n = 0; n < states; n += W)
        v_store(sum + n, set ? v_load(row + n) : (vf)(v_load(sum + n) + v_load(row + n)));
}

/* Where the gradients of one group of one window go */
typedef struct {
    float *b, *c;          /* sums over channels, (length, states padded to W); the first group sets them */
    int set;
    float *u, *delta, *z;  /* (length, stride), the first `lanes` of each row; z may be NULL */
    int64_t stride, at;    /* at: of the first row in z */
    int lanes;
    float *channels;       /* dA, dD, d delta_bias */
} group_gradients;

INLINE void reverse_group(const int states, const backward_job *job, int group, const scan_rows *x, const float *starts,
                          backward_scratch *s, const group_gradients *grads)
{
    const scan_weights *w = &job->job.weights;
    float *adjoint = s->adjoint, *grad_a = s->grad_a;
    int row = states * W, sums = padded(states, W);
    vf skip = *(const vf *)(w->skip + group * W), grad_skip = v_zero(), grad_bias = v_zero();
    memset(adjoint, 0, sizeof(float) * (size_t)row);
    memset(grad_a, 0, sizeof(float) * (size_t)row);
    for (int from = (x->rows - 1) / STRETCH * STRETCH; from >= 0; from -= STRETCH) {
        int to = from + STRETCH < x->rows ? from + STRETCH : x->rows;
        memcpy(s->states, starts + from / STRETCH * row, sizeof(float) * (size_t)row);
        for (int t = from; t < to; t++) {
            vf step = v_load(s->step + t * W), u = v_load(s->u + t * W);
            float *before = s->states + (t - from) * row;
            vf y = recompute_row(states, w->decay + group * W, w->stride, step, step * u, x->b + t * x->bc_stride,
                                 x->c + t * x->bc_stride, before, before + row, s->decays + (t - from) * row);
            v_store(s->y + t * W, y);
        }
        if (grads->z)
            reverse_gate(job->job.scan, grads->z, grads->at, from, to, grads->lanes, skip, s);
        for (int t = to - 1; t >= from; t--) {
            row_gradients r = {.u = v_load(s->u + t * W), .step = v_load(s->step + t * W), .grad = v_load(s->grad + t * W)};
            r.drive = r.step * r.u;
            reverse_row(states, w->a + group * W, w->stride, &r, x->b + t * x->bc_stride, x->c + t * x->bc_stride,
                        s->states + (t - from) * row, s->decays + (t - from) * row, adjoint, grad_a, s->grad_b, s->grad_c);
            add_states(states, s->grad_b, grads->b + (int64_t)t * sums, grads->set);
            add_states(states, s->grad_c, grads->c + (int64_t)t * sums, grads->set);
            vf grad_raw = v_fma(r.drive_grad, r.u, r.step_grad) * v_load(s->slope + t * W);
            v_store_n(grads->u + t * grads->stride, v_fma(r.drive_grad, r.step, r.grad * skip), grads->lanes);
            v_store_n(grads->delta + t * grads->stride, grad_raw, grads->lanes);
            grad_skip = v_fma(r.grad, r.u, grad_skip);
            grad_bias += grad_raw;
        }
    }
    for (int n = 0; n < states; n++)
        v_store(grads->channels + n * w->stride, v_load(grad_a + n * W));
    v_store(grads->channels + states * w->stride, grad_skip);
    v_store(grads->channels + (states + 1) * w->stride, grad_bias);
}

static void backward_item(backward_job *b, int window, int group, backward_scratch *scratch)
{
    const ns_scan *s = b->job.scan;
    const scan_weights *w = &b->job.weights;
    int lanes = s->channels - group * W < W ? s->channels - group * W : W, sums = padded(s->states, W);
    int64_t at = (int64_t)window * s->length * s->channels + group * W, bc = (int64_t)window * s->length * s->states;
    int64_t part = ((int64_t)window * b->shared_groups + group % b->shared_groups) * s->length * sums;
    scan_rows rows = {.rows = s->length, .b = s->b + bc, .c = s->c + bc, .bc_stride = s->states};
    group_gradients grads = {
        .b = b->partial_b + part, .c = b->partial_c + part, .set = b->shared_groups > 1 || group == 0,
        .u = b->to->grad_u + at, .delta = b->to->grad_delta + at, .z = s->z ? b->to->grad_z : NULL, .stride = s->channels,
        .at = at, .lanes = lanes,
        .channels = b->partial_channels + (int64_t)window * (s->states + 2) * w->stride + group * W};
    load_rows(s, b->to->grad_y, at, group, lanes, scratch);
    if (s->states == 16)
        reverse_group(16, b, group, &rows, starts_of(s, window, group), scratch, &grads);
    else
        reverse_group(s->states, b, group, &rows, starts_of(s, window, group), scratch, &grads);
}

static void sum_over_groups(const backward_job *b, int window)
{
    const ns_scan *s = b->job.scan;
    int sums = padded(s->states, W);
    for (int t = 0; t < s->length; t++)
        for (int n = 0; n < s->states; n++) {
            int64_t at = ((int64_t)window * b->shared_groups * s->length + t) * sums + n, out = ((int64_t)window * s->length + t) * s->states + n;
            float grad_b = b->partial_b[at], grad_c = b->partial_c[at];
            for (int g = 1; g < b->shared_groups; g++) {
                grad_b += b->partial_b[at + (int64_t)g * s->length * sums];
                grad_c += b->partial_c[at + (int64_t)g * s->length * sums];
            }
            b->to->grad_b[out] = grad_b, b->to->grad_c[out] = grad_c;
        }
}

/* dA, dD and d delta_bias of one row of (states + 2) */
static void sum_over_windows(const backward_job *b, int row)
{
    const ns_scan *s = b->job.scan;
    for (int c = 0; c < s->channels; c++) {
        double sum = 0;
        for (int window = 0; window < s->batch; window++)
            sum += b->partial_channels[((int64_t)window * (s->states + 2) + row) * b->job.weights.stride + c];
        if (row < s->states)
            b->to->grad_a[(int64_t)c * s->states + row] = (float)sum;
        else if (row == s->states)
            b->to->grad_skip[c] = (float)sum;
        else if (b->to->grad_delta_bias)
            b->to->grad_delta_bias[c] = (float)sum;
    }
}

static void backward_task(void *context, int member, int members)
{
    backward_job *b = context;
    const ns_scan *s = b->job.scan;
    backward_scratch scratch;
    static float origin[1];
    size_t size = (size_t)(lay_out_backward(s->length, s->states, &scratch, origin) - origin);
    float *memory = team_scratch(member, sizeof(float) * size);
    int item, split = b->shared_groups > 1;
    if (!memory)
        atomic_store(&b->job.failed, 1);
    else
        lay_out_backward(s->length, s->states, &scratch, memory);
    team_barrier(members);
    if (atomic_load(&b->job.failed))
        return;
    while ((item = work_take(&b->job.work, s->batch * b->shared_groups)) >= 0)
        for (int group = split ? item % b->groups : 0; group < (split ? item % b->groups + 1 : b->groups); group++)
            backward_item(b, split ? item / b->groups : item, group, &scratch);
    team_barrier(members);
    while ((item = work_take(&b->reduce, s->batch + s->states + 2)) >= 0)
        if (item < s->batch)
            sum_over_groups(b, item);
        else
            sum_over_windows(b, item - s->batch);
}

static int scan_backward(const ns_scan *scan, const ns_scan_gradients *to, int32_t threads)
{
    backward_job b = {.job = {.scan = scan}, .to = to, .groups = groups_in(scan->channels)};
    b.shared_groups = scan->batch < 4 * threads ? b.groups : 1;
    size_t parts = (size_t)scan->batch * (size_t)b.shared_groups * (size_t)scan->length * (size_t)padded(scan->states, W);
    int done = scan_pack(&b.job.weights, scan->a, scan->skip, scan->channels, scan->states);
    b.partial_b = aligned_floats(parts), b.partial_c = aligned_floats(parts);
    b.partial_channels = aligned_floats((size_t)scan->batch * (size_t)(scan->states + 2) * (size_t)b.job.weights.stride);
    done = done && b.partial_b && b.partial_c && b.partial_channels;
    if (done)
        team_run(threads, backward_task, &b);
    scan_free(&b.job.weights);
    free(b.partial_b), free(b.partial_c), free(b.partial_channels);
    return !done || atomic_load(&b.job.failed) ? -1 : 0;
}

#endif
