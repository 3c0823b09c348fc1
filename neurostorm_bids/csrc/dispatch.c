#include "neurostorm.h"

#include <string.h>

/* setup.py defines NS_HAS_... for each instruction set that the compiler knew. */
extern const ns_kernels ns_kernels_baseline, ns_kernels_avx2, ns_kernels_avx512, ns_kernels_avx512bf16;

#if defined(NS_HAS_AVX512) || defined(NS_HAS_AVX512BF16)
static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
#endif

const ns_kernels *ns_kernels_for(const char *isa)
{
    const ns_kernels *here[4]; /* best first, but bfloat16 last: it is taken by name only */
    int count = 0;
#ifdef NS_HAS_AVX512
    if (has_avx512())
        here[count++] = &ns_kernels_avx512;
#endif
#ifdef NS_HAS_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        here[count++] = &ns_kernels_avx2;
#endif
    here[count++] = &ns_kernels_baseline;
#ifdef NS_HAS_AVX512BF16
    if (has_avx512() && __builtin_cpu_supports("avx512bf16"))
        here[count++] = &ns_kernels_avx512bf16;
#endif
    for (int i = 0; i < count; i++)
        if (!isa || !strcmp(isa, here[i]->isa))
            return here[i];
    return NULL;
}

void ns_write_frames(const ns_frames *frames, const int64_t *voxels, float mean, float sd, float *scratch, float *clip)
{
    ns_kernels_for(NULL)->write_frames(frames, voxels, mean, sd, scratch, clip);
}

int64_t ns_sum_frames(const ns_frames *frames, int begins, float *minimum, double *first, double *deviation, double *square)
{
    return ns_kernels_for(NULL)->sum_frames(frames, begins, minimum, first, deviation, square);
}

uint64_t ns_fingerprint(const float *const *tensors, const int64_t *sizes, int32_t count)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a over 32-bit words */
    for (int32_t i = 0; i < count; i++) {
        int64_t step = sizes[i] / 64 + 1;
        for (int64_t at = 0; at < sizes[i]; at += step) {
            uint32_t bits;
            memcpy(&bits, tensors[i] + at, sizeof bits);
            hash = (hash ^ bits) * 0x100000001b3u;
        }
    }
    return hash;
}
