/* Activations and addition. dx may be dy itself unless it is added to. */
#include "sfd_kernels.h"

/* Bits of the infinity below zero, as a number: those of what is below zero are not above, those of a
 * NaN, which passes through, are. */
#define BELOW_ALL (-8388608)

/* One to 32 elements, by their bits, whose order is that of integers. */
static inline uint32_t rectify(const float *x, uint32_t count, float *y)
{
    uint32_t positive = 0u, j = 0u;

    do {
        const int32_t value = sfd_float_order(x[j]);
        positive |= value > 0 ? sfd_mask_bit[j] : 0u;
        y[j] = sfd_bits_float(value > BELOW_ALL ? (uint32_t)value : 0u);
    } while (++j < count);
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
        if (SFD_HAS(RELU6) && ceiling < SFD_INFINITY)
            bits &= ~limit(y + i, count - i < 32u ? count - i : 32u, ceiling);
        if (mask)
            mask[i / 32u] = bits;
    }
}

/* Vectors make a choice for each element; a processor without them goes from bit to bit. */
#if defined(__SSE2__) || defined(__ARM_NEON)
#define HAS_VECTORS 1
#else
#define HAS_VECTORS 0
#endif

/* Zeros at the bits of a word that are set. */
static SFD_HOT void zero_at(uint32_t bits, float *dx)
{
    for (; bits != 0u; bits &= bits - 1u)
        dx[sfd_lowest_bit(bits)] = 0.0f;
}

/* The same for a word that is there as a whole. */
static inline void zero_word(uint32_t bits, float *dx)
{
    uint32_t j;

    for (j = 0u; j < 32u; ++j)
        dx[j] = bits & sfd_mask_bit[j] ? 0.0f : dx[j];
}

static void add_at(uint32_t bits, const float *dy, float *dx)
{
    for (; bits != 0u; bits &= bits - 1u) {
        const uint32_t at = sfd_lowest_bit(bits);
        dx[at] += dy[at];
    }
}

/* dx is dy itself, or is added to. */
void sfd_rectifier_backward(const uint32_t *mask, const float *dy, uint32_t count, float *dx,
                            int accumulate)
{
    uint32_t i;

    for (i = 0u; i < count; i += 32u) {
        const uint32_t bits = *mask++, all = count - i < 32u ? ~(~0u << (count - i)) : ~0u;
        if (accumulate)
            add_at(bits & all, dy + i, dx + i);
        else if (HAS_VECTORS && all == ~0u)
            zero_word(~bits, dx + i);
        else
            zero_at(~bits & all, dx + i);
    }
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
