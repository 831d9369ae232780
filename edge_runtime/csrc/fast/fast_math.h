/* Elementary functions in vectors, by the formulas of sfd_math.c. */
#ifndef SFD_FAST_MATH_H
#define SFD_FAST_MATH_H

#include "fast_bits.h"

SFD_INLINE vector vector_magnitude(vector x)
{
    return (vector)((integers)x & 0x7fffffff);
}

SFD_INLINE vector vector_with_sign_of(vector magnitude, vector x)
{
    return (vector)((integers)magnitude | ((integers)x & INT32_MIN));
}

/* 2^exponent, for -126 to 127. */
SFD_INLINE vector vector_power_of_two(integers exponent)
{
    return (vector)((exponent + 127) << 23);
}

/* A NaN passes through. */
SFD_INLINE vector vector_exp(vector x)
{
    const vector highest = vector_all(88.72283f), lowest = vector_all(-87.33654f);
    const lanes finite = lanes_at_most(x, highest), vanishing = lanes_at_most(x, lowest);
    const vector inside = lanes_select(finite, lanes_select(vanishing, lowest, x), highest);
    const vector half = vector_with_sign_of(vector_all(0.5f), inside);
    const integers exponent = __builtin_convertvector(inside * 1.44269504f + half, integers);
    const vector n = __builtin_convertvector(exponent, vector);
    const vector r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;
    vector p = vector_all(1.3888889e-3f);

    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    /* 2^128 is not a float: in two factors. */
    p = p * vector_power_of_two(exponent >> 1) * vector_power_of_two(exponent - (exponent >> 1));
    p = lanes_select(vanishing, (vector){0.0f}, p);
    return lanes_select(finite, p, x + SFD_INFINITY);
}

/* For x > 0 and finite. */
SFD_INLINE vector vector_log(vector x)
{
    const lanes subnormal = lanes_over((integers)vector_all(1.17549435e-38f), (integers)x);
    const integers bits = (integers)lanes_select(subnormal, x * 8388608.0f, x);
    const vector mantissa = (vector)((bits & 0x007fffff) | 0x3f800000);
    const lanes large = lanes_over((integers)mantissa, (integers)vector_all(1.41421356f));
    const vector m = lanes_select(large, mantissa * 0.5f, mantissa);
    const vector e = __builtin_convertvector(lanes_count((bits >> 23) - 127, large), vector) -
                     lanes_select(subnormal, vector_all(23.0f), (vector){0.0f});
    const vector s = (m - 1.0f) / (m + 1.0f), z = s * s;
    vector p = vector_all(0.18181818f);

    p = p * z + 0.22222222f;
    p = p * z + 0.28571429f;
    p = p * z + 0.4f;
    p = p * z + 0.66666667f;
    return e * 0.693359375f + ((p * z * s + 2.0f * s) - e * 2.12194440e-4f);
}

SFD_INLINE vector vector_tanh(vector x)
{
    const vector a = vector_magnitude(x), z = x * x, e = vector_exp(-2.0f * a);
    vector p = vector_all(2.1869488e-2f);

    p = p * z - 5.3968254e-2f;
    p = p * z + 1.3333333e-1f;
    p = p * z - 3.3333333e-1f;
    p = p * z * x + x;
    return lanes_select(lanes_at_most(a, vector_all(0.25f)), p,
                        vector_with_sign_of((1.0f - e) / (1.0f + e), x));
}

/* erf(x), given e^(-x^2). */
SFD_INLINE vector vector_erf(vector x, vector gaussian)
{
    const vector a = vector_magnitude(x), z = x * x, t = 1.0f / (1.0f + 0.3275911f * a);
    vector series = vector_all(-1.6365845e-7f), p = vector_all(1.061405429f);

    series = series * z + 1.6462114e-6f;
    series = series * z - 1.4925650e-5f;
    series = series * z + 1.2055333e-4f;
    series = series * z - 8.5483270e-4f;
    series = series * z + 5.2239776e-3f;
    series = series * z - 2.6866171e-2f;
    series = series * z + 1.1283792e-1f;
    series = series * z - 3.7612639e-1f;
    series = series * z * x + 1.1283792f * x;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    p = vector_with_sign_of(1.0f - p * t * gaussian, x);
    return lanes_select(lanes_at_most(a, vector_all(1.0f)), series, p);
}

#endif
