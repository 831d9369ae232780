/* Batch, group and layer normalisation of interleaved images.
 *
 * y = weight * (x - mean) / deviation + bias. With t = dy * weight and h = (x - mean) / deviation
 * over the m elements that are normalised together: dx = (t - mean(t) - h * mean(t * h)) /
 * deviation. dx may be dy itself unless it is added to. Group and layer norm have statistics per
 * image: they work on up to LANES images at a time, whose values lie side by side. */
#include "sfd_kernels.h"

#define LANES 8u
#define RUN 128u /* elements in one partial sum: long sums lose digits */

static float lanes_sum(const float *lane)
{
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
           ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

/* Sum of x - shift, or of its square, over one run, in a fixed order of additions. */
static float sum_shifted(const float *x, uint32_t count, float shift, int squared)
{
    float total = 0.0f;
    uint32_t start, i, j;

    for (start = 0u; start < count; start += RUN * LANES) {
        float lane[LANES] = {0.0f};
        uint32_t length = count - start < RUN * LANES ? count - start : RUN * LANES;
        uint32_t whole = length - length % LANES;
        const float *in = x + start;
        for (i = 0u; i < whole; i += LANES)
            for (j = 0u; j < LANES; ++j) {
                float d = in[i + j] - shift;
                lane[j] += squared ? d * d : d;
            }
        for (j = 0u; i + j < length; ++j) {
            float d = in[i + j] - shift;
            lane[j] += squared ? d * d : d;
        }
        total += lanes_sum(lane);
    }
    return total;
}

/* Add the sums of dy and of dy * (x - mean) over one run. */
static void sum_products(const float *x, const float *dy, uint32_t count, float mean, float *sum,
                         float *product)
{
    uint32_t start, i, j;

    for (start = 0u; start < count; start += RUN * LANES) {
        float lane[LANES] = {0.0f}, cross[LANES] = {0.0f};
        uint32_t length = count - start < RUN * LANES ? count - start : RUN * LANES;
        uint32_t whole = length - length % LANES;
        const float *in = x + start, *out = dy + start;
        for (i = 0u; i < whole; i += LANES)
            for (j = 0u; j < LANES; ++j) {
                lane[j] += out[i + j];
                cross[j] += out[i + j] * (in[i + j] - mean);
            }
        for (j = 0u; i + j < length; ++j) {
            lane[j] += out[i + j];
            cross[j] += out[i + j] * (in[i + j] - mean);
        }
        *sum += lanes_sum(lane);
        *product += lanes_sum(cross);
    }
}

/* The sum over a channel in all blocks. */
static float channel_sum(const struct sfd_channels *shape, const float *x, uint32_t n,
                         uint32_t channel, float shift, int squared)
{
    float total = 0.0f;
    uint32_t first;

    for (first = 0u; first < n; first += SFD_BLOCK)
        total += sum_shifted(x + sfd_channel_start(shape, n, first, channel),
                             shape->pixels * sfd_block_images(n, first), shift, squared);
    return total;
}

static void channel_moments(const struct sfd_channels *shape, const float *x, uint32_t n,
                            uint32_t channel, float *mean, float *variance)
{
    float count = (float)(shape->pixels * n);
    /* Shifted by one of the values: the mean of equal values is exact, and that of values far from
     * zero keeps its digits. */
    float shift = x[sfd_channel_start(shape, n, 0u, channel)];

    *mean = shift + channel_sum(shape, x, n, channel, shift, 0) / count;
    *variance = channel_sum(shape, x, n, channel, *mean, 1) / count;
}

static void run_forward(const float *x, uint32_t count, float mean, float scale, float shift,
                        const float *addend, float *y)
{
    uint32_t i;

    if (addend)
        for (i = 0u; i < count; ++i)
            y[i] = ((x[i] - mean) * scale + shift) + addend[i];
    else
        for (i = 0u; i < count; ++i)
            y[i] = (x[i] - mean) * scale + shift;
}

void sfd_batch_norm_forward(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                            const struct sfd_epilogue *after, float *y)
{
    const struct sfd_channels *shape = &norm->shape;
    const float *means = norm->mean ? norm->mean : norm->moments;
    const float *variances = norm->mean ? norm->variance : norm->moments + shape->channels;
    uint32_t channel, first;

    for (channel = 0u; channel < shape->channels; ++channel) {
        float scale, shift = norm->bias ? norm->bias[channel] : 0.0f;
        if (!norm->mean)
            channel_moments(shape, x, n, channel, norm->moments + channel,
                            norm->moments + shape->channels + channel);
        scale = (norm->weight ? norm->weight[channel] : 1.0f) /
                sqrtf(variances[channel] + norm->epsilon);
        for (first = 0u; first < n; first += SFD_BLOCK) {
            size_t start = sfd_channel_start(shape, n, first, channel);
            run_forward(x + start, shape->pixels * sfd_block_images(n, first), means[channel],
                        scale, shift, after->addend ? after->addend + start : NULL, y + start);
        }
    }
    if (after->ceiling > 0.0f)
        sfd_rectifier_forward(y, shape->channels * shape->pixels * n, after->ceiling, after->mask,
                              y);
}

/* The gradient of a batch norm's input over one run. */
struct run_gradient {
    float mean, scale, shift, slope;
};

static void run_backward(const struct run_gradient *run, const float *x, const float *dy,
                         uint32_t count, float *dx, int accumulate)
{
    const float mean = run->mean, scale = run->scale, shift = run->shift, slope = run->slope;
    uint32_t i;

    if (accumulate)
        for (i = 0u; i < count; ++i)
            dx[i] += scale * ((dy[i] - shift) - slope * (x[i] - mean));
    else
        for (i = 0u; i < count; ++i)
            dx[i] = scale * ((dy[i] - shift) - slope * (x[i] - mean));
}

void sfd_batch_norm_backward(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                             const struct sfd_norm_gradient *gradient)
{
    const struct sfd_channels *shape = &norm->shape;
    const struct sfd_channels one = {1u, shape->pixels};
    const uint32_t elements = shape->channels * shape->pixels * n;
    const float *dy = gradient->dy;
    const float count = (float)(shape->pixels * n);
    uint32_t channel, first;

    if (gradient->mask)
        sfd_rectifier_backward(gradient->mask, dy, elements, gradient->dy, 0);
    if (gradient->addend && gradient->addend != dy)
        memcpy(gradient->addend, dy, elements * sizeof *dy);
    for (channel = 0u; channel < shape->channels; ++channel) {
        float sum = 0.0f, product = 0.0f;
        float inverse = 1.0f / sqrtf(norm->moments[shape->channels + channel] + norm->epsilon);
        struct run_gradient run;
        run.mean = norm->moments[channel];
        if (gradient->restore)
            gradient->restore(gradient->context, channel);
        for (first = 0u; first < n; first += SFD_BLOCK) {
            const size_t start = sfd_channel_start(shape, n, first, channel);
            const size_t x_start =
                gradient->restore ? sfd_channel_start(&one, n, first, 0u) : start;
            sum_products(x + x_start, dy + start, shape->pixels * sfd_block_images(n, first),
                         run.mean, &sum, &product);
        }
        if (gradient->d_weight)
            gradient->d_weight[channel] = product * inverse;
        if (gradient->d_bias)
            gradient->d_bias[channel] = sum;
        run.scale = (norm->weight ? norm->weight[channel] : 1.0f) * inverse;
        run.shift = sum / count;
        run.slope = product / count * inverse * inverse;
        for (first = 0u; gradient->dx != NULL && first < n; first += SFD_BLOCK) {
            const size_t start = sfd_channel_start(shape, n, first, channel);
            const size_t x_start =
                gradient->restore ? sfd_channel_start(&one, n, first, 0u) : start;
            run_backward(&run, x + x_start, dy + start, shape->pixels * sfd_block_images(n, first),
                         gradient->dx + start, gradient->accumulate);
        }
    }
}

/* Mean and 1 / deviation of `elements` values of each of `lanes` images. */
static inline void set_moments(const float *x, uint32_t elements, uint32_t n, uint32_t lanes,
                               float epsilon, float *mean, float *inverse)
{
    float sum[LANES] = {0.0f}, square[LANES] = {0.0f};
    uint32_t start, e, j;

    for (start = 0u; start < elements; start += RUN) {
        float part[LANES] = {0.0f};
        uint32_t end = elements - start < RUN ? elements : start + RUN;
        for (e = start; e < end; ++e)
            for (j = 0u; j < lanes; ++j)
                part[j] += x[(size_t)e * n + j] - x[j];
        for (j = 0u; j < lanes; ++j)
            sum[j] += part[j];
    }
    for (j = 0u; j < lanes; ++j)
        mean[j] = x[j] + sum[j] / (float)elements;
    for (start = 0u; start < elements; start += RUN) {
        float part[LANES] = {0.0f};
        uint32_t end = elements - start < RUN ? elements : start + RUN;
        for (e = start; e < end; ++e)
            for (j = 0u; j < lanes; ++j) {
                float d = x[(size_t)e * n + j] - mean[j];
                part[j] += d * d;
            }
        for (j = 0u; j < lanes; ++j)
            square[j] += part[j];
    }
    for (j = 0u; j < lanes; ++j)
        inverse[j] = 1.0f / sqrtf(square[j] / (float)elements + epsilon);
}

static inline void set_forward(const struct sfd_norm *norm, uint32_t set, const float *x,
                               uint32_t n, uint32_t lanes, const float *weight, const float *bias,
                               const float *mean, const float *inverse, float *y)
{
    uint32_t run, e, j;

    for (run = 0u; run < norm->elements / norm->span; ++run) {
        uint32_t affine = set * norm->affine_step + run;
        float gain = weight ? weight[affine] : 1.0f, shift = bias ? bias[affine] : 0.0f;
        for (e = run * norm->span; e < (run + 1u) * norm->span; ++e)
            for (j = 0u; j < lanes; ++j)
                y[(size_t)e * n + j] =
                    (x[(size_t)e * n + j] - mean[j]) * (inverse[j] * gain) + shift;
    }
}

static void block_forward(const struct sfd_norm *norm, const float *x, uint32_t n, float epsilon,
                          const float *weight, const float *bias, float *moments, float *y)
{
    uint32_t set, first;

    for (set = 0u; set < norm->sets; ++set)
        for (first = 0u; first < n; first += LANES) {
            uint32_t lanes = n - first < LANES ? n - first : LANES;
            size_t start = (size_t)set * norm->elements * n + first;
            float *mean = moments + (size_t)set * 2u * n + first, *inverse = mean + n;
            if (lanes == LANES) { /* a constant count lets the compiler use vectors */
                set_moments(x + start, norm->elements, n, LANES, epsilon, mean, inverse);
                set_forward(norm, set, x + start, n, LANES, weight, bias, mean, inverse, y + start);
            } else {
                set_moments(x + start, norm->elements, n, lanes, epsilon, mean, inverse);
                set_forward(norm, set, x + start, n, lanes, weight, bias, mean, inverse, y + start);
            }
        }
}

void sfd_norm_forward(const struct sfd_norm *norm, const float *x, uint32_t n, float epsilon,
                      const float *weight, const float *bias, float *moments, float *y)
{
    const size_t size = (size_t)norm->sets * norm->elements;
    uint32_t first;

    for (first = 0u; first < n; first += SFD_BLOCK)
        block_forward(norm, x + first * size, sfd_block_images(n, first), epsilon, weight, bias,
                      moments + (size_t)first * 2u * norm->sets, y + first * size);
}

/* The gradients of one set for `lanes` images. */
static inline void set_backward(const struct sfd_norm *norm, uint32_t set, const float *x,
                                uint32_t n, uint32_t lanes, const float *weight, const float *mean,
                                const float *inverse, const float *dy, float *dx, int accumulate,
                                float *d_weight, float *d_bias)
{
    float sum[LANES] = {0.0f}, product[LANES] = {0.0f};
    uint32_t run, runs = norm->elements / norm->span, e, j;

    for (run = 0u; run < runs; ++run) {
        uint32_t affine = set * norm->affine_step + run;
        float part[LANES] = {0.0f}, cross[LANES] = {0.0f}, gain = weight ? weight[affine] : 1.0f;
        for (e = run * norm->span; e < (run + 1u) * norm->span; ++e)
            for (j = 0u; j < lanes; ++j) {
                size_t at = (size_t)e * n + j;
                part[j] += dy[at];
                cross[j] += dy[at] * ((x[at] - mean[j]) * inverse[j]);
            }
        for (j = 0u; j < lanes; ++j) {
            sum[j] += gain * part[j];
            product[j] += gain * cross[j];
        }
        if (d_weight)
            d_weight[affine] += lanes_sum(cross);
        if (d_bias)
            d_bias[affine] += lanes_sum(part);
    }
    for (j = 0u; j < lanes; ++j) {
        sum[j] /= (float)norm->elements;
        product[j] /= (float)norm->elements;
    }
    for (run = 0u; dx != NULL && run < runs; ++run) {
        float gain = weight ? weight[set * norm->affine_step + run] : 1.0f;
        for (e = run * norm->span; e < (run + 1u) * norm->span; ++e)
            for (j = 0u; j < lanes; ++j) {
                size_t at = (size_t)e * n + j;
                float h = (x[at] - mean[j]) * inverse[j];
                float d = (gain * dy[at] - sum[j] - h * product[j]) * inverse[j];
                dx[at] = accumulate ? dx[at] + d : d;
            }
    }
}

static void block_backward(const struct sfd_norm *norm, const float *x, uint32_t n,
                           const float *moments, const float *weight, const float *dy, float *dx,
                           int accumulate, float *d_weight, float *d_bias)
{
    uint32_t set, first;

    for (set = 0u; set < norm->sets; ++set)
        for (first = 0u; first < n; first += LANES) {
            uint32_t lanes = n - first < LANES ? n - first : LANES;
            size_t start = (size_t)set * norm->elements * n + first;
            const float *mean = moments + (size_t)set * 2u * n + first, *inverse = mean + n;
            float *out = dx ? dx + start : NULL;
            if (lanes == LANES)
                set_backward(norm, set, x + start, n, LANES, weight, mean, inverse, dy + start, out,
                             accumulate, d_weight, d_bias);
            else
                set_backward(norm, set, x + start, n, lanes, weight, mean, inverse, dy + start, out,
                             accumulate, d_weight, d_bias);
        }
}

void sfd_norm_backward(const struct sfd_norm *norm, const float *x, uint32_t n,
                       const float *moments, const float *weight, const float *dy, float *dx,
                       int accumulate, float *d_weight, float *d_bias)
{
    const size_t size = (size_t)norm->sets * norm->elements;
    uint32_t first, i, coefficients = norm->elements / norm->span;

    if (norm->affine_step != 0u)
        coefficients *= norm->sets;
    for (i = 0u; i < coefficients; ++i) {
        if (d_weight)
            d_weight[i] = 0.0f;
        if (d_bias)
            d_bias[i] = 0.0f;
    }
    for (first = 0u; first < n; first += SFD_BLOCK)
        block_backward(norm, x + first * size, sfd_block_images(n, first),
                       moments + (size_t)first * 2u * norm->sets, weight, dy + first * size,
                       dx ? dx + first * size : NULL, accumulate, d_weight, d_bias);
}
