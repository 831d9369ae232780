/* Batch, group and layer normalisation.
 *
 * y = weight * (x - mean) / deviation + bias, and with t = dy * weight, h = (x - mean) / deviation
 * over the m elements that are normalised together: dx = (t - mean(t) - h * mean(t * h)) /
 * deviation. dx may be dy itself unless it is added to. */
#include <math.h>

#include "sfd_internal.h"

#define LANES 8u

/* Sum of x - shift, or of its square, in a fixed order of additions. */
static float sum_shifted(const float *x, uint32_t count, float shift, int squared)
{
    float lane[LANES] = {0.0f};
    uint32_t i, j, whole = count - count % LANES;

    for (i = 0u; i < whole; i += LANES)
        for (j = 0u; j < LANES; ++j) {
            float d = x[i + j] - shift;
            lane[j] += squared ? d * d : d;
        }
    for (j = 0u; i + j < count; ++j) {
        float d = x[i + j] - shift;
        lane[j] += squared ? d * d : d;
    }
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
           ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

/* Sums of dy and of dy * (x - mean) over one contiguous run. */
static void sum_products(const float *x, const float *dy, uint32_t count, float mean, float *sum,
                         float *product)
{
    float lane[LANES] = {0.0f}, cross[LANES] = {0.0f};
    uint32_t i, j, whole = count - count % LANES;

    for (i = 0u; i < whole; i += LANES)
        for (j = 0u; j < LANES; ++j) {
            lane[j] += dy[i + j];
            cross[j] += dy[i + j] * (x[i + j] - mean);
        }
    for (j = 0u; i + j < count; ++j) {
        lane[j] += dy[i + j];
        cross[j] += dy[i + j] * (x[i + j] - mean);
    }
    *sum =
        ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
    *product = ((cross[0] + cross[4]) + (cross[1] + cross[5])) +
               ((cross[2] + cross[6]) + (cross[3] + cross[7]));
}

/* dx = scale * dy - shift - slope * (x - mean), written or added. */
static void norm_apply(const float *x, const float *dy, uint32_t count, float mean, float scale,
                       float shift, float slope, float *dx, int accumulate)
{
    uint32_t i;

    if (accumulate)
        for (i = 0u; i < count; ++i)
            dx[i] += scale * dy[i] - shift - slope * (x[i] - mean);
    else
        for (i = 0u; i < count; ++i)
            dx[i] = scale * dy[i] - shift - slope * (x[i] - mean);
}

void sfd_batch_norm_moments(const struct sfd_view *x, uint32_t n, float *moments)
{
    uint32_t channel, image, plane = x->height * x->width;
    float count = (float)n * (float)plane;

    for (channel = 0u; channel < x->channels; ++channel) {
        const float *data = x->data + (size_t)channel * x->channel_stride;
        float mean = 0.0f, variance = 0.0f;
        for (image = 0u; image < n; ++image)
            mean += sum_shifted(data + (size_t)image * x->image_stride, plane, 0.0f, 0);
        mean /= count;
        for (image = 0u; image < n; ++image)
            variance += sum_shifted(data + (size_t)image * x->image_stride, plane, mean, 1);
        moments[channel] = mean;
        moments[x->channels + channel] = variance / count;
    }
}

void sfd_batch_norm_forward(const struct sfd_view *x, uint32_t n, const float *mean,
                            const float *variance, float epsilon, const float *weight,
                            const float *bias, float *y)
{
    uint32_t channel, image, i, plane = x->height * x->width;

    for (image = 0u; image < n; ++image)
        for (channel = 0u; channel < x->channels; ++channel) {
            size_t start = (size_t)image * x->image_stride + (size_t)channel * x->channel_stride;
            float scale = (weight ? weight[channel] : 1.0f) / sqrtf(variance[channel] + epsilon);
            float shift = bias ? bias[channel] : 0.0f, centre = mean[channel];
            for (i = 0u; i < plane; ++i)
                y[start + i] = (x->data[start + i] - centre) * scale + shift;
        }
}

void sfd_batch_norm_backward(const struct sfd_view *x, uint32_t n, const float *moments,
                             float epsilon, const float *weight, const float *dy, float *dx,
                             int accumulate, float *d_weight, float *d_bias)
{
    uint32_t channel, image, plane = x->height * x->width;
    float count = (float)n * (float)plane;

    for (channel = 0u; channel < x->channels; ++channel) {
        size_t first = (size_t)channel * x->channel_stride;
        float mean = moments[channel], sum = 0.0f, product = 0.0f;
        float inverse = 1.0f / sqrtf(moments[x->channels + channel] + epsilon);
        float scale = (weight ? weight[channel] : 1.0f) * inverse;
        for (image = 0u; image < n; ++image) {
            size_t start = first + (size_t)image * x->image_stride;
            float part, cross;
            sum_products(x->data + start, dy + start, plane, mean, &part, &cross);
            sum += part;
            product += cross;
        }
        if (d_weight)
            d_weight[channel] = product * inverse;
        if (d_bias)
            d_bias[channel] = sum;
        if (!dx)
            continue;
        for (image = 0u; image < n; ++image) {
            size_t start = first + (size_t)image * x->image_stride;
            norm_apply(x->data + start, dy + start, plane, mean, scale, scale * (sum / count),
                       scale * (product / count) * inverse * inverse, dx + start, accumulate);
        }
    }
}

void sfd_group_norm_forward(const float *x, uint32_t n, uint32_t channels, uint32_t plane,
                            uint32_t groups, float epsilon, const float *weight, const float *bias,
                            float *moments, float *y)
{
    uint32_t set, c, i, width = channels / groups, size = width * plane;

    for (set = 0u; set < n * groups; ++set) {
        const float *in = x + (size_t)set * size;
        float *out = y + (size_t)set * size;
        float mean = sum_shifted(in, size, 0.0f, 0) / (float)size;
        float inverse = 1.0f / sqrtf(sum_shifted(in, size, mean, 1) / (float)size + epsilon);
        moments[2u * set] = mean;
        moments[2u * set + 1u] = inverse;
        for (c = 0u; c < width; ++c) {
            uint32_t channel = set % groups * width + c;
            float scale = (weight ? weight[channel] : 1.0f) * inverse;
            float shift = bias ? bias[channel] : 0.0f;
            for (i = c * plane; i < (c + 1u) * plane; ++i)
                out[i] = (in[i] - mean) * scale + shift;
        }
    }
}

void sfd_group_norm_backward(const float *x, uint32_t n, uint32_t channels, uint32_t plane,
                             uint32_t groups, const float *moments, const float *weight,
                             const float *dy, float *dx, int accumulate, float *d_weight,
                             float *d_bias)
{
    uint32_t set, c, width = channels / groups, size = width * plane;

    for (c = 0u; c < channels; ++c) {
        if (d_weight)
            d_weight[c] = 0.0f;
        if (d_bias)
            d_bias[c] = 0.0f;
    }
    for (set = 0u; set < n * groups; ++set) {
        size_t first = (size_t)set * size;
        float mean = moments[2u * set], inverse = moments[2u * set + 1u];
        float sum = 0.0f, product = 0.0f;
        for (c = 0u; c < width; ++c) {
            uint32_t channel = set % groups * width + c;
            size_t start = first + (size_t)c * plane;
            float part, cross;
            sum_products(x + start, dy + start, plane, mean, &part, &cross);
            if (d_weight)
                d_weight[channel] += cross * inverse;
            if (d_bias)
                d_bias[channel] += part;
            sum += part * (weight ? weight[channel] : 1.0f);
            product += cross * (weight ? weight[channel] : 1.0f);
        }
        if (!dx)
            continue;
        for (c = 0u; c < width; ++c) {
            size_t start = first + (size_t)c * plane;
            float gain = weight ? weight[set % groups * width + c] : 1.0f;
            norm_apply(
                x + start, dy + start, plane, mean, gain * inverse, inverse * (sum / (float)size),
                inverse * inverse * inverse * (product / (float)size), dx + start, accumulate);
        }
    }
}

void sfd_layer_norm_forward(const float *x, uint32_t rows, uint32_t size, float epsilon,
                            const float *weight, const float *bias, float *moments, float *y)
{
    uint32_t row, i;

    for (row = 0u; row < rows; ++row) {
        const float *in = x + (size_t)row * size;
        float *out = y + (size_t)row * size;
        float mean = sum_shifted(in, size, 0.0f, 0) / (float)size;
        float inverse = 1.0f / sqrtf(sum_shifted(in, size, mean, 1) / (float)size + epsilon);
        moments[2u * row] = mean;
        moments[2u * row + 1u] = inverse;
        for (i = 0u; i < size; ++i)
            out[i] =
                (in[i] - mean) * inverse * (weight ? weight[i] : 1.0f) + (bias ? bias[i] : 0.0f);
    }
}

void sfd_layer_norm_backward(const float *x, uint32_t rows, uint32_t size, const float *moments,
                             const float *weight, const float *dy, float *dx, int accumulate,
                             float *d_weight, float *d_bias)
{
    uint32_t row, i;

    for (i = 0u; i < size; ++i) {
        if (d_weight)
            d_weight[i] = 0.0f;
        if (d_bias)
            d_bias[i] = 0.0f;
    }
    for (row = 0u; row < rows; ++row) {
        const float *in = x + (size_t)row * size, *out = dy + (size_t)row * size;
        float mean = moments[2u * row], inverse = moments[2u * row + 1u];
        float sum = 0.0f, product = 0.0f;
        for (i = 0u; i < size; ++i) {
            float h = (in[i] - mean) * inverse, t = out[i] * (weight ? weight[i] : 1.0f);
            sum += t;
            product += t * h;
            if (d_weight)
                d_weight[i] += out[i] * h;
            if (d_bias)
                d_bias[i] += out[i];
        }
        if (!dx)
            continue;
        for (i = 0u; i < size; ++i) {
            float h = (in[i] - mean) * inverse, t = out[i] * (weight ? weight[i] : 1.0f);
            float d = (t - sum / (float)size - h * (product / (float)size)) * inverse;
            dx[(size_t)row * size + i] = accumulate ? dx[(size_t)row * size + i] + d : d;
        }
    }
}
