/* Which kernels a session runs. The build says by SFD_WITH_* which sets it has compiled in, the
 * processor which of them it can run. */
#include "sfd_kernels.h"

#if defined(SFD_WITH_AVX512)
extern const struct sfd_kernels sfd_kernels_avx512;
static const struct sfd_kernels *avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("fma")
               ? &sfd_kernels_avx512
               : NULL;
}
#endif

#if defined(SFD_WITH_AVX2)
extern const struct sfd_kernels sfd_kernels_avx2;
static const struct sfd_kernels *avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &sfd_kernels_avx2
                                                                           : NULL;
}
#endif

#if defined(SFD_WITH_SSE2)
extern const struct sfd_kernels sfd_kernels_sse2; /* every x86-64 has it */
#endif

#if defined(SFD_WITH_NEON)
extern const struct sfd_kernels sfd_kernels_neon; /* every aarch64 has it */
#endif

static const struct sfd_kernels *find_named(int32_t set)
{
    switch (set) {
    case SFD_KERNELS_PORTABLE:
        return &sfd_kernels_portable;
#if defined(SFD_WITH_SSE2)
    case SFD_KERNELS_SSE2:
        return &sfd_kernels_sse2;
#endif
#if defined(SFD_WITH_AVX2)
    case SFD_KERNELS_AVX2:
        return avx2();
#endif
#if defined(SFD_WITH_AVX512)
    case SFD_KERNELS_AVX512:
        return avx512();
#endif
#if defined(SFD_WITH_NEON)
    case SFD_KERNELS_NEON:
        return &sfd_kernels_neon;
#endif
    default:
        return NULL;
    }
}

const struct sfd_kernels *sfd_kernels_find(int32_t set)
{
    static const int32_t best_first[] = {SFD_KERNELS_AVX512, SFD_KERNELS_AVX2, SFD_KERNELS_SSE2,
                                         SFD_KERNELS_NEON, SFD_KERNELS_PORTABLE};
    const struct sfd_kernels *found = NULL;
    uint32_t i;

    if (set != SFD_KERNELS_AUTOMATIC)
        return find_named(set);
    for (i = 0u; found == NULL; ++i) /* the portable set is always there */
        found = find_named(best_first[i]);
    return found;
}

int sfd_kernels_available(int32_t set)
{
    return sfd_kernels_find(set) != NULL;
}

#define SET_NAME(name, code, text) \
    case SFD_KERNELS_##name:       \
        return text;

const char *sfd_kernels_name(int32_t set)
{
    if (set == SFD_KERNELS_AUTOMATIC)
        return sfd_kernels_find(set)->name;
    switch (set) {
        SFD_KERNEL_SETS(SET_NAME)
    default:
        return NULL;
    }
}
