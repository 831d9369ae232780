/* Elementary functions in single precision from basic operations alone: the same bits on every
 * machine. */
#include <math.h>
#include <string.h>

#include "sfd_math.h"

uint32_t sfd_count_bits(uint32_t bits)
{
    bits -= bits >> 1 & UINT32_C(0x55555555);
    bits = (bits & UINT32_C(0x33333333)) + (bits >> 2 & UINT32_C(0x33333333));
    return ((bits + (bits >> 4)) & UINT32_C(0x0f0f0f0f)) * UINT32_C(0x01010101) >> 24;
}

#define FINITE_RUN 1024u

int sfd_all_finite(const float *x, uint64_t count)
{
    for (; count > 0u;) {
        const uint32_t run = (uint32_t)sfd_minimum(count, FINITE_RUN);
        const float *end = x + run;
        uint32_t beyond = 0u; /* no branch inside a run: the loop takes vectors */
        for (; x < end; ++x)
            beyond |= sfd_beyond_finite(*x);
        if (beyond >> 31)
            return 0;
        count -= run;
    }
    return 1;
}

/* e^x = 2^n e^r with |r| <= ln(2)/2, and e^r by its series. */
float sfd_exp(float x)
{
    float n, r, p;
    int32_t exponent;

    if (x != x)
        return x;
    if (x > 88.72283f)
        return sfd_bits_float(0x7f800000u);
    if (x < -87.33654f)
        return 0.0f;
    n = x * 1.44269504f;
    exponent = (int32_t)(n + (n < 0.0f ? -0.5f : 0.5f));
    n = (float)exponent;
    r = (x - n * 0.693359375f) +
        n * 2.12194440e-4f; /* ln 2 in two parts, so that the difference is exact */
    p = 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    if (exponent > 127) /* 2^128 is not a float, its half is */
        return p * sfd_bits_float(254u << 23) * 2.0f;
    return p * sfd_bits_float((uint32_t)(exponent + 127) << 23);
}

/* ln x = e ln 2 + ln m with m in [sqrt(1/2), sqrt(2)), and ln m = 2 atanh((m - 1) / (m + 1)). */
float sfd_log(float x)
{
    uint32_t bits;
    int32_t exponent = 0;
    float m, s, z, p;

    if (x != x || x < 0.0f)
        return sfd_bits_float(0x7fc00000u);
    if (x == 0.0f)
        return sfd_bits_float(0xff800000u);
    if (sfd_float_bits(x) >= 0x7f800000u)
        return x;
    if (sfd_float_bits(x) < 0x00800000u) { /* subnormal */
        x *= 8388608.0f;
        exponent = -23;
    }
    bits = sfd_float_bits(x);
    exponent += (int32_t)(bits >> 23) - 127;
    m = sfd_bits_float((bits & 0x007fffffu) | 0x3f800000u);
    if (m > 1.41421356f) {
        m *= 0.5f;
        ++exponent;
    }
    s = (m - 1.0f) / (m + 1.0f);
    z = s * s;
    p = 0.18181818f;
    p = p * z + 0.22222222f;
    p = p * z + 0.28571429f;
    p = p * z + 0.4f;
    p = p * z + 0.66666667f;
    return (float)exponent * 0.693359375f +
           ((p * z * s + 2.0f * s) - (float)exponent * 2.12194440e-4f);
}

float sfd_tanh(float x)
{
    float a = fabsf(x), t;

    if (a < 0.25f) { /* the quotient below would cancel */
        float z = x * x;
        t = 2.1869488e-2f;
        t = t * z - 5.3968254e-2f;
        t = t * z + 1.3333333e-1f;
        t = t * z - 3.3333333e-1f;
        return t * z * x + x;
    }
    t = sfd_exp(-2.0f * a);
    t = (1.0f - t) / (1.0f + t);
    return x < 0.0f ? -t : t;
}

/* Maclaurin series below 1; Abramowitz and Stegun 7.1.26 above, where its absolute error of 1.5e-7
 * is a rounding. */
float sfd_erf(float x)
{
    float a = fabsf(x), t, p;

    if (a < 1.0f) {
        float z = x * x;
        p = -1.6365845e-7f;
        p = p * z + 1.6462114e-6f;
        p = p * z - 1.4925650e-5f;
        p = p * z + 1.2055333e-4f;
        p = p * z - 8.5483270e-4f;
        p = p * z + 5.2239776e-3f;
        p = p * z - 2.6866171e-2f;
        p = p * z + 1.1283792e-1f;
        p = p * z - 3.7612639e-1f;
        return p * z * x + 1.1283792f * x;
    }
    t = 1.0f / (1.0f + 0.3275911f * a);
    p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    p = 1.0f - p * t * sfd_exp(-a * a);
    return x < 0.0f ? -p : p;
}

/* base^exponent for base > 0. Quarters of a whole number (1.25 among them) need only products and
 * square roots. */
float sfd_power(float base, float exponent)
{
    float quarters = exponent * 4.0f;
    uint32_t q, i;
    float result = 1.0f, root;

    if (!(quarters >= 0.0f && quarters <= 64.0f) || quarters != (float)(uint32_t)quarters)
        return sfd_exp(exponent * sfd_log(base));
    q = (uint32_t)quarters;
    for (i = 0u; i < q / 4u; ++i)
        result *= base;
    root = q % 4u ? sqrtf(base) : 1.0f;
    if (q % 4u >= 2u)
        result *= root;
    if (q % 2u)
        result *= sqrtf(root);
    return result;
}

/* |x|^(1/4) */
static inline float fourth_root(float x)
{
    return sqrtf(sqrtf(fabsf(x)));
}

/* w = sign(v) |v|^beta */
void sfd_powerprop_forward(const float *v, float *w, uint32_t count, float beta)
{
    uint32_t i = 0u;

    if (count == 0u)
        return;
    if (beta == 1.0f)
        memcpy(w, v, (size_t)count * sizeof *w);
    else if (beta == 1.25f)
        do
            w[i] = v[i] * fourth_root(v[i]);
        while (++i < count);
    else
        for (; i < count; ++i) {
            float a = fabsf(v[i]), power = a > 0.0f ? sfd_power(a, beta) : 0.0f;
            w[i] = v[i] < 0.0f ? -power : power;
        }
}

/* dL/dv = beta |v|^(beta - 1) dL/dw, which is 0 at v = 0: a zero stays a zero. */
void sfd_powerprop_backward(const float *v, float *gradient, uint32_t count, float beta)
{
    uint32_t i = 0u;

    if (count == 0u)
        return;
    if (beta == 1.25f)
        do {
            float slope = 1.25f * fourth_root(v[i]);
            gradient[i] = v[i] == 0.0f ? 0.0f : gradient[i] * slope;
        } while (++i < count);
    else
        for (; i < count; ++i) {
            float slope = beta == 1.0f ? 1.0f : beta * sfd_power(fabsf(v[i]), beta - 1.0f);
            gradient[i] = v[i] == 0.0f ? 0.0f : gradient[i] * slope;
        }
}
