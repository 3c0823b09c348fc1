/* Frames of a run from its volumes: summed up for the statistics, or normalised into a clip. Each number is rounded as NumPy
 * rounds it in neurostorm_bids.clips, which computes the same where there is no compiler. */
#ifndef NS_FRAMES_H
#define NS_FRAMES_H

#include "neurostorm.h"

#include <stddef.h>

#define FRAME_BLOCK 256 /* voxels worked on at a time: 20 frames of them lie in L1 */

/* Some voxels of one frame: the weighted sum of its volumes, in their order */
static void frame_block(const ns_frames *f, int frame, int64_t from, int count, float *restrict out)
{
    const float *const *volumes = f->volumes + (int64_t)frame * f->width;
    const float *weights = f->weights + (int64_t)frame * f->width;
    for (int part = 0; part < f->width && volumes[part]; part++) {
        const float *restrict volume = volumes[part] + from;
        const float weight = weights[part];
        if (part == 0)
            for (int i = 0; i < count; i++)
                out[i] = volume[i] * weight;
        else
            for (int i = 0; i < count; i++)
                out[i] = out[i] + volume[i] * weight;
    }
}

static inline int block_size(const ns_frames *f, int64_t from)
{
    return f->n_voxels - from < FRAME_BLOCK ? (int)(f->n_voxels - from) : FRAME_BLOCK;
}

static void write_frames(const ns_frames *f, const int64_t *voxels, float mean, float sd, float *scratch, float *clip)
{
    for (int64_t from = 0; from < f->n_voxels; from += FRAME_BLOCK) {
        const int count = block_size(f, from);
        for (int t = 0; t < f->frames; t++) {
            float *restrict values = scratch + (int64_t)t * FRAME_BLOCK;
            frame_block(f, t, from, count, values);
            for (int i = 0; i < count; i++)
                values[i] = ((values[i] < 0.0f ? 0.0f : values[i]) - mean) / sd; /* NaN stays */
        }
        for (int i = 0; i < count; i++) {
            float *restrict row = clip + voxels[from + i] * f->frames;
            for (int t = 0; t < f->frames; t++)
                row[t] = scratch[(int64_t)t * FRAME_BLOCK + i];
        }
    }
}

static int64_t sum_frames(const ns_frames *f, int begins, float *minimum, double *first, double *deviation, double *square)
{
    float values[FRAME_BLOCK];
    int64_t negative = 0;
    for (int64_t from = 0; from < f->n_voxels; from += FRAME_BLOCK) {
        const int count = block_size(f, from);
        float *restrict least = minimum + from;
        double *restrict around = first + from, *restrict sum = deviation + from, *restrict squares = square + from;
        for (int t = 0; t < f->frames; t++) {
            int below = 0;
            frame_block(f, t, from, count, values);
            for (int i = 0; i < count; i++) {
                least[i] = values[i] < least[i] ? values[i] : least[i];
                below += values[i] < 0.0f;
                values[i] = values[i] < 0.0f ? 0.0f : values[i];
            }
            negative += below;
            if (begins && t == 0)
                for (int i = 0; i < count; i++)
                    around[i] = values[i];
            for (int i = 0; i < count; i++) {
                const double d = (double)values[i] - around[i];
                sum[i] += d;
                squares[i] += d * d;
            }
        }
    }
    return negative;
}

#endif
