/* Rectifiers, additions, bias gradients and powerprop in vectors. dx may be dy itself unless it is
 * added to. */
#ifndef SFD_FAST_ELEMENTWISE_H
#define SFD_FAST_ELEMENTWISE_H

#include "fast_math.h"
#include "fast_sums.h"

/* min(max(x, 0), ceiling), and the bits of the lanes where the slope is 1. A NaN passes through. */
SFD_INLINE vector vector_rectify(vector x, vector ceiling, uint32_t *bits)
{
    const vector zero = {0.0f};
    const lanes low = lanes_at_most(x, zero), high = lanes_at_most(ceiling, x);

    *bits = lanes_to_bits((lanes) ~(low | high));
    return lanes_select(low, zero, lanes_select(high, ceiling, x));
}

/* The lanes whose bit is set, zeros in the others. */
SFD_INLINE vector vector_masked(uint32_t bits, vector x)
{
    return lanes_select(lanes_from_bits(bits), x, (vector){0.0f});
}

static void fast_rectifier_forward(const float *x, uint32_t count, float ceiling, uint32_t *mask,
                                   float *y)
{
    const vector limit = vector_all(ceiling);
    uint32_t whole = count - count % WORD, i, j;

    for (i = 0u; i < whole; i += WORD) {
        uint32_t word = 0u;
        for (j = 0u; j < WORD; j += SFD_LANES) {
            uint32_t bits;
            vector_store(y + i + j, vector_rectify(vector_load(x + i + j), limit, &bits));
            word |= bits << j;
        }
        if (mask)
            mask[i / WORD] = word;
    }
    if (whole < count)
        sfd_rectifier_forward(x + whole, count - whole, ceiling, mask ? mask + whole / WORD : NULL,
                              y + whole);
}

static void fast_rectifier_backward(const uint32_t *mask, const float *dy, uint32_t count,
                                    float *dx, int accumulate)
{
    uint32_t whole = count - count % WORD, i, j;

    for (i = 0u; i < whole; i += WORD)
        for (j = 0u; j < WORD; j += SFD_LANES) {
            vector d = vector_masked(mask[i / WORD] >> j, vector_load(dy + i + j));
            vector_store(dx + i + j, accumulate ? vector_load(dx + i + j) + d : d);
        }
    if (whole < count)
        sfd_rectifier_backward(mask + whole / WORD, dy + whole, count - whole, dx + whole,
                               accumulate);
}

static void fast_add_forward(const float *a, const float *b, uint32_t count, float *y)
{
    uint32_t i;

    for (i = 0u; i + SFD_LANES <= count; i += SFD_LANES)
        vector_store(y + i, vector_load(a + i) + vector_load(b + i));
    for (; i < count; ++i)
        y[i] = a[i] + b[i];
}

static void fast_add_into(const float *x, uint32_t count, float *y)
{
    fast_add_forward(x, y, count, y);
}

static void fast_bias_backward(const struct sfd_channels *shape, const float *dy, uint32_t n,
                               float *d_bias)
{
    uint32_t channel, first;

    for (channel = 0u; channel < shape->channels; ++channel) {
        float total = 0.0f;
        for (first = 0u; first < n; first += SFD_BLOCK)
            total += run_sum(dy + sfd_channel_start(shape, n, first, channel),
                             shape->pixels * sfd_block_images(n, first), 0.0f, 0);
        d_bias[channel] = total;
    }
}

/* w = sign(v) |v|^beta, for any beta. */
SFD_INLINE vector vector_powerprop(vector v, float beta)
{
    const vector a = vector_magnitude(v), zero = {0.0f};
    const vector power = vector_exp(beta * vector_log(a));

    return vector_with_sign_of(lanes_select(lanes_at_most(a, zero), zero, power), v);
}

static void powerprop_forward_any(const float *v, float *w, uint32_t count, float beta)
{
    uint32_t i;

    for (i = 0u; i + SFD_LANES <= count; i += SFD_LANES)
        vector_store(w + i, vector_powerprop(vector_load(v + i), beta));
    sfd_powerprop_forward(v + i, w + i, count - i, beta);
}

static void powerprop_backward_any(const float *v, float *gradient, uint32_t count, float beta)
{
    const vector zero = {0.0f};
    uint32_t i;

    for (i = 0u; i + SFD_LANES <= count; i += SFD_LANES) {
        const vector a = vector_magnitude(vector_load(v + i));
        const vector slope = beta * vector_exp((beta - 1.0f) * vector_log(a));
        vector_store(gradient + i,
                     lanes_select(lanes_at_most(a, zero), zero, vector_load(gradient + i) * slope));
    }
    sfd_powerprop_backward(v + i, gradient + i, count - i, beta);
}

/* The compiler makes vectors of these loops by itself. */
static void fast_powerprop_forward(const float *v, float *w, uint32_t count, float beta)
{
    uint32_t i;

    if (beta == 1.25f)
        for (i = 0u; i < count; ++i)
            w[i] = v[i] * sqrtf(sqrtf(fabsf(v[i])));
    else if (beta == 1.5f)
        for (i = 0u; i < count; ++i)
            w[i] = v[i] * sqrtf(fabsf(v[i]));
    else if (beta == 2.0f)
        for (i = 0u; i < count; ++i)
            w[i] = v[i] * fabsf(v[i]);
    else if (beta == 1.0f)
        sfd_powerprop_forward(v, w, count, beta);
    else
        powerprop_forward_any(v, w, count, beta);
}

#define SLOPES 64u

/* beta |v|^(beta - 1), for those beta that take square roots alone. Without a branch: the compiler
 * makes vectors of these as well. */
static void powerprop_slopes(const float *v, float *slope, uint32_t count, float beta)
{
    uint32_t i;

    if (beta == 1.25f)
        for (i = 0u; i < count; ++i)
            slope[i] = 1.25f * sqrtf(sqrtf(fabsf(v[i])));
    else if (beta == 1.5f)
        for (i = 0u; i < count; ++i)
            slope[i] = 1.5f * sqrtf(fabsf(v[i]));
    else
        for (i = 0u; i < count; ++i)
            slope[i] = 2.0f * fabsf(v[i]);
}

/* gradient *= slope; where the slope is zero so is the product, whatever the gradient is. */
static void slopes_apply(const float *slope, uint32_t count, float *gradient)
{
    const vector zero = {0.0f};
    uint32_t i;

    for (i = 0u; i + SFD_LANES <= count; i += SFD_LANES) {
        const vector by = vector_load(slope + i);
        vector_store(gradient + i,
                     lanes_select(lanes_at_most(by, zero), zero, by * vector_load(gradient + i)));
    }
    for (; i < count; ++i)
        gradient[i] = slope[i] > 0.0f ? gradient[i] * slope[i] : 0.0f;
}

/* dL/dv = beta |v|^(beta - 1) dL/dw; a zero of v stays a zero whatever its gradient is. */
static void fast_powerprop_backward(const float *v, float *gradient, uint32_t count, float beta)
{
    float slope[SLOPES];
    uint32_t start;

    if (beta == 1.0f)
        sfd_powerprop_backward(v, gradient, count, beta);
    else if (beta != 1.25f && beta != 1.5f && beta != 2.0f)
        powerprop_backward_any(v, gradient, count, beta);
    else
        for (start = 0u; start < count; start += SLOPES) {
            const uint32_t run = count - start < SLOPES ? count - start : SLOPES;
            powerprop_slopes(v + start, slope, run, beta);
            slopes_apply(slope, run, gradient + start);
        }
}

#endif
