/* The linear layers between stages, patch embedding and patch merging, with the position and time embeddings that follow them. */
#ifndef NS_EMBED_H
#define NS_EMBED_H

#include "block.h"

struct ns_linear {
    matrix matrix;
    norm norm; /* norm.n == 0: none */
};

static void linear_free(ns_linear *l)
{
    if (!l)
        return;
    matrix_free(&l->matrix);
    norm_free(&l->norm);
    free(l);
}

static ns_linear *linear_new(const ns_linear_weights *w)
{
    ns_linear *l = calloc(1, sizeof *l);
    int done = l && matrix_pack(&l->matrix, w->weight, w->bias, w->outputs, w->inputs, !w->norm_weight) &&
               (!w->norm_weight || norm_pack(&l->norm, w->norm_weight, w->norm_bias, w->inputs));
    if (!done) {
        linear_free(l);
        return NULL;
    }
    return l;
}

/* out[t] = x[t] + place + time[t] for the frames of one place; place and time may be NULL */
static void add_embeddings(int n, int frames, const float *x, int64_t stride, const float *place, const float *time, float *out)
{
    for (int t = 0; t < frames; t++, x += stride, out += n) {
        int whole = n / W * W, rest = n - whole;
        for (int i = 0; i < whole; i += W) {
            vf sum = v_load(x + i);
            if (place)
                sum = sum + v_load(place + i) + v_load(time + (int64_t)t * n + i);
            v_store(out + i, sum);
        }
        if (rest) {
            vf sum = v_load_n(x + whole, rest);
            if (place)
                sum = sum + v_load_n(place + whole, rest) + v_load_n(time + (int64_t)t * n + whole, rest);
            v_store_n(out + whole, sum, rest);
        }
    }
}

typedef struct {
    const ns_linear *linear;
    const float *in, *place, *time;
    float *out;
    int clips, channels, image[4], patch[4], grid[4];
    int64_t *offset; /* of each voxel of a patch */
    work_list work;
    atomic_int failed;
} embed_job;

/* Voxels of a patch in the order (sX, sY, sZ, sT, channel) as offsets into a clip (channel, X, Y, Z, T) */
static int64_t *patch_offsets(const embed_job *job)
{
    const int *image = job->image, *patch = job->patch;
    int64_t *offsets = malloc(sizeof(int64_t) * (size_t)job->linear->matrix.k), *to = offsets;
    if (!offsets)
        return NULL;
    for (int x = 0; x < patch[0]; x++)
        for (int y = 0; y < patch[1]; y++)
            for (int z = 0; z < patch[2]; z++)
                for (int t = 0; t < patch[3]; t++)
                    for (int c = 0; c < job->channels; c++)
                        *to++ = ((((int64_t)c * image[0] + x) * image[1] + y) * image[2] + z) * image[3] + t;
    return offsets;
}

/* One line of patches along z, all frames: the clip is read without being copied first. */
static void embed_line(const embed_job *job, int item, float *scratch)
{
    const int *grid = job->grid, *image = job->image, *patch = job->patch;
    int n = job->linear->matrix.n, stride = padded(n, LINE), frames = grid[3];
    int y = item % grid[1], x = item / grid[1] % grid[0], clip = item / grid[1] / grid[0];
    const float *in = job->in + (int64_t)clip * job->channels * image[0] * image[1] * image[2] * image[3] +
                      ((int64_t)x * patch[0] * image[1] + (int64_t)y * patch[1]) * image[2] * image[3];
    for (int z = 0; z < grid[2]; z++) {
        int64_t place = ((int64_t)x * grid[1] + y) * grid[2] + z;
        int64_t wide = (int64_t)patch[2] * image[3]; /* from a patch to the next along z */
        operand voxels = {in + z * wide, patch[3], job->offset, z + 1 < grid[2] ? wide : 0};
        gemm_gather(frames, voxels, &job->linear->matrix, scratch, stride, scratch + (int64_t)frames * stride);
        add_embeddings(n, frames, scratch, stride, job->place ? job->place + place * n : NULL, job->time,
                       job->out + ((int64_t)clip * grid[0] * grid[1] * grid[2] + place) * frames * n);
    }
}

static void embed_task(void *context, int member, int members)
{
    embed_job *job = context;
    (void)members;
    const matrix *w = &job->linear->matrix;
    float *scratch = team_scratch(member, sizeof(float) * (size_t)(job->grid[3] * padded(w->n, LINE) + gather_room(job->grid[3], w->k)));
    int item;
    if (!scratch) {
        atomic_store(&job->failed, 1);
        return;
    }
    while ((item = work_take(&job->work, job->clips * job->grid[0] * job->grid[1])) >= 0)
        embed_line(job, item, scratch);
}

static int patch_embed(const ns_linear *linear, const ns_patches *patches, const float *clips, const float *place,
                       const float *time, float *tokens, int32_t threads)
{
    embed_job job = {.linear = linear, .in = clips, .place = place, .time = time, .out = tokens,
                     .clips = patches->clips, .channels = patches->channels};
    for (int i = 0; i < 4; i++) {
        job.image[i] = patches->image[i], job.patch[i] = patches->patch[i];
        job.grid[i] = job.image[i] / job.patch[i];
    }
    if (!(job.offset = patch_offsets(&job)))
        return -1;
    team_run(threads, embed_task, &job);
    free(job.offset);
    return atomic_load(&job.failed) ? -1 : 0;
}

/* --- merging: 2 x 2 x 2 neighbours become one token -------------------------------------------------------------------- */

/* The eight neighbours of a merged token side by side, (i, j, k) with k fastest; zeros beyond an odd grid */
static void gather_neighbours(const embed_job *job, int clip, int x, int y, int z, int t, float *out)
{
    const int *fine = job->image;
    size_t n = (size_t)job->channels;
    for (int corner = 0; corner < 8; corner++, out += n) {
        int i = 2 * x + (corner >> 2), j = 2 * y + (corner >> 1 & 1), k = 2 * z + (corner & 1);
        int64_t row = ((((int64_t)clip * fine[0] + i) * fine[1] + j) * fine[2] + k) * fine[3] + t;
        if (i < fine[0] && j < fine[1] && k < fine[2])
            memcpy(out, job->in + row * job->channels, sizeof(float) * n);
        else
            memset(out, 0, sizeof(float) * n);
    }
}

static void merge_line(const embed_job *job, int item, float *scratch)
{
    const int *grid = job->grid;
    int n = job->linear->matrix.n, frames = grid[3], wide = padded(8 * job->channels, LINE);
    int y = item % grid[1], x = item / grid[1] % grid[0], clip = item / grid[1] / grid[0];
    float *gathered = scratch, *out = scratch + (int64_t)(W + frames) * wide;
    element *normed = (element *)(scratch + (int64_t)W * wide);
    for (int z = 0; z < grid[2]; z++) {
        int64_t place = ((int64_t)x * grid[1] + y) * grid[2] + z;
        for (int t = 0; t < frames; t += W) {
            const float *rows[W];
            int count = frames - t < W ? frames - t : W;
            for (int i = 0; i < count; i++)
                gather_neighbours(job, clip, x, y, z, t + i, gathered + (int64_t)i * wide), rows[i] = gathered + (int64_t)i * wide;
            normalise(&job->linear->norm, count, rows, normed + (int64_t)t * wide, wide);
        }
        gemm(frames, normed, wide, &job->linear->matrix, out, padded(n, LINE));
        add_embeddings(n, frames, out, padded(n, LINE), job->place ? job->place + place * n : NULL, job->time,
                       job->out + ((int64_t)clip * grid[0] * grid[1] * grid[2] + place) * frames * n);
    }
}

static void merge_task(void *context, int member, int members)
{
    embed_job *job = context;
    (void)members;
    size_t wide = (size_t)padded(8 * job->channels, LINE), frames = (size_t)job->grid[3];
    float *scratch = team_scratch(member, sizeof(float) * ((W + frames) * wide + frames * (size_t)padded(job->linear->matrix.n, LINE)));
    int item;
    if (!scratch) {
        atomic_store(&job->failed, 1);
        return;
    }
    while ((item = work_take(&job->work, job->clips * job->grid[0] * job->grid[1])) >= 0)
        merge_line(job, item, scratch);
}

static int merge(const ns_linear *linear, int32_t clips, const int32_t *grid, const float *tokens, const float *place,
                 const float *time, float *merged, int32_t threads)
{
    embed_job job = {.linear = linear, .in = tokens, .place = place, .time = time, .out = merged, .clips = clips,
                     .channels = linear->matrix.k / 8};
    for (int i = 0; i < 4; i++) {
        job.image[i] = grid[i];
        job.grid[i] = i < 3 ? (grid[i] + 1) / 2 : grid[i];
    }
    team_run(threads, merge_task, &job);
    return atomic_load(&job.failed) ? -1 : 0;
}

/* Layers one after the other, without going back to the caller: it may have to wait for its interpreter after each. */
static int run_steps(const ns_step *steps, int32_t count, int32_t threads)
{
    int status = 0;
    for (const ns_step *s = steps; s < steps + count && !status; s++)
        status = s->block ? block_forward(s->block, &s->windows, s->tokens, threads)
                          : merge(s->merging, s->windows.clips, s->windows.grid, s->tokens, s->place, s->time, s->merged, threads);
    return status;
}

#endif
