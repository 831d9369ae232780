/* Comparisons of vectors, and the bits of a mask word. */
#ifndef SFD_FAST_BITS_H
#define SFD_FAST_BITS_H

#include "fast_vector.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define WORD 32u /* elements of a mask word */

/* The lanes for which a comparison holds. AVX-512 has registers for this; others set all bits of a
 * lane. */
#if SFD_LANES == 16
typedef uint16_t lanes;

SFD_INLINE lanes lanes_over(integers a, integers b)
{
    return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b);
}

SFD_INLINE lanes lanes_equal(integers a, integers b)
{
    return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
}

SFD_INLINE lanes lanes_at_most(vector a, vector b)
{
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
}

/* a in these lanes, b in the others. */
SFD_INLINE vector lanes_select(lanes where, vector a, vector b)
{
    return (vector)_mm512_mask_mov_ps((__m512)b, where, (__m512)a);
}

/* A bit for each lane, the first lane's lowest. */
SFD_INLINE uint32_t lanes_to_bits(lanes where)
{
    return where;
}

/* From the lowest bits; the bits above are ignored. */
SFD_INLINE lanes lanes_from_bits(uint32_t bits)
{
    return (lanes)bits;
}

/* count, and one more in these lanes. */
SFD_INLINE integers lanes_count(integers count, lanes where)
{
    return (integers)_mm512_mask_add_epi32((__m512i)count, where, (__m512i)count,
                                           _mm512_set1_epi32(1));
}
#else
typedef integers lanes;

SFD_INLINE lanes lanes_over(integers a, integers b)
{
    return a > b;
}

SFD_INLINE lanes lanes_equal(integers a, integers b)
{
    return a == b;
}

SFD_INLINE lanes lanes_at_most(vector a, vector b)
{
    return a <= b;
}

SFD_INLINE vector lanes_select(lanes where, vector a, vector b)
{
    return (vector)((where & (integers)a) | (~where & (integers)b));
}

SFD_INLINE uint32_t lanes_to_bits(lanes where)
{
#if SFD_LANES == 8
    return (uint32_t)_mm256_movemask_ps((__m256)where);
#elif defined(__SSE2__)
    return (uint32_t)_mm_movemask_ps((__m128)where);
#else
    return (uint32_t)vaddvq_s32((int32x4_t)(where & (integers){1, 2, 4, 8}));
#endif
}

SFD_INLINE lanes lanes_from_bits(uint32_t bits)
{
#if SFD_LANES == 8
    const integers place = {1, 2, 4, 8, 16, 32, 64, 128};
#else
    const integers place = {1, 2, 4, 8};
#endif

    return (((integers){0} + (int32_t)bits) & place) != 0;
}

SFD_INLINE integers lanes_count(integers count, lanes where)
{
    return count - where;
}
#endif

SFD_INLINE integers vector_magnitudes(const float *x)
{
    return (integers)vector_load(x) & INT32_MAX;
}

SFD_INLINE uint32_t count_bits(uint32_t bits)
{
#if defined(__POPCNT__) || defined(__ARM_NEON)
    return (uint32_t)__builtin_popcount(bits);
#else /* the compiler's own would be a call */
    bits -= bits >> 1 & 0x55555555u;
    bits = (bits & 0x33333333u) + (bits >> 2 & 0x33333333u);
    return ((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
#endif
}

/* Write those of 32 elements whose bit is set side by side, without a branch for each of them: what
 * follows in `to`, which has room for 32, is overwritten. Returns their number. */
SFD_INLINE uint32_t store_chosen(float *to, uint32_t bits, const float *from)
{
    const uint32_t count = count_bits(bits);

#if SFD_LANES == 16
    const __m512 low = _mm512_maskz_compress_ps((__mmask16)bits, (__m512)vector_load(from));
    const __m512 high =
        _mm512_maskz_compress_ps((__mmask16)(bits >> 16), (__m512)vector_load(from + 16));
    vector_store(to, (vector)low);
    vector_store(to + count_bits(bits & 0xffffu), (vector)high);
#else
    uint32_t j;
    do
        for (j = 0u; j < 4u; ++j) {
            *to++ = from[__builtin_ctz(bits | 1u << 31)];
            bits &= bits - 1u;
        }
    while (bits != 0u);
#endif
    return count;
}

#endif
