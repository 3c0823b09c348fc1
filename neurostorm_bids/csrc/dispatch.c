#include "neurostorm.h"

#include <string.h>

extern const ns_kernels ns_kernels_baseline;
#ifdef NS_X86_VARIANTS
extern const ns_kernels ns_kernels_avx2, ns_kernels_avx512, ns_kernels_avx512bf16;
#endif

static int runs_here(const ns_kernels *kernels)
{
#ifdef NS_X86_VARIANTS
    __builtin_cpu_init();
    if (kernels == &ns_kernels_avx512bf16 && !__builtin_cpu_supports("avx512bf16"))
        return 0;
    if (kernels == &ns_kernels_avx512 || kernels == &ns_kernels_avx512bf16)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    if (kernels == &ns_kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return kernels == &ns_kernels_baseline;
}

const ns_kernels *ns_kernels_for(const char *isa)
{
    static const ns_kernels *const best_first[] = {
#ifdef NS_X86_VARIANTS
        &ns_kernels_avx512, &ns_kernels_avx2,
#endif
        &ns_kernels_baseline,
#ifdef NS_X86_VARIANTS
        &ns_kernels_avx512bf16,
#endif
    };
    for (size_t i = 0; i < sizeof best_first / sizeof *best_first; i++)
        if (runs_here(best_first[i]) && (!isa || !strcmp(isa, best_first[i]->isa)))
            return best_first[i];
    return NULL;
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
