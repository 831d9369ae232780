/* GELU and SiLU in vectors. */
#ifndef SFD_FAST_SMOOTH_H
#define SFD_FAST_SMOOTH_H

#include "fast_math.h"

/* The value at x, and the slope where `slope` is wanted. */
typedef vector smooth_function(vector x, vector *slope);

SFD_INLINE vector silu(vector x, vector *slope)
{
    const vector s = 1.0f / (1.0f + vector_exp(-x));

    if (slope)
        *slope = s * (1.0f + x * (1.0f - s));
    return x * s;
}

SFD_INLINE vector gelu(vector x, vector *slope)
{
    const vector gaussian = vector_exp(-0.5f * x * x);
    const vector half = 0.5f * (1.0f + vector_erf(x * SFD_INVERSE_SQRT_2, gaussian));

    if (slope)
        *slope = half + x * SFD_INVERSE_SQRT_2_PI * gaussian;
    return x * half;
}

SFD_INLINE vector gelu_by_tanh(vector x, vector *slope)
{
    const vector t = vector_tanh(SFD_SQRT_2_OVER_PI * (x + SFD_GELU_CUBIC * x * x * x));

    if (slope)
        *slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * SFD_SQRT_2_OVER_PI *
                                         (1.0f + 3.0f * SFD_GELU_CUBIC * x * x);
    return 0.5f * x * (1.0f + t);
}

SFD_INLINE void smooth_forward(smooth_function *function, const float *x, uint32_t whole, float *y)
{
    uint32_t i;

    for (i = 0u; i < whole; i += SFD_LANES)
        vector_store(y + i, function(vector_load(x + i), NULL));
}

SFD_INLINE void smooth_backward(smooth_function *function, const float *x, const float *dy,
                                uint32_t whole, float *dx, int accumulate)
{
    uint32_t i;

    for (i = 0u; i < whole; i += SFD_LANES) {
        vector slope, d;
        (void)function(vector_load(x + i), &slope);
        d = vector_load(dy + i) * slope;
        vector_store(dx + i, accumulate ? vector_load(dx + i) + d : d);
    }
}

static void fast_smooth_forward(const struct sfd_operation *operation, const float *x,
                                uint32_t count, float *y)
{
    const uint32_t whole = count - count % SFD_LANES;

    if (operation->kind == SFD_OPERATION_SILU)
        smooth_forward(silu, x, whole, y);
    else if (operation->flags & SFD_FLAG_GELU_TANH)
        smooth_forward(gelu_by_tanh, x, whole, y);
    else
        smooth_forward(gelu, x, whole, y);
    sfd_smooth_forward(operation, x + whole, count - whole, y + whole);
}

static void fast_smooth_backward(const struct sfd_operation *operation, const float *x,
                                 const float *dy, uint32_t count, float *dx, int accumulate)
{
    const uint32_t whole = count - count % SFD_LANES;

    if (operation->kind == SFD_OPERATION_SILU)
        smooth_backward(silu, x, dy, whole, dx, accumulate);
    else if (operation->flags & SFD_FLAG_GELU_TANH)
        smooth_backward(gelu_by_tanh, x, dy, whole, dx, accumulate);
    else
        smooth_backward(gelu, x, dy, whole, dx, accumulate);
    sfd_smooth_backward(operation, x + whole, dy + whole, count - whole, dx + whole, accumulate);
}

#endif
