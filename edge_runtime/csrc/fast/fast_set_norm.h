/* Group and layer norm in vectors.
 *
 * The statistics are those of an image, and images are interleaved: work goes on in units of 16
 * floats, which are the images of a whole block, or several elements of 1, 2, 4 or 8 images. */
#ifndef SFD_FAST_SET_NORM_H
#define SFD_FAST_SET_NORM_H

#include "fast_sums.h"

#define UNIT SFD_BLOCK
#define UNIT_VECTORS (UNIT / SFD_LANES)
#define UNITS_PIECE 128u /* units summed before they join the total */

/* 16 floats in registers. */
struct unit {
    vector part[UNIT_VECTORS];
};

static int block_has_units(const struct sfd_norm *norm, uint32_t images)
{
    return UNIT % images == 0u && norm->span * images % UNIT == 0u;
}

/* Whether in each block 16 floats hold whole elements that share an affine coefficient. */
static int has_units(const struct sfd_norm *norm, uint32_t n)
{
    return (n < SFD_BLOCK || block_has_units(norm, SFD_BLOCK)) &&
           (n % SFD_BLOCK == 0u || block_has_units(norm, n % SFD_BLOCK));
}

/* Each lane becomes the sum over the lanes of its image. */
static void fold(float *lane, uint32_t images)
{
    uint32_t half, j;

    for (half = UNIT / 2u; half >= images; half /= 2u)
        for (j = 0u; j < half; ++j)
            lane[j] += lane[j + half];
    for (j = images; j < UNIT; ++j)
        lane[j] = lane[j - images];
}

SFD_INLINE void unit_load(struct unit *unit, const float *from)
{
    uint32_t j;

    for (j = 0u; j < UNIT_VECTORS; ++j)
        unit->part[j] = vector_load(from + j * SFD_LANES);
}

/* Sum of x - centre, or of its square, over the elements of each image, in each of its lanes. */
SFD_INLINE void unit_sum(const float *x, uint32_t floats, uint32_t images, const float *centre,
                         int squared, float *sum)
{
    struct unit middle, total = {{{0.0f}}};
    uint32_t start, i, j;

    unit_load(&middle, centre);
    for (start = 0u; start < floats; start += UNITS_PIECE * UNIT) {
        const uint32_t end =
            floats - start < UNITS_PIECE * UNIT ? floats : start + UNITS_PIECE * UNIT;
        struct unit piece = {{{0.0f}}};
        for (i = start; i < end; i += UNIT)
            for (j = 0u; j < UNIT_VECTORS; ++j) {
                const vector d = vector_load(x + i + j * SFD_LANES) - middle.part[j];
                piece.part[j] += squared ? d * d : d;
            }
        for (j = 0u; j < UNIT_VECTORS; ++j)
            total.part[j] += piece.part[j];
    }
    for (j = 0u; j < UNIT_VECTORS; ++j)
        vector_store(sum + j * SFD_LANES, total.part[j]);
    fold(sum, images);
}

/* Mean and 1 / deviation of one set, of each image in each of its lanes. */
static void unit_moments(const float *x, uint32_t elements, uint32_t images, float epsilon,
                         float *mean, float *inverse)
{
    float first[UNIT], sum[UNIT];
    uint32_t j;

    for (j = 0u; j < UNIT; ++j)
        first[j] = x[j % images];
    unit_sum(x, elements * images, images, first, 0, sum);
    for (j = 0u; j < UNIT; ++j)
        mean[j] = first[j] + sum[j] / (float)elements;
    unit_sum(x, elements * images, images, mean, 1, sum);
    for (j = 0u; j < UNIT; ++j)
        inverse[j] = 1.0f / sqrtf(sum[j] / (float)elements + epsilon);
}

static void unit_forward(const float *x, uint32_t floats, const float *mean, const float *inverse,
                         float gain, float shift, float *y)
{
    struct unit centre, scale;
    uint32_t i, j;

    unit_load(&centre, mean);
    unit_load(&scale, inverse);
    for (j = 0u; j < UNIT_VECTORS; ++j)
        scale.part[j] *= vector_all(gain);
    for (i = 0u; i < floats; i += UNIT)
        for (j = 0u; j < UNIT_VECTORS; ++j) {
            const vector d = vector_load(x + i + j * SFD_LANES) - centre.part[j];
            vector_store(y + i + j * SFD_LANES, d * scale.part[j] + vector_all(shift));
        }
}

static void set_block_forward(const struct sfd_norm *norm, const float *x, uint32_t images,
                              float epsilon, const float *weight, const float *bias, float *moments,
                              float *y)
{
    const uint32_t floats = norm->span * images;
    float mean[UNIT], inverse[UNIT];
    uint32_t set, run;

    for (set = 0u; set < norm->sets; ++set) {
        unit_moments(x, norm->elements, images, epsilon, mean, inverse);
        memcpy(moments, mean, images * sizeof *mean);
        memcpy(moments + images, inverse, images * sizeof *inverse);
        moments += 2u * images;
        for (run = 0u; run < norm->elements / norm->span; ++run) {
            const uint32_t affine = set * norm->affine_step + run;
            unit_forward(x, floats, mean, inverse, weight ? weight[affine] : 1.0f,
                         bias ? bias[affine] : 0.0f, y);
            x += floats;
            y += floats;
        }
    }
}

static void fast_norm_forward(const struct sfd_norm *norm, const float *x, uint32_t n,
                              float epsilon, const float *weight, const float *bias, float *moments,
                              float *y)
{
    const size_t size = (size_t)norm->sets * norm->elements;
    uint32_t first;

    if (!has_units(norm, n)) {
        sfd_norm_forward(norm, x, n, epsilon, weight, bias, moments, y);
        return;
    }
    for (first = 0u; first < n; first += SFD_BLOCK)
        set_block_forward(norm, x + first * size, sfd_block_images(n, first), epsilon, weight, bias,
                          moments + (size_t)first * 2u * norm->sets, y + first * size);
}

/* Sums of dy and of dy * h, h = (x - mean) * inverse, over one run, of each lane. */
static void unit_products(const float *x, const float *dy, uint32_t floats, const float *mean,
                          const float *inverse, float *sum, float *product)
{
    struct unit centre, scale, part = {{{0.0f}}}, cross = {{{0.0f}}};
    uint32_t i, j;

    unit_load(&centre, mean);
    unit_load(&scale, inverse);
    for (i = 0u; i < floats; i += UNIT)
        for (j = 0u; j < UNIT_VECTORS; ++j) {
            const vector d = vector_load(dy + i + j * SFD_LANES);
            const vector h = (vector_load(x + i + j * SFD_LANES) - centre.part[j]) * scale.part[j];
            part.part[j] += d;
            cross.part[j] += d * h;
        }
    for (j = 0u; j < UNIT_VECTORS; ++j) {
        vector_store(sum + j * SFD_LANES, part.part[j]);
        vector_store(product + j * SFD_LANES, cross.part[j]);
    }
}

/* Where the gradients of one norm go; d_weight and d_bias may be NULL and are added to. */
struct set_gradient {
    float *dx;
    int accumulate;
    float *d_weight, *d_bias;
};

/* dx of one run: (gain * dy - sum - h * product) * inverse, with the means over the set. */
SFD_INLINE void unit_backward(const float *x, const float *dy, uint32_t floats, const float *mean,
                              const float *inverse, float gain, const float *sum,
                              const float *product, float *dx, int accumulate)
{
    struct unit centre, scale, shift, slope;
    uint32_t i, j;

    unit_load(&centre, mean);
    unit_load(&scale, inverse);
    unit_load(&shift, sum);
    unit_load(&slope, product);
    for (i = 0u; i < floats; i += UNIT)
        for (j = 0u; j < UNIT_VECTORS; ++j) {
            const uint32_t at = i + j * SFD_LANES;
            const vector h = (vector_load(x + at) - centre.part[j]) * scale.part[j];
            vector d = vector_all(gain) * vector_load(dy + at) - shift.part[j];
            d = (d - h * slope.part[j]) * scale.part[j];
            vector_store(dx + at, accumulate ? vector_load(dx + at) + d : d);
        }
}

static float lanes_sum(const float *lane)
{
    float total = 0.0f;
    uint32_t j;

    for (j = 0u; j < UNIT; ++j)
        total += lane[j];
    return total;
}

/* The means over one set, in each lane of an image, of t = gain * dy and of t * h. */
static void set_products(const struct sfd_norm *norm, uint32_t set, const float *x, uint32_t images,
                         const float *weight, const float *mean, const float *inverse,
                         const float *dy, const struct set_gradient *of, float *sum, float *product)
{
    const uint32_t floats = norm->span * images;
    uint32_t run, j;

    memset(sum, 0, UNIT * sizeof *sum);
    memset(product, 0, UNIT * sizeof *product);
    for (run = 0u; run < norm->elements / norm->span; ++run) {
        const uint32_t affine = set * norm->affine_step + run;
        const float gain = weight ? weight[affine] : 1.0f;
        float part[UNIT], cross[UNIT];
        unit_products(x + run * floats, dy + run * floats, floats, mean, inverse, part, cross);
        for (j = 0u; j < UNIT; ++j) {
            sum[j] += gain * part[j];
            product[j] += gain * cross[j];
        }
        if (of->d_weight)
            of->d_weight[affine] += lanes_sum(cross);
        if (of->d_bias)
            of->d_bias[affine] += lanes_sum(part);
    }
    fold(sum, images);
    fold(product, images);
    for (j = 0u; j < UNIT; ++j) {
        sum[j] /= (float)norm->elements;
        product[j] /= (float)norm->elements;
    }
}

static void set_block_backward(const struct sfd_norm *norm, const float *x, uint32_t images,
                               const float *moments, const float *weight, const float *dy,
                               const struct set_gradient *of)
{
    const uint32_t floats = norm->span * images;
    float mean[UNIT], inverse[UNIT], sum[UNIT], product[UNIT];
    uint32_t set, run, j;

    for (set = 0u; set < norm->sets; ++set) {
        const size_t start = (size_t)set * norm->elements * images;
        for (j = 0u; j < UNIT; ++j) {
            mean[j] = moments[set * 2u * images + j % images];
            inverse[j] = moments[(set * 2u + 1u) * images + j % images];
        }
        set_products(norm, set, x + start, images, weight, mean, inverse, dy + start, of, sum,
                     product);
        for (run = 0u; of->dx != NULL && run < norm->elements / norm->span; ++run) {
            const size_t at = start + (size_t)run * floats;
            const float gain = weight ? weight[set * norm->affine_step + run] : 1.0f;
            if (of->accumulate)
                unit_backward(x + at, dy + at, floats, mean, inverse, gain, sum, product,
                              of->dx + at, 1);
            else
                unit_backward(x + at, dy + at, floats, mean, inverse, gain, sum, product,
                              of->dx + at, 0);
        }
    }
}

static void fast_norm_backward(const struct sfd_norm *norm, const float *x, uint32_t n,
                               const float *moments, const float *weight, const float *dy,
                               float *dx, int accumulate, float *d_weight, float *d_bias)
{
    const size_t size = (size_t)norm->sets * norm->elements;
    const size_t coefficients =
        norm->elements / norm->span * (norm->affine_step != 0u ? norm->sets : 1u);
    struct set_gradient of = {dx, accumulate, d_weight, d_bias};
    uint32_t first;

    if (!has_units(norm, n)) {
        sfd_norm_backward(norm, x, n, moments, weight, dy, dx, accumulate, d_weight, d_bias);
        return;
    }
    if (d_weight)
        memset(d_weight, 0, coefficients * sizeof *d_weight);
    if (d_bias)
        memset(d_bias, 0, coefficients * sizeof *d_bias);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        of.dx = dx ? dx + first * size : NULL;
        set_block_backward(norm, x + first * size, sfd_block_images(n, first),
                           moments + (size_t)first * 2u * norm->sets, weight, dy + first * size,
                           &of);
    }
}

#endif
