/* Activations and addition. dx may be dy itself unless it is added to. */
#include "sfd_kernels.h"

/* Up to 32 elements, by their bits, whose order is that of integers. A value below zero still has its
 * sign after the addition, a NaN, which passes through, has lost it: it lies beyond infinity. */
static inline uint32_t rectify(const float *x, uint32_t count, float *y)
{
    uint32_t positive = 0u, j;

    for (j = 0u; j < count; ++j) {
        uint32_t value = sfd_float_bits(x[j]);
        value &= ~sfd_sign_mask(value & (value + 0x007fffffu));
        positive |= sfd_mask_bit[j] & sfd_sign_mask(0u - value);
        y[j] = sfd_bits_float(value);
    }
    return positive;
}

/* Limit what rectify has written. Returns a bit for what is limited. */
static uint32_t limit(float *y, uint32_t count, float ceiling)
{
    uint32_t limited = 0u, j;

    for (j = 0u; j < count; ++j)
        if (y[j] >= ceiling) {
            limited |= sfd_mask_bit[j];
            y[j] = ceiling;
        }
    return limited;
}

/* y = min(max(x, 0), ceiling), and a bit where the slope is 1. y may be x. */
void sfd_rectifier_forward(const float *x, uint32_t count, float ceiling, uint32_t *mask, float *y)
{
    uint32_t i, bits;

    for (i = 0u; i < count; i += 32u) {
        if (count - i >= 32u)
            bits = rectify(x + i, 32u, y + i);
        else
            bits = rectify(x + i, count - i, y + i);
        if (ceiling < SFD_INFINITY)
            bits &= ~limit(y + i, count - i < 32u ? count - i : 32u, ceiling);
        if (mask)
            mask[i / 32u] = bits;
    }
}

static inline void mask_word(uint32_t bits, uint32_t count, float *dx)
{
    uint32_t j;

    for (j = 0u; j < count; ++j)
        dx[j] = bits & sfd_mask_bit[j] ? dx[j] : 0.0f;
}

static inline void add_masked(uint32_t bits, const float *restrict dy, uint32_t count,
                              float *restrict dx)
{
    uint32_t j;

    for (j = 0u; j < count; ++j)
        dx[j] += bits & sfd_mask_bit[j] ? dy[j] : 0.0f;
}

/* dx is dy itself, or is added to. */
void sfd_rectifier_backward(const uint32_t *mask, const float *dy, uint32_t count, float *dx,
                            int accumulate)
{
    uint32_t i;

    for (i = 0u; i + 32u <= count; i += 32u)
        if (accumulate)
            add_masked(mask[i / 32u], dy + i, 32u, dx + i);
        else
            mask_word(mask[i / 32u], 32u, dx + i);
    if (i < count && accumulate)
        add_masked(mask[i / 32u], dy + i, count - i, dx + i);
    else if (i < count)
        mask_word(mask[i / 32u], count - i, dx + i);
}

static float smooth_value(const struct sfd_operation *operation, float x)
{
    if (operation->kind == SFD_OPERATION_SILU)
        return x / (1.0f + sfd_exp(-x));
    if (operation->flags & SFD_FLAG_GELU_TANH)
        return 0.5f * x * (1.0f + sfd_tanh(SFD_SQRT_2_OVER_PI * (x + SFD_GELU_CUBIC * x * x * x)));
    return 0.5f * x * (1.0f + sfd_erf(x * SFD_INVERSE_SQRT_2));
}

static float smooth_slope(const struct sfd_operation *operation, float x)
{
    if (operation->kind == SFD_OPERATION_SILU) {
        float s = 1.0f / (1.0f + sfd_exp(-x));
        return s * (1.0f + x * (1.0f - s));
    }
    if (operation->flags & SFD_FLAG_GELU_TANH) {
        float t = sfd_tanh(SFD_SQRT_2_OVER_PI * (x + SFD_GELU_CUBIC * x * x * x));
        float inner = SFD_SQRT_2_OVER_PI * (1.0f + 3.0f * SFD_GELU_CUBIC * x * x);
        return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
    }
    return 0.5f * (1.0f + sfd_erf(x * SFD_INVERSE_SQRT_2)) +
           x * SFD_INVERSE_SQRT_2_PI * sfd_exp(-0.5f * x * x);
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

/* The gradient of a channel's bias is the sum over its pixels and images. */
void sfd_bias_backward(const struct sfd_channels *shape, const float *dy, uint32_t n, float *d_bias)
{
    uint32_t channel, first, i, j;

    for (channel = 0u; channel < shape->channels; ++channel) {
        float lane[8] = {0.0f};
        for (first = 0u; first < n; first += SFD_BLOCK) {
            uint32_t run = shape->pixels * sfd_block_images(n, first);
            const float *in = dy + sfd_channel_start(shape, n, first, channel);
            for (i = 0u; i < run - run % 8u; i += 8u)
                for (j = 0u; j < 8u; ++j)
                    lane[j] += in[i + j];
            for (j = 0u; i + j < run; ++j)
                lane[j] += in[i + j];
        }
        d_bias[channel] = ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
                          ((lane[2] + lane[6]) + (lane[3] + lane[7]));
    }
}

/* A build without an operation has no kernel for it. */
#define ONLY_WITH(is_there, kernel) ((is_there) ? (kernel) : NULL)

const struct sfd_tensor_kernels sfd_tensors_portable = {
    ONLY_WITH(SFD_HAS(BATCH_NORM), sfd_batch_norm_forward),
    ONLY_WITH(SFD_HAS(BATCH_NORM), sfd_batch_norm_backward),
    ONLY_WITH(SFD_HAS_NORM, sfd_norm_forward),
    ONLY_WITH(SFD_HAS_NORM, sfd_norm_backward),
    ONLY_WITH(SFD_HAS_RECTIFIER, sfd_rectifier_forward),
    ONLY_WITH(SFD_HAS_RECTIFIER, sfd_rectifier_backward),
    ONLY_WITH(SFD_HAS_SMOOTH, sfd_smooth_forward),
    ONLY_WITH(SFD_HAS_SMOOTH, sfd_smooth_backward),
    ONLY_WITH(SFD_HAS(ADD), sfd_add_forward),
    sfd_add_into,
    sfd_bias_backward,
    sfd_pack,
    sfd_powerprop_forward,
    sfd_powerprop_backward,
};
