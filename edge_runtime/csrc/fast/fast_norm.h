/* Batch norm in vectors, with the addition and the rectifier that follow it in the same pass.
 *
 * A channel is taken through all of its passes while it is in the cache. */
#ifndef SFD_FAST_NORM_H
#define SFD_FAST_NORM_H

#include "fast_elementwise.h"

/* What is done to the values of one channel: (x - mean) * scale + shift, then the addend, then the
 * rectifier. */
struct norm_affine {
    float mean, scale, shift;
};

/* Runs of whole mask words let the rectifier join the pass over a channel. */
static int runs_are_words(const struct sfd_channels *shape, uint32_t n)
{
    return shape->pixels * sfd_block_images(n, 0u) % WORD == 0u && shape->pixels * n % WORD == 0u;
}

SFD_INLINE void run_forward(const struct norm_affine *affine, const float *x, uint32_t count,
                            const float *addend, float *y)
{
    const vector mean = vector_all(affine->mean), scale = vector_all(affine->scale);
    const vector shift = vector_all(affine->shift);
    uint32_t i;

    for (i = 0u; i + SFD_LANES <= count; i += SFD_LANES) {
        vector value = (vector_load(x + i) - mean) * scale + shift;
        vector_store(y + i, addend ? value + vector_load(addend + i) : value);
    }
    for (; i < count; ++i) {
        float value = (x[i] - affine->mean) * affine->scale + affine->shift;
        y[i] = addend ? value + addend[i] : value;
    }
}

/* The same and the rectifier, over whole words. */
SFD_INLINE void run_forward_rectified(const struct norm_affine *affine, const float *x,
                                      uint32_t count, const float *addend, float ceiling,
                                      uint32_t *mask, float *y)
{
    const vector mean = vector_all(affine->mean), scale = vector_all(affine->scale);
    const vector shift = vector_all(affine->shift), limit = vector_all(ceiling);
    uint32_t i, j, bits;

    for (i = 0u; i < count; i += WORD) {
        uint32_t word = 0u;
        for (j = i; j < i + WORD; j += SFD_LANES) {
            vector value = (vector_load(x + j) - mean) * scale + shift;
            if (addend)
                value += vector_load(addend + j);
            vector_store(y + j, vector_rectify(value, limit, &bits));
            word |= bits << (j - i);
        }
        if (mask)
            mask[i / WORD] = word;
    }
}

static void channel_forward(const struct norm_affine *affine, const float *x, uint32_t count,
                            const struct sfd_epilogue *after, size_t start, int rectify, float *y)
{
    const float *addend = after->addend ? after->addend + start : NULL;
    uint32_t *mask = after->mask ? after->mask + start / WORD : NULL;

    if (rectify && addend)
        run_forward_rectified(affine, x + start, count, addend, after->ceiling, mask, y + start);
    else if (rectify)
        run_forward_rectified(affine, x + start, count, NULL, after->ceiling, mask, y + start);
    else if (addend)
        run_forward(affine, x + start, count, addend, y + start);
    else
        run_forward(affine, x + start, count, NULL, y + start);
}

/* The sum over a channel in all blocks. */
static float channel_sum(const struct sfd_channels *shape, const float *x, uint32_t n,
                         uint32_t channel, float shift, int squared)
{
    float total = 0.0f;
    uint32_t first;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        const float *in = x + sfd_channel_start(shape, n, first, channel);
        uint32_t count = shape->pixels * sfd_block_images(n, first);
        total += squared ? run_sum(in, count, shift, 1) : run_sum(in, count, shift, 0);
    }
    return total;
}

/* Mean and variance of a channel of the batch. Shifted by one of the values: the mean of equal
 * values is exact, and that of values far from zero keeps its digits. */
static void channel_moments(const struct sfd_channels *shape, const float *x, uint32_t n,
                            uint32_t channel, float *mean, float *variance)
{
    float count = (float)(shape->pixels * n);
    float shift = x[sfd_channel_start(shape, n, 0u, channel)];

    *mean = shift + channel_sum(shape, x, n, channel, shift, 0) / count;
    *variance = channel_sum(shape, x, n, channel, *mean, 1) / count;
}

/* A forward or backward, as its threads share it. */
struct norm_work {
    const struct sfd_batch_norm *norm;
    const float *x;
    uint32_t n;
    const struct sfd_epilogue *after;
    int join; /* the rectifier is part of the pass */
    float *y;
    const struct sfd_norm_gradient *gradient;
};

static void norm_forward_channel(void *context, uint32_t channel, uint32_t index)
{
    const struct norm_work *work = context;
    const struct sfd_batch_norm *norm = work->norm;
    const struct sfd_channels *shape = &norm->shape;
    const uint32_t n = work->n;
    const float *x = work->x;
    float *mean = norm->moments + channel, *variance = mean + shape->channels;
    struct norm_affine affine;
    uint32_t first;

    (void)index;
    if (norm->mean == NULL)
        channel_moments(shape, x, n, channel, mean, variance);
    affine.mean = norm->mean ? norm->mean[channel] : *mean;
    affine.scale = (norm->weight ? norm->weight[channel] : 1.0f) /
                   sqrtf((norm->mean ? norm->variance[channel] : *variance) + norm->epsilon);
    affine.shift = norm->bias ? norm->bias[channel] : 0.0f;
    for (first = 0u; first < n; first += SFD_BLOCK)
        channel_forward(&affine, x, shape->pixels * sfd_block_images(n, first), work->after,
                        sfd_channel_start(shape, n, first, channel), work->join, work->y);
}

static void fast_batch_norm_forward(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                                    const struct sfd_epilogue *after, float *y)
{
    const struct sfd_channels *shape = &norm->shape;
    const int rectify = after->ceiling > 0.0f, join = rectify && runs_are_words(shape, n);
    struct norm_work work = {norm, x, n, after, join, y, NULL};

    sfd_team_parts(norm->team, norm_forward_channel, &work, shape->channels);
    if (rectify && !join)
        fast_rectifier_forward(y, shape->channels * shape->pixels * n, after->ceiling, after->mask,
                               y);
}

/* dy where the rectifier after the norm passed it on. */
SFD_INLINE vector masked_load(const float *dy, const uint32_t *mask, uint32_t at)
{
    const vector d = vector_load(dy + at);

    return mask ? vector_masked(mask[at / WORD] >> at % WORD, d) : d;
}

/* Add the sums of dy and of dy * (x - mean) over one run. dy counts where the mask has a bit;
 * `masked` takes it so. */
SFD_INLINE void run_products(const float *x, const float *dy, const uint32_t *mask, uint32_t count,
                             float mean, float *masked, float *sum, float *product)
{
    const vector centre = vector_all(mean);
    uint32_t start, i, j;

    for (start = 0u; start < count; start += PIECE) {
        const uint32_t end = count - start < PIECE ? count : start + PIECE;
        vector part[ACCUMULATORS] = {{0.0f}}, cross[ACCUMULATORS] = {{0.0f}};
        for (i = start; i + STRIDE <= end; i += STRIDE)
            for (j = 0u; j < ACCUMULATORS; ++j) {
                const uint32_t at = i + j * SFD_LANES;
                const vector d = masked_load(dy, mask, at);
                if (masked)
                    vector_store(masked + at, d);
                part[j] += d;
                cross[j] += d * (vector_load(x + at) - centre);
            }
        for (; i + SFD_LANES <= end; i += SFD_LANES) {
            const vector d = masked_load(dy, mask, i);
            if (masked)
                vector_store(masked + i, d);
            part[0] += d;
            cross[0] += d * (vector_load(x + i) - centre);
        }
        *sum += accumulators_sum(part);
        *product += accumulators_sum(cross);
        for (; i < end; ++i) { /* without a mask, which has whole words */
            if (masked)
                masked[i] = dy[i];
            *sum += dy[i];
            *product += dy[i] * (x[i] - mean);
        }
    }
}

/* The sums over a channel in all blocks. */
static void channel_products(const struct sfd_channels *shape, const float *x, uint32_t n,
                             uint32_t channel, float mean, const struct sfd_norm_gradient *of,
                             float *sum, float *product)
{
    uint32_t first;

    *sum = *product = 0.0f;
    for (first = 0u; first < n; first += SFD_BLOCK) {
        const size_t start = sfd_channel_start(shape, n, first, channel);
        const uint32_t count = shape->pixels * sfd_block_images(n, first);
        const uint32_t *mask = of->mask ? of->mask + start / WORD : NULL;
        const float *in = x + start, *dy = of->dy + start;
        float *masked = of->addend ? of->addend + start : NULL;
        if (mask && masked)
            run_products(in, dy, mask, count, mean, masked, sum, product);
        else if (mask)
            run_products(in, dy, mask, count, mean, NULL, sum, product);
        else if (masked)
            run_products(in, dy, NULL, count, mean, masked, sum, product);
        else
            run_products(in, dy, NULL, count, mean, NULL, sum, product);
    }
}

/* The gradient of a norm's input: scale * ((dy - shift) - slope * (x - mean)). */
struct norm_slope {
    float mean, scale, shift, slope;
};

SFD_INLINE void run_backward(const struct norm_slope *of, const float *x, const float *dy,
                             const uint32_t *mask, uint32_t count, float *dx, int accumulate)
{
    const vector mean = vector_all(of->mean), scale = vector_all(of->scale);
    const vector shift = vector_all(of->shift), slope = vector_all(of->slope);
    uint32_t i;

    for (i = 0u; i + SFD_LANES <= count; i += SFD_LANES) {
        const vector centred = vector_load(x + i) - mean;
        const vector d = scale * ((masked_load(dy, mask, i) - shift) - slope * centred);
        vector_store(dx + i, accumulate ? vector_load(dx + i) + d : d);
    }
    for (; i < count; ++i) {
        const float d = of->scale * ((dy[i] - of->shift) - of->slope * (x[i] - of->mean));
        dx[i] = accumulate ? dx[i] + d : d;
    }
}

static void channel_backward(const struct sfd_channels *shape, const float *x, uint32_t n,
                             uint32_t channel, const struct norm_slope *slope,
                             const struct sfd_norm_gradient *of)
{
    uint32_t first;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        const size_t start = sfd_channel_start(shape, n, first, channel);
        const uint32_t count = shape->pixels * sfd_block_images(n, first);
        const float *in = x + start, *dy = (of->addend ? of->addend : of->dy) + start;
        const uint32_t *mask = of->mask && !of->addend ? of->mask + start / WORD : NULL;
        float *dx = of->dx + start;
        if (of->accumulate)
            run_backward(slope, in, dy, mask, count, dx, 1);
        else if (mask)
            run_backward(slope, in, dy, mask, count, dx, 0);
        else
            run_backward(slope, in, dy, NULL, count, dx, 0);
    }
}

/* Where channels straddle the words of the mask, the rectifier has a pass of its own. */
static void rectify_apart(struct sfd_norm_gradient *of, uint32_t count)
{
    if (of->addend && of->addend != of->dy)
        memcpy(of->addend, of->dy, (size_t)count * sizeof *of->dy);
    if (of->addend)
        of->dy = of->addend;
    fast_rectifier_backward(of->mask, of->dy, count, of->dy, 0);
    of->mask = NULL;
    of->addend = NULL;
}

static void norm_backward_channel(void *context, uint32_t channel, uint32_t index)
{
    const struct norm_work *work = context;
    const struct sfd_batch_norm *norm = work->norm;
    const struct sfd_channels *shape = &norm->shape;
    const struct sfd_norm_gradient *of = work->gradient;
    const float count = (float)(shape->pixels * work->n);
    const float variance = norm->moments[shape->channels + channel];
    const float inverse = 1.0f / sqrtf(variance + norm->epsilon);
    struct norm_slope slope;
    float sum, product;

    (void)index;
    slope.mean = norm->moments[channel];
    channel_products(shape, work->x, work->n, channel, slope.mean, of, &sum, &product);
    if (of->d_weight)
        of->d_weight[channel] = product * inverse;
    if (of->d_bias)
        of->d_bias[channel] = sum;
    slope.scale = (norm->weight ? norm->weight[channel] : 1.0f) * inverse;
    slope.shift = sum / count;
    slope.slope = product / count * inverse * inverse;
    if (of->dx)
        channel_backward(shape, work->x, work->n, channel, &slope, of);
}

static void fast_batch_norm_backward(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                                     const struct sfd_norm_gradient *gradient)
{
    const struct sfd_channels *shape = &norm->shape;
    struct sfd_norm_gradient of = *gradient;
    struct norm_work work = {norm, x, n, NULL, 0, NULL, &of};

    if (of.mask && !runs_are_words(shape, n))
        rectify_apart(&of, shape->channels * shape->pixels * n);
    sfd_team_parts(norm->team, norm_backward_channel, &work, shape->channels);
}

#endif
