/* The C interface that neurostorm_bids.model.scan.cpu loads with ctypes. Tensors are float32 and contiguous.
 *
 * b batch, l length, d channels, n states; tokens of a clip are rows of `dim` floats in raster order (x, y, z, t), t fastest.
 * Functions return 0, or -1 when memory ran out.
 */
#ifndef NEUROSTORM_H
#define NEUROSTORM_H

#include <stdint.h>

#define NS_EXPORT __attribute__((visibility("default")))

/* Weights of one Mamba block in torch's layouts; norm, prompt and mlp pointers may be NULL where a layer has none. */
typedef struct {
    int32_t dim, inner, rank, states, taps, hidden, prompt;
    const float *norm1_weight, *norm1_bias;
    const float *in_proj;                /* (2 inner, dim) */
    const float *conv_weight, *conv_bias; /* (inner, taps), (inner) */
    const float *x_proj;                 /* (rank + 2 states, inner) */
    const float *dt_weight, *dt_bias;    /* (inner, rank), (inner) */
    const float *a, *skip;               /* A (inner, states), D (inner) */
    const float *out_proj;               /* (dim, inner) */
    const float *norm2_weight, *norm2_bias;
    const float *fc1_weight, *fc1_bias;  /* (hidden, dim) */
    const float *fc2_weight, *fc2_bias;  /* (dim, hidden) */
    const float *prompt_tokens;          /* (prompt, dim), prepended to every window */
} ns_block_weights;

/* Sizes are (x, y, z, t). Step i of window number k along an axis is the token at k * window + i + origin; places past
 * count * window go on at 0, places outside the grid are zeros. */
typedef struct {
    int32_t clips;
    int32_t grid[4], window[4], count[4], origin[4];
} ns_windows;

/* A linear layer whose rows are gathered, then normalised (merging) or not (patch embedding), then get embeddings added. */
typedef struct {
    int32_t inputs, outputs;
    const float *weight, *bias;           /* (outputs, inputs), (outputs) or NULL */
    const float *norm_weight, *norm_bias; /* (inputs) or NULL */
} ns_linear_weights;

typedef struct {
    int32_t clips, channels;
    int32_t image[4], patch[4];
} ns_patches;

typedef struct ns_block ns_block;
typedef struct ns_linear ns_linear;

/* One layer of an encoder: a block on the tokens in place, or (block NULL) a merging of them into `merged`. */
typedef struct {
    const ns_block *block;
    const ns_linear *merging;
    ns_windows windows;       /* of the block; of a merging, clips and grid */
    const float *place, *time; /* embeddings that the merging adds */
    float *tokens, *merged;
} ns_step;

/* (b, l, d) u, delta and z, (b, l, n) b and c, (d, n) a, (d) skip and delta_bias; z and delta_bias may be NULL; writes y */
typedef struct {
    int32_t batch, length, channels, states;
    const float *u, *delta, *a, *b, *c, *skip, *z, *delta_bias;
    float *y;
    float *starts; /* scan_starts floats that the forward writes and the backward reads; NULL where no backward follows */
} ns_scan;

/* Gradients that scan_backward writes, shaped like what they are of; grad_y is given */
typedef struct {
    const float *grad_y;
    float *grad_u, *grad_delta, *grad_a, *grad_b, *grad_c, *grad_skip, *grad_z, *grad_delta_bias;
} ns_scan_gradients;

/* Frames of a run: frame t is the sum over its volumes of weight times volume, a NULL ends the list. */
typedef struct {
    int32_t frames, width;       /* width: most volumes of a frame */
    int64_t n_voxels;            /* of the foreground */
    const float *const *volumes; /* (frames, width), each (n_voxels) */
    const float *weights;        /* (frames, width) */
} ns_frames;

/* One table of functions an instruction set. */
typedef struct {
    const char *isa;
    ns_block *(*block_new)(const ns_block_weights *weights);
    void (*block_free)(ns_block *block);
    int (*block_forward)(const ns_block *block, const ns_windows *windows, float *tokens, int32_t threads);
    ns_linear *(*linear_new)(const ns_linear_weights *weights);
    void (*linear_free)(ns_linear *linear);
    int (*patch_embed)(const ns_linear *linear, const ns_patches *patches, const float *clips, const float *place,
                       const float *time, float *tokens, int32_t threads);
    int (*merge)(const ns_linear *linear, const int32_t clips, const int32_t *grid, const float *tokens, const float *place,
                 const float *time, float *merged, int32_t threads);
    int (*run_steps)(const ns_step *steps, int32_t count, int32_t threads);
    int (*scan_forward)(const ns_scan *scan, int32_t threads);
    int64_t (*scan_starts)(int32_t batch, int32_t length, int32_t channels, int32_t states);
    int (*scan_backward)(const ns_scan *scan, const ns_scan_gradients *gradients, int32_t threads);
    void (*write_frames)(const ns_frames *frames, const int64_t *voxels, float mean, float sd, float *scratch, float *clip);
    int64_t (*sum_frames)(const ns_frames *frames, int begins, float *minimum, double *first, double *deviation, double *square);
    void (*exponential)(int64_t n, float *x); /* in place, on one thread, n a multiple of 16; for measuring */
} ns_kernels;

/* The table for `isa` ("avx512", "avx2", "baseline"), or the best of this machine for NULL; NULL when it cannot run here.
 * "avx512bf16" rounds the operands of matrix products to bfloat16, and is taken by name only. */
NS_EXPORT const ns_kernels *ns_kernels_for(const char *isa);

/* A hash of up to 64 values spread over each tensor: shows that weights were changed behind torch's version counters. */
NS_EXPORT uint64_t ns_fingerprint(const float *const *tensors, const int64_t *sizes, int32_t count);

/* z = (max(x, 0) - mean) / sd of frames, written to the rows `voxels` of a clip (voxels of the grid, frames). `scratch` holds
 * 256 floats a frame. */
NS_EXPORT void ns_write_frames(const ns_frames *frames, const int64_t *voxels, float mean, float sd, float *scratch, float *clip);

/* Adds frames to the sums of each voxel around its first frame, which is taken from them where they begin a run; values below 0
 * count as 0 but in the minimum. Returns how many there were. */
NS_EXPORT int64_t ns_sum_frames(const ns_frames *frames, int begins, float *minimum, double *first, double *deviation, double *square);

#endif
