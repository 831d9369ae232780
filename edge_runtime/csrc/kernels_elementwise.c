/* Activations and addition. dx may be dy itself unless it is added to. */
#include "sfd_internal.h"

/* y = min(max(x, 0), ceiling), and a bit where the slope is 1. y may be x. */
void sfd_rectifier_forward(const float *x, uint32_t count, float ceiling, uint32_t *mask, float *y)
{
    uint32_t i, j, bits;

    for (i = 0u; i < count; i += 32u) {
        bits = 0u;
        for (j = 0u; j < 32u && i + j < count; ++j) {
            float value = x[i + j];
            bits |= (uint32_t)(value > 0.0f && value < ceiling) << j;
            y[i + j] = value <= 0.0f      ? 0.0f
                       : value >= ceiling ? ceiling
                                          : value; /* a NaN passes through */
        }
        if (mask)
            mask[i / 32u] = bits;
    }
}

void sfd_rectifier_backward(const uint32_t *mask, const float *dy, uint32_t count, float *dx,
                            int accumulate)
{
    uint32_t i;

    for (i = 0u; i < count; ++i) {
        float d = (mask[i / 32u] >> (i % 32u)) & 1u ? dy[i] : 0.0f;
        dx[i] = accumulate ? dx[i] + d : d;
    }
}

#define INVERSE_SQRT_2 0.70710678f
#define INVERSE_SQRT_2_PI 0.39894228f
#define SQRT_2_OVER_PI 0.79788456f
#define GELU_CUBIC 0.044715f

static float smooth_value(const struct sfd_operation *operation, float x)
{
    if (operation->kind == SFD_OPERATION_SILU)
        return x / (1.0f + sfd_exp(-x));
    if (operation->flags & SFD_FLAG_GELU_TANH)
        return 0.5f * x * (1.0f + sfd_tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)));
    return 0.5f * x * (1.0f + sfd_erf(x * INVERSE_SQRT_2));
}

static float smooth_slope(const struct sfd_operation *operation, float x)
{
    if (operation->kind == SFD_OPERATION_SILU) {
        float s = 1.0f / (1.0f + sfd_exp(-x));
        return s * (1.0f + x * (1.0f - s));
    }
    if (operation->flags & SFD_FLAG_GELU_TANH) {
        float t = sfd_tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x));
        float inner = SQRT_2_OVER_PI * (1.0f + 3.0f * GELU_CUBIC * x * x);
        return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
    }
    return 0.5f * (1.0f + sfd_erf(x * INVERSE_SQRT_2)) +
           x * INVERSE_SQRT_2_PI * sfd_exp(-0.5f * x * x);
}

void sfd_smooth_forward(const struct sfd_operation *operation, const float *x, uint32_t count,
                        float *y)
{
    uint32_t i;

    for (i = 0u; i < count; ++i)
        y[i] = smooth_value(operation, x[i]);
}

void sfd_smooth_backward(const struct sfd_operation *operation, const float *x, const float *dy,
                         uint32_t count, float *dx, int accumulate)
{
    uint32_t i;

    for (i = 0u; i < count; ++i) {
        float d = dy[i] * smooth_slope(operation, x[i]);
        dx[i] = accumulate ? dx[i] + d : d;
    }
}

void sfd_add_forward(const float *a, const float *b, uint32_t count, float *y)
{
    uint32_t i;

    for (i = 0u; i < count; ++i)
        y[i] = a[i] + b[i];
}

void sfd_add_into(const float *x, uint32_t count, float *y)
{
    uint32_t i;

    for (i = 0u; i < count; ++i)
        y[i] += x[i];
}

void sfd_bias_backward(const float *dy, uint32_t n, uint32_t channels, uint32_t plane,
                       float *d_bias)
{
    uint32_t image, channel, i;

    for (channel = 0u; channel < channels; ++channel) {
        float sum = 0.0f;
        for (image = 0u; image < n; ++image) {
            const float *in = dy + ((size_t)image * channels + channel) * plane;
            float part = 0.0f;
            for (i = 0u; i < plane; ++i)
                part += in[i];
            sum += part;
        }
        d_bias[channel] = sum;
    }
}
