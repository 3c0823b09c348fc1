/* A Mamba block on windows: LayerNorm, in_proj, causal conv, scan, gate, out_proj, residual, LayerNorm, MLP, residual.
 *
 * A window goes through all of it in chunks of rows, while they sit in L2; scan states and the last rows before the conv are
 * carried from chunk to chunk. Windows that do not fill a round of all threads are split: rows first, then groups of channels
 * for the scan, then rows again. Either way each number is computed by the same operations in the same order.
 */
#ifndef NS_BLOCK_H
#define NS_BLOCK_H

#include "neurostorm.h"
#include "scan.h"
#include "team.h"

#define EPSILON 1e-5f
#define MOST_TAPS 16
#define MOST_ROWS 64 /* of a chunk */
#define LINE 16 /* rows of scratch are padded to this many floats */

typedef struct {
    int n;
    float *weight, *bias; /* padded to W */
} norm;

struct ns_block {
    int dim, inner, rank, states, taps, hidden;
    int dim_stride, inner_stride, bc_stride, hidden_stride;
    norm norm1, norm2;
    matrix in_u, in_z, x_proj, dt_proj, out_proj, fc1, fc2;
    float *conv_weight, *conv_bias; /* (taps, inner_stride), (inner_stride) */
    scan_weights scan;
    float *first_state, *first_tail; /* after the prompt tokens: (groups, states, W), (taps - 1, inner_stride) */
};

/* Scratch of one chunk of rows; widths in the comments. */
typedef struct {
    element *normed;       /* dim_stride */
    element *operand;      /* operand_stride: u, then bc, rounded if products are */
    float *u, *z, *delta;  /* inner_stride */
    float *y;              /* inner_stride */
    float *bc;             /* bc_stride: B, C, then the rank-reduced delta */
    float *hidden;         /* hidden_stride */
    float *out, *residual; /* dim_stride */
    float *tail;           /* (taps - 1, inner_stride) rows before the conv */
    float *state;          /* (groups, states, W) */
} rows_scratch;

static int norm_pack(norm *to, const float *weight, const float *bias, int n)
{
    *to = (norm){n, aligned_floats((size_t)padded(n, W)), aligned_floats((size_t)padded(n, W))};
    if (!to->weight || !to->bias)
        return 0;
    memcpy(to->weight, weight, sizeof(float) * (size_t)n);
    memcpy(to->bias, bias, sizeof(float) * (size_t)n);
    return 1;
}

static void norm_free(norm *n)
{
    free(n->weight);
    free(n->bias);
}

INLINE vf sum_of_row(const float *x, int whole, int rest)
{
    vf sum = rest ? v_load_n(x + whole, rest) : v_zero();
    for (int i = 0; i < whole; i += W)
        sum += v_load(x + i);
    return sum;
}

INLINE vf squares_of_row(const float *x, int whole, int rest, vf mean)
{
    vf d, sum = v_zero();
    if (rest) {
        d = v_first(v_load_n(x + whole, rest) - mean, rest);
        sum = d * d;
    }
    for (int i = 0; i < whole; i += W) {
        d = v_load(x + i) - mean;
        sum = v_fma(d, d, sum);
    }
    return sum;
}

/* LayerNorm of up to W rows at once, so that means and variances are vectors too; a row of NULL becomes zeros */
INLINE void normalise_few(const norm *by, int count, const float *const *x, element *out, int64_t stride)
{
    int n = by->n, rest = n % W, whole = n - rest;
    vf sums[W], one_over_n = v_set(1.0f / (float)n);
    float mean[W] __attribute__((aligned(64))), scale[W] __attribute__((aligned(64)));
    for (int r = 0; r < W; r++)
        sums[r] = r < count && x[r] ? sum_of_row(x[r], whole, rest) : v_zero();
    *(vf *)mean = v_sums(sums) * one_over_n;
    for (int r = 0; r < W; r++)
        sums[r] = r < count && x[r] ? squares_of_row(x[r], whole, rest, v_set(mean[r])) : v_zero();
    *(vf *)scale = v_set(1.0f) / v_sqrt(v_fma(v_sums(sums), one_over_n, v_set(EPSILON)));
    for (int r = 0; r < count; r++, out += stride) {
        if (!x[r]) {
            memset(out, 0, sizeof(element) * (size_t)padded(n, W));
            continue;
        }
        for (int i = 0; i < n; i += W) {
            vf d = ((i < whole ? v_load(x[r] + i) : v_load_n(x[r] + i, rest)) - mean[r]) * scale[r];
            put(out + i, v_fma(d, v_load(by->weight + i), v_load(by->bias + i)));
        }
    }
}

static void normalise(const norm *by, int count, const float *const *x, element *out, int64_t stride)
{
    for (int r = 0; r < count; r += W)
        normalise_few(by, count - r < W ? count - r : W, x + r, out + r * stride, stride);
}

/* --- windows ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    int clips, per_clip, length; /* windows of a clip, tokens of a window */
    int grid[4], window[4], count[4], origin[4];
} window_layout;

static window_layout layout_of(const ns_windows *w)
{
    window_layout layout = {.clips = w->clips, .per_clip = 1, .length = 1};
    for (int i = 0; i < 4; i++) {
        layout.grid[i] = w->grid[i], layout.window[i] = w->window[i];
        layout.count[i] = w->count[i], layout.origin[i] = w->origin[i];
        layout.per_clip *= layout.count[i];
        layout.length *= w->window[i];
    }
    return layout;
}

/* Place of step `i` of a window along one axis; -1 for padding. */
INLINE int place_on_axis(const window_layout *w, int axis, int number, int i)
{
    int extent = w->count[axis] * w->window[axis];
    int place = number * w->window[axis] + i + w->origin[axis];
    place = place >= extent ? place - extent : place;
    return place >= 0 && place < w->grid[axis] ? place : -1;
}

/* The first rows of the token tensor that form window `index`, -1 for padding; returns how many there are, at most `most` */
static int first_rows(const window_layout *w, int index, int most, int64_t *rows)
{
    int number[4], rest = index % w->per_clip, clip = index / w->per_clip, count = 0;
    for (int axis = 3; axis >= 0; axis--)
        number[axis] = rest % w->count[axis], rest /= w->count[axis];
    for (int a = 0; a < w->window[0]; a++)
        for (int b = 0; b < w->window[1]; b++)
            for (int c = 0; c < w->window[2]; c++) {
                int x = place_on_axis(w, 0, number[0], a), y = place_on_axis(w, 1, number[1], b);
                int z = place_on_axis(w, 2, number[2], c);
                int64_t line = (((int64_t)clip * w->grid[0] + x) * w->grid[1] + y) * w->grid[2] + z;
                for (int d = 0; d < w->window[3]; d++) {
                    int t = place_on_axis(w, 3, number[3], d);
                    if (count == most)
                        return count;
                    rows[count++] = (x < 0 || y < 0 || z < 0 || t < 0) ? -1 : line * w->grid[3] + t;
                }
            }
    return count;
}

static void window_rows(const window_layout *w, int index, int64_t *rows) { first_rows(w, index, w->length, rows); }

/* --- steps on a chunk of rows ----------------------------------------------------------------------------------------- */

static void normalise_rows(const ns_block *b, const float *tokens, const int64_t *rows, int count, element *out)
{
    const float *x[MOST_ROWS];
    for (int i = 0; i < count; i++)
        x[i] = rows[i] < 0 ? NULL : tokens + rows[i] * b->dim;
    normalise(&b->norm1, count, x, out, b->dim_stride);
}

INLINE void convolve_taps(const int taps, const ns_block *b, int rows, float *u, float *tail)
{
    int64_t stride = b->inner_stride;
    const int before = taps - 1;
    for (int at = 0; at < b->inner; at += W) {
        vf past[MOST_TAPS], weight[MOST_TAPS], bias = v_load(b->conv_bias + at);
        UNROLL(4)
        for (int k = 0; k < taps; k++)
            weight[k] = v_load(b->conv_weight + k * stride + at);
        UNROLL(4)
        for (int k = 0; k < before; k++)
            past[k] = v_load(tail + k * stride + at);
        for (int t = 0; t < rows; t++) {
            vf sum = bias;
            past[before] = v_load(u + t * stride + at);
            UNROLL(4)
            for (int k = 0; k < taps; k++)
                sum = v_fma(past[k], weight[k], sum);
            UNROLL(4)
            for (int k = 0; k < before; k++)
                past[k] = past[k + 1];
            v_store(u + t * stride + at, sum);
        }
        UNROLL(4)
        for (int k = 0; k < before; k++)
            v_store(tail + k * stride + at, past[k]);
    }
}

/* Causal depthwise convolution and SiLU in place; `tail` holds the rows before the first and receives the last ones. */
static void convolve(const ns_block *b, int count, float *u, float *tail)
{
    if (b->taps == 4)
        convolve_taps(4, b, count, u, tail);
    else
        convolve_taps(b->taps, b, count, u, tail);
    silu(count * b->inner_stride, u);
}

/* delta = softplus(dt_proj(the rank-reduced delta)) */
static void step_sizes(const ns_block *b, int count, rows_scratch *s)
{
    const element *bc = as_operand((int64_t)count * b->bc_stride, s->bc, s->operand);
    gemm(count, bc + 2 * b->states, b->bc_stride, &b->dt_proj, s->delta, b->inner_stride);
    softplus((int64_t)count * b->inner_stride, s->delta);
}

/* From normalised rows to what the scan reads */
static void prepare_scan(const ns_block *b, int count, rows_scratch *s)
{
    gemm(count, s->normed, b->dim_stride, &b->in_u, s->u, b->inner_stride);
    convolve(b, count, s->u, s->tail);
    const element *u = as_operand((int64_t)count * b->inner_stride, s->u, s->operand);
    gemm(count, u, b->inner_stride, &b->x_proj, s->bc, b->bc_stride);
    step_sizes(b, count, s);
}

static void scan_chunk(const ns_block *b, int group, int count, const rows_scratch *s, float *state)
{
    scan_rows rows = {.rows = count, .u = s->u + group * W, .delta = s->delta + group * W, .b = s->bc,
                      .c = s->bc + b->states, .channel_stride = b->inner_stride, .bc_stride = b->bc_stride,
                      .y = s->y + group * W, .y_stride = b->inner_stride};
    scan_group(&b->scan, group, &rows, state);
}

/* What a product takes of another's results: GELU(x), or y * silu(x). `to` may begin where x or y does, whose values are read
 * before narrower ones come to their place. */
#define AS_OPERAND(at, v) put(to + (at), v)
#define TIMES_Y(at, v) put(to + (at), v_load(y + (at)) * (v))
DEFINE_OVER(gelu, gelus, (int64_t n, const float *x, element *to), AS_OPERAND)
DEFINE_OVER(gate, silus, (int64_t n, const float *x, const float *y, element *to), TIMES_Y)
#undef AS_OPERAND
#undef TIMES_Y

INLINE void add_row(int n, const float *x, const float *y, float *out)
{
    int whole = n / W * W;
    for (int i = 0; i < whole; i += W)
        v_store(out + i, v_load(x + i) + v_load(y + i));
    if (n > whole)
        v_store_n(out + whole, v_load_n(x + whole, n - whole) + v_load_n(y + whole, n - whole), n - whole);
}

static void add_and_normalise(const ns_block *b, const float *tokens, const int64_t *rows, int count, rows_scratch *s)
{
    const float *x[MOST_ROWS];
    for (int i = 0; i < count; i++) {
        float *residual = s->residual + (int64_t)i * b->dim_stride;
        if (rows[i] >= 0)
            add_row(b->dim, tokens + rows[i] * b->dim, s->out + (int64_t)i * b->dim_stride, residual);
        x[i] = rows[i] < 0 ? NULL : residual;
    }
    normalise(&b->norm2, count, x, s->normed, b->dim_stride);
}

/* tokens[rows] += what the scan made of them, then += MLP of that */
static void finish_rows(const ns_block *b, float *tokens, const int64_t *rows, int count, rows_scratch *s)
{
    element *gated = (element *)s->y, *hidden = (element *)s->hidden;
    gate((int64_t)count * b->inner_stride, s->z, s->y, gated);
    gemm(count, gated, b->inner_stride, &b->out_proj, s->out, b->dim_stride);
    add_and_normalise(b, tokens, rows, count, s);
    gemm(count, s->normed, b->dim_stride, &b->fc1, s->hidden, b->hidden_stride);
    gelu((int64_t)count * b->hidden_stride, s->hidden, hidden);
    gemm(count, hidden, b->hidden_stride, &b->fc2, s->out, b->dim_stride);
    for (int i = 0; i < count; i++)
        if (rows[i] >= 0)
            add_row(b->dim, s->residual + (int64_t)i * b->dim_stride, s->out + (int64_t)i * b->dim_stride,
                    tokens + rows[i] * b->dim);
}

/* --- one thread a window, or all threads on one ------------------------------------------------------------------------ */

typedef struct {
    const ns_block *block;
    window_layout layout;
    float *tokens;
    int windows, whole; /* windows [0, whole) are one item each, the others are split */
    int chunk;               /* rows of a chunk of a whole window */
    int split_chunk, chunks; /* the same of a split one, and how many of them it has */
    work_list first, scans, last;
    float *shared;      /* rows_scratch of the split windows */
    atomic_int failed;
} block_job;

static int groups_of(const ns_block *b) { return (b->inner + W - 1) / W; }
static size_t state_floats(const ns_block *b) { return (size_t)groups_of(b) * (size_t)b->states * W; }
static int operand_stride(const ns_block *b) { return b->inner_stride > b->bc_stride ? b->inner_stride : b->bc_stride; }
static size_t tail_floats(const ns_block *b) { return (size_t)(b->taps - 1) * (size_t)b->inner_stride; }

/* Lays the buffers for `rows` rows out from `at`; returns the end. at == NULL only measures. */
static float *lay_out(const ns_block *b, int rows, rows_scratch *s, float *at)
{
    float *start = at;
#define TAKE(field, floats)                     \
    s->field = at;                              \
    at = at + padded((int)(floats), LINE)
    s->normed = (element *)at, at += padded(rows * b->dim_stride, LINE);
    s->operand = (element *)at, at += padded(rows * operand_stride(b), LINE);
    TAKE(u, rows * b->inner_stride);
    TAKE(z, rows * b->inner_stride);
    TAKE(delta, rows * b->inner_stride);
    TAKE(y, rows * b->inner_stride);
    TAKE(bc, rows * b->bc_stride);
    TAKE(hidden, rows * b->hidden_stride);
    TAKE(out, rows * b->dim_stride);
    TAKE(residual, rows * b->dim_stride);
    TAKE(tail, tail_floats(b));
    TAKE(state, state_floats(b));
#undef TAKE
    (void)start;
    return at;
}

static size_t scratch_floats(const ns_block *b, int rows)
{
    rows_scratch ignored;
    static float origin[1];
    return (size_t)(lay_out(b, rows, &ignored, origin) - origin);
}

/* The rows of the next chunk lie scattered: ask for them while this one is worked on. After the last chunk comes, most likely,
 * the window that is next on the list. */
static void prefetch_next(block_job *job, const int64_t *rows, int from)
{
    const ns_block *b = job->block;
    int64_t next_rows[MOST_ROWS];
    int count = job->layout.length - from, next = atomic_load_explicit(&job->first.next, memory_order_relaxed);
    if (count <= 0) {
        count = next < job->whole ? first_rows(&job->layout, next, MOST_ROWS, next_rows) : 0;
        rows = next_rows, from = 0;
    }
    for (int i = from; i < from + count && i < from + MOST_ROWS; i++)
        for (int at = 0; rows[i] >= 0 && at < b->dim; at += 16)
            __builtin_prefetch(job->tokens + rows[i] * b->dim + at);
}

static void whole_window(block_job *job, int window, int64_t *rows, rows_scratch *s)
{
    const ns_block *b = job->block;
    window_rows(&job->layout, window, rows);
    memcpy(s->tail, b->first_tail, sizeof(float) * tail_floats(b));
    memcpy(s->state, b->first_state, sizeof(float) * state_floats(b));
    for (int from = 0; from < job->layout.length; from += job->chunk) {
        int count = job->layout.length - from < job->chunk ? job->layout.length - from : job->chunk;
        normalise_rows(b, job->tokens, rows + from, count, s->normed);
        prefetch_next(job, rows, from + count);
        prepare_scan(b, count, s);
        for (int g = 0; g < groups_of(b); g++)
            scan_chunk(b, g, count, s, s->state + (int64_t)g * b->states * W);
        gemm(count, s->normed, b->dim_stride, &b->in_z, s->z, b->inner_stride);
        finish_rows(b, job->tokens, rows + from, count, s);
    }
}

/* The view of rows [from, ...) of a split window's scratch */
static rows_scratch rows_from(const ns_block *b, const rows_scratch *s, int from)
{
    rows_scratch part = *s;
    part.normed += (int64_t)from * b->dim_stride, part.bc += (int64_t)from * b->bc_stride;
    part.operand += (int64_t)from * operand_stride(b);
    part.u += (int64_t)from * b->inner_stride, part.z += (int64_t)from * b->inner_stride;
    part.delta += (int64_t)from * b->inner_stride, part.y += (int64_t)from * b->inner_stride;
    part.hidden += (int64_t)from * b->hidden_stride;
    part.out += (int64_t)from * b->dim_stride, part.residual += (int64_t)from * b->dim_stride;
    return part;
}

/* The rows before the conv that precede row `from`, computed anew: another member may not have them yet */
static void tail_before(const block_job *job, const int64_t *rows, int from, rows_scratch *own)
{
    const ns_block *b = job->block;
    int before = b->taps - 1, known = from < before ? from : before;
    for (int k = 0; k < before - known; k++)
        memcpy(own->tail + k * b->inner_stride, b->first_tail + (k + known) * b->inner_stride,
               sizeof(float) * (size_t)b->inner_stride);
    normalise_rows(b, job->tokens, rows + from - known, known, own->normed);
    gemm(known, own->normed, b->dim_stride, &b->in_u, own->tail + (before - known) * b->inner_stride, b->inner_stride);
}

static rows_scratch split_scratch(const block_job *job, int window)
{
    rows_scratch s;
    size_t size = scratch_floats(job->block, job->layout.length);
    lay_out(job->block, job->layout.length, &s, job->shared + size * (size_t)(window - job->whole));
    return s;
}

static void split_rows(block_job *job, int item, int64_t *rows, rows_scratch *own, int last)
{
    const ns_block *b = job->block;
    int window = job->whole + item / job->chunks, from = item % job->chunks * job->split_chunk;
    int count = job->layout.length - from < job->split_chunk ? job->layout.length - from : job->split_chunk;
    rows_scratch whole = split_scratch(job, window), part = rows_from(b, &whole, from);
    window_rows(&job->layout, window, rows);
    if (last) {
        gemm(count, part.normed, b->dim_stride, &b->in_z, part.z, b->inner_stride);
        finish_rows(b, job->tokens, rows + from, count, &part);
        return;
    }
    tail_before(job, rows, from, own);
    part.tail = own->tail;
    normalise_rows(b, job->tokens, rows + from, count, part.normed);
    prepare_scan(b, count, &part);
}

static void split_scan(block_job *job, int item)
{
    const ns_block *b = job->block;
    int group = item % groups_of(b);
    rows_scratch s = split_scratch(job, job->whole + item / groups_of(b));
    float *state = s.state + (int64_t)group * b->states * W;
    memcpy(state, b->first_state + (int64_t)group * b->states * W, sizeof(float) * (size_t)b->states * W);
    scan_chunk(b, group, job->layout.length, &s, state);
}

static void block_task(void *context, int member, int members)
{
    block_job *job = context;
    const ns_block *b = job->block;
    size_t index_bytes = (size_t)padded(job->layout.length, 8) * sizeof(int64_t);
    char *memory = team_scratch(member, index_bytes + sizeof(float) * scratch_floats(b, job->chunk));
    int64_t *rows = (int64_t *)memory;
    rows_scratch own;
    int split = job->windows - job->whole, item;
    if (!memory)
        atomic_store(&job->failed, 1);
    else
        lay_out(b, job->chunk, &own, (float *)(memory + index_bytes));
    team_barrier(members);
    if (atomic_load(&job->failed))
        return;
    while ((item = work_take(&job->first, job->whole + split * job->chunks)) >= 0)
        if (item < job->whole)
            whole_window(job, item, rows, &own);
        else
            split_rows(job, item - job->whole, rows, &own, 0);
    if (!split)
        return;
    team_barrier(members);
    while ((item = work_take(&job->scans, split * groups_of(b))) >= 0)
        split_scan(job, item);
    team_barrier(members);
    while ((item = work_take(&job->last, split * job->chunks)) >= 0)
        split_rows(job, item, rows, &own, 1);
}

static int block_forward(const ns_block *block, const ns_windows *windows, float *tokens, int32_t threads)
{
    block_job job = {.block = block, .layout = layout_of(windows), .tokens = tokens};
    job.windows = job.layout.clips * job.layout.per_clip;
    job.whole = threads > 1 ? job.windows / threads * threads : job.windows;
    if (job.windows == 0 || job.layout.length == 0)
        return 0;
    int split = job.windows - job.whole, fair = job.layout.length * split / threads; /* rows of a split window for each thread */
    job.chunk = job.layout.length < MOST_ROWS ? job.layout.length : MOST_ROWS;
    job.split_chunk = padded(fair > 32 ? fair / 2 : fair, 8);
    job.split_chunk = job.split_chunk < 8 ? 8 : job.split_chunk > job.chunk ? job.chunk : job.split_chunk;
    job.chunks = (job.layout.length + job.split_chunk - 1) / job.split_chunk;
    if (split && !(job.shared = aligned_floats((size_t)split * scratch_floats(block, job.layout.length))))
        return -1;
    team_run(threads, block_task, &job);
    free(job.shared);
    return atomic_load(&job.failed) ? -1 : 0;
}

/* --- weights ----------------------------------------------------------------------------------------------------------- */

static void block_free(ns_block *b)
{
    if (!b)
        return;
    norm_free(&b->norm1), norm_free(&b->norm2);
    matrix *matrices[] = {&b->in_u, &b->in_z, &b->x_proj, &b->dt_proj, &b->out_proj, &b->fc1, &b->fc2};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        matrix_free(matrices[i]);
    scan_free(&b->scan);
    free(b->conv_weight), free(b->conv_bias);
    free(b->first_state), free(b->first_tail);
    free(b);
}

/* (rows, columns) row-major to (columns, stride) */
static float *transposed(const float *x, int rows, int columns, int stride)
{
    float *out = aligned_floats((size_t)columns * (size_t)stride);
    for (int r = 0; out && r < rows; r++)
        for (int c = 0; c < columns; c++)
            out[(int64_t)c * stride + r] = x[(int64_t)r * columns + c];
    return out;
}

/* x_proj gives (rank, B, C); ours gives (B, C, rank), so that B and C start at whole vectors */
static int pack_x_proj(matrix *to, const ns_block_weights *w)
{
    int n = w->rank + 2 * w->states;
    float *reordered = aligned_floats((size_t)n * (size_t)w->inner);
    if (!reordered)
        return 0;
    size_t reduced = (size_t)w->rank * (size_t)w->inner, rest = (size_t)(2 * w->states) * (size_t)w->inner;
    memcpy(reordered, w->x_proj + reduced, sizeof(float) * rest);
    memcpy(reordered + rest, w->x_proj, sizeof(float) * reduced);
    int done = matrix_pack(to, reordered, NULL, n, w->inner, 0);
    free(reordered);
    return done;
}

static void put_row(int n, const float *x, element *to)
{
    int whole = n / W * W;
    for (int i = 0; i < whole; i += W)
        put(to + i, v_load(x + i));
    if (n > whole)
        put(to + whole, v_load_n(x + whole, n - whole));
}

/* Prompt tokens come first in every window and the scan is causal: what they leave behind is the same for all windows. */
static int pass_prompt(ns_block *b, const ns_block_weights *w)
{
    rows_scratch s;
    float *memory = aligned_floats(scratch_floats(b, w->prompt));
    if (!memory)
        return 0;
    lay_out(b, w->prompt, &s, memory);
    s.tail = b->first_tail;
    for (int i = 0; i < w->prompt; i++)
        put_row(b->dim, w->prompt_tokens + (int64_t)i * b->dim, s.normed + (int64_t)i * b->dim_stride);
    prepare_scan(b, w->prompt, &s);
    for (int g = 0; g < groups_of(b); g++)
        scan_chunk(b, g, w->prompt, &s, b->first_state + (int64_t)g * b->states * W);
    free(memory);
    return 1;
}

static int block_pack(ns_block *b, const ns_block_weights *w)
{
    *b = (ns_block){.dim = w->dim, .inner = w->inner, .rank = w->rank, .states = w->states, .taps = w->taps,
                    .hidden = w->hidden, .dim_stride = padded(w->dim, LINE), .inner_stride = padded(w->inner, LINE),
                    .bc_stride = padded(w->rank + 2 * w->states, LINE), .hidden_stride = padded(w->hidden, LINE)};
    b->conv_weight = transposed(w->conv_weight, w->inner, w->taps, b->inner_stride);
    b->conv_bias = transposed(w->conv_bias, w->inner, 1, b->inner_stride);
    b->first_state = aligned_floats(state_floats(b));
    b->first_tail = aligned_floats(tail_floats(b));
    return b->conv_weight && b->conv_bias && b->first_state && b->first_tail &&
           norm_pack(&b->norm1, w->norm1_weight, w->norm1_bias, w->dim) &&
           norm_pack(&b->norm2, w->norm2_weight, w->norm2_bias, w->dim) &&
           matrix_pack(&b->in_u, w->in_proj, NULL, w->inner, w->dim, 0) &&
           matrix_pack(&b->in_z, w->in_proj + (int64_t)w->inner * w->dim, NULL, w->inner, w->dim, 0) &&
           pack_x_proj(&b->x_proj, w) && matrix_pack(&b->dt_proj, w->dt_weight, w->dt_bias, w->inner, w->rank, 0) &&
           matrix_pack(&b->out_proj, w->out_proj, NULL, w->dim, w->inner, 0) &&
           matrix_pack(&b->fc1, w->fc1_weight, w->fc1_bias, w->hidden, w->dim, 0) &&
           matrix_pack(&b->fc2, w->fc2_weight, w->fc2_bias, w->dim, w->hidden, 0) &&
           scan_pack(&b->scan, w->a, w->skip, w->inner, w->states) && (w->prompt == 0 || pass_prompt(b, w));
}

static ns_block *block_new(const ns_block_weights *w)
{
    ns_block *b = calloc(1, sizeof *b);
    if (b && !block_pack(b, w)) {
        block_free(b);
        return NULL;
    }
    return b;
}

#endif
