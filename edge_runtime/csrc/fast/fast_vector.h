/* Vectors of the instruction set that a file is compiled for: GCC and Clang vector extensions, so
 * that one source serves all. Each file of a fast kernel set defines SFD_LANES, the floats of one
 * register, before it includes this. Contraction to fused multiply-adds is on in these files. */
#ifndef SFD_FAST_VECTOR_H
#define SFD_FAST_VECTOR_H

#include "sfd_kernels.h"

#ifndef SFD_LANES
#error "define SFD_LANES, the floats of one vector register"
#endif

#define SFD_INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(SFD_LANES * 4)));
typedef int32_t integers __attribute__((vector_size(SFD_LANES * 4)));

/* The same at an address that is aligned to a float alone, and in memory of another type. */
typedef float loose_vector __attribute__((vector_size(SFD_LANES * 4), aligned(4), may_alias));

SFD_INLINE vector vector_load(const float *from)
{
    return *(const loose_vector *)from;
}

SFD_INLINE void vector_store(float *to, vector value)
{
    *(loose_vector *)to = value;
}

SFD_INLINE vector vector_all(float value)
{
    return value - (vector){0.0f};
}

/* The sum of all lanes, by halves. */
SFD_INLINE float vector_sum(vector v)
{
    typedef float quarter __attribute__((vector_size(16)));
#if SFD_LANES == 16
    typedef float half __attribute__((vector_size(32)));
    half h = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
             __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    quarter q =
        __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
#elif SFD_LANES == 8
    quarter q =
        __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
    quarter q = v;
#endif
    quarter r = q + __builtin_shufflevector(q, q, 2, 3, 0, 1);

    return r[0] + r[1];
}

#if SFD_LANES == 16u
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif SFD_LANES == 8u
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#else
#define EVEN_LANES 0, 2, 4, 6
#define ODD_LANES 1, 3, 5, 7
#endif

/* The sums of SFD_LANES vectors, one in each lane, at a third of the cost of one after the other.
 * Overwrites them. */
SFD_INLINE vector vectors_sum(vector *v)
{
    uint32_t count, i;

#pragma GCC unroll 4
    for (count = SFD_LANES / 2u; count > 0u; count /= 2u)
#pragma GCC unroll 8
        for (i = 0u; i < count; ++i)
            v[i] = __builtin_shufflevector(v[2u * i], v[2u * i + 1u], EVEN_LANES) +
                   __builtin_shufflevector(v[2u * i], v[2u * i + 1u], ODD_LANES);
    return v[0];
}

#endif
