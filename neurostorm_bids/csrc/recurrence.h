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

static int groups_in(int channels) { return (channels + W - 1) / W; }

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
    float *u = scratch, *step = scratch + size, *y = step + size, state[256 * W] __attribute__((aligned(64)));
    vf bias = s->delta_bias ? lanes_of(s->delta_bias + group * W, lanes) : v_zero();
    take_lanes(length, s->u + at, s->channels, lanes, u);
    take_lanes(length, s->delta + at, s->channels, lanes, step);
    for (int t = 0; t < length; t++)
        v_store(step + t * W, v_softplus(v_load(step + t * W) + bias));
    memset(state, 0, sizeof(float) * (size_t)s->states * W);
    scan_rows rows = {.rows = length, .u = u, .delta = step, .b = s->b + (int64_t)window * length * s->states,
                      .c = s->c + (int64_t)window * length * s->states, .channel_stride = W, .bc_stride = s->states,
                      .y = y, .y_stride = W};
    scan_group(&job->weights, group, &rows, state);
    for (int t = 0; s->z && t < length; t++) {
        const float *z = s->z + at + (int64_t)t * s->channels;
        v_store(y + t * W, v_load(y + t * W) * v_silu(lanes == W ? v_load(z) : v_load_n(z, lanes)));
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

#endif
