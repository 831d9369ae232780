/* Functions that give the same bits on every machine with IEEE-754 single precision and no
 * contraction, and bits of a word. */
#ifndef SFD_MATH_H
#define SFD_MATH_H

#include <math.h>
#include <string.h>

#include "sfd.h"

#define SFD_INFINITY HUGE_VALF

float sfd_exp(float x);
float sfd_log(float x);
float sfd_tanh(float x);
float sfd_erf(float x);

#define SFD_INVERSE_SQRT_2 0.70710678f
#define SFD_INVERSE_SQRT_2_PI 0.39894228f
#define SFD_SQRT_2_OVER_PI 0.79788456f
#define SFD_GELU_CUBIC 0.044715f /* of the approximation by tanh */

float sfd_power(float base, float exponent);
void sfd_powerprop_forward(const float *v, float *w, uint32_t count, float beta);
void sfd_powerprop_backward(const float *v, float *gradient, uint32_t count, float beta);
int sfd_all_finite(const float *x, uint64_t count);

static inline uint64_t sfd_minimum(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t sfd_maximum(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint32_t sfd_float_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float sfd_bits_float(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The bits as a number: floats order as those do, backwards below zero. */
static inline int32_t sfd_float_order(float x)
{
    int32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Bits of |x|: floats order as their bit patterns once the sign is gone. */
static inline uint32_t sfd_magnitude(float x)
{
    return sfd_float_bits(x) & 0x7fffffffu;
}

/* The highest bit is set unless a number is finite. */
static inline uint32_t sfd_beyond_finite(float x)
{
    return sfd_magnitude(x) + (1u << 23);
}

/* A loop where a board spends its time: in a function of its own it has all registers to itself. */
#ifdef __GNUC__
#define SFD_HOT __attribute__((noinline))
#else
#define SFD_HOT
#endif

/* Bit j of a mask word; a table instead of a shift lets the compiler use vectors everywhere. */
extern const uint32_t sfd_mask_bit[32];

/* Place of the lowest set bit, by a De Bruijn sequence: C99 has no instruction for it. Compilers see
 * through that, but may have left the function out of line before. */
extern const uint8_t sfd_bit_place[32];
static inline uint32_t sfd_lowest_bit(uint32_t bits)
{
#ifdef __ARM_FEATURE_CLZ
    return (uint32_t)__builtin_ctz(bits);
#else
    return sfd_bit_place[((bits & (0u - bits)) * UINT32_C(0x077cb531)) >> 27];
#endif
}

/* How many bits are set. */
uint32_t sfd_count_bits(uint32_t bits);

#endif
