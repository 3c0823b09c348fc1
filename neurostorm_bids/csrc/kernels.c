/* All kernels for the instruction set that this file is compiled for; setup.py compiles it once for each. */
#include "embed.h"
#include "frames.h"
#include "recurrence.h"

#ifndef NS_ISA
#define NS_ISA baseline
#endif
#define NAME_(isa) ns_kernels_##isa
#define NAME(isa) NAME_(isa)
#define TEXT_(isa) #isa
#define TEXT(isa) TEXT_(isa)

const ns_kernels NAME(NS_ISA) = {
    .isa = TEXT(NS_ISA),
    .block_new = block_new,
    .block_free = block_free,
    .block_forward = block_forward,
    .linear_new = linear_new,
    .linear_free = linear_free,
    .patch_embed = patch_embed,
    .merge = merge,
    .run_steps = run_steps,
    .scan_forward = scan_forward,
    .scan_starts = scan_starts,
    .scan_backward = scan_backward,
    .write_frames = write_frames,
    .sum_frames = sum_frames,
    .exponential = exponential,
};
