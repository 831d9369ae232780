/* Linear layers: images of one pixel. The nonzeros are taken in the order of the support, nothing is
 * sorted; each is multiplied for some blocks of images at once, so that its index and weight are read
 * once. A single image takes scalars. */
#ifndef SFD_FAST_LINEAR_H
#define SFD_FAST_LINEAR_H

#include "fast_part.h"

/* Most blocks at once: their sums stay in registers. */
#define LINEAR_BLOCKS (PIXEL_VECTORS > 2u ? 2u : 4u)
#define LINEAR_BLOCKS_LIMIT 4u /* of any set */

static int is_linear(const struct sfd_layer *layer)
{
    return layer->shape.kernel_h == 1u && layer->shape.kernel_w == 1u &&
           layer->shape.padding_h == 0u && layer->shape.padding_w == 0u &&
           layer->shape.groups == 1u && layer->in_height == 1u && layer->in_width == 1u &&
           layer->out_height == 1u && layer->out_width == 1u;
}

/* Images that the linear kernels take at once; 0: other kernels have to. */
static uint32_t linear_images(const struct sfd_layer *layer, uint32_t n)
{
    uint32_t blocks = LINEAR_BLOCKS;

    if (!is_linear(layer) || (n < SFD_BLOCK && n > 1u))
        return 0u;
    if (n == 1u)
        return 1u;
    while (blocks * SFD_BLOCK > n)
        blocks /= 2u;
    return blocks * SFD_BLOCK;
}

/* Where vector u of a pixel in some blocks lies, blocks `block` floats apart. */
SFD_INLINE size_t block_vector(uint32_t u, size_t block)
{
    return u / PIXEL_VECTORS * block + u % PIXEL_VECTORS * SFD_LANES;
}

/* y = bias + W x. */
SFD_INLINE void linear_forward_blocks(const struct sfd_layer *layer, const float *w,
                                      const float *bias, const float *x, float *y,
                                      const uint32_t blocks)
{
    enum { MOST = 8 };
    const struct sfd_support *support = &layer->support;
    const void *column = support->column;
    const uint32_t index_width = support->index_width, rows = support->rows;
    const uint32_t vectors = blocks * PIXEL_VECTORS;
    const uint32_t chains = vectors < MOST ? MOST / vectors : 1u; /* additions need not wait */
    const size_t x_block = (size_t)layer->in_channels * PIXEL, y_block = (size_t)rows * PIXEL;
    uint32_t row, k, c, u;

    for (row = 0u; row < rows; ++row) {
        const uint32_t end = support->row_pointer[row + 1u];
        const float first = bias ? bias[row] : 0.0f;
        vector sum[MOST];
#pragma GCC unroll 8
        for (u = 0u; u < chains * vectors; ++u)
            sum[u] = vector_all(u < vectors ? first : 0.0f);
        for (k = support->row_pointer[row]; end - k >= chains; k += chains)
#pragma GCC unroll 8
            for (c = 0u; c < chains; ++c) {
                const float *from = x + (size_t)sfd_column_at(column, k + c, index_width) * PIXEL;
#pragma GCC unroll 8
                for (u = 0u; u < vectors; ++u)
                    sum[c * vectors + u] += w[k + c] * vector_load(from + block_vector(u, x_block));
            }
        for (; k < end; ++k) {
            const float *from = x + (size_t)sfd_column_at(column, k, index_width) * PIXEL;
#pragma GCC unroll 8
            for (u = 0u; u < vectors; ++u)
                sum[u] += w[k] * vector_load(from + block_vector(u, x_block));
        }
#pragma GCC unroll 8
        for (u = 0u; u < vectors; ++u) {
#pragma GCC unroll 8
            for (c = 1u; c < chains; ++c)
                sum[u] += sum[c * vectors + u];
            vector_store(y + (size_t)row * PIXEL + block_vector(u, y_block), sum[u]);
        }
    }
}

/* dx += w dy (dx may be NULL). Returns x dy, not summed up. */
SFD_INLINE vector linear_product(const vector *dy, float w, const float *x, float *dx,
                                 size_t x_block, const uint32_t vectors)
{
    vector sum = vector_all(0.0f);
    uint32_t u;

#pragma GCC unroll 8
    for (u = 0u; u < vectors; ++u)
        sum += dy[u] * vector_load(x + block_vector(u, x_block));
    if (dx)
#pragma GCC unroll 8
        for (u = 0u; u < vectors; ++u) {
            float *to = dx + block_vector(u, x_block);
            vector_store(to, vector_load(to) + w * dy[u]);
        }
    return sum;
}

/* dx += W^T dy where it is wanted, and the gradients. */
SFD_INLINE void linear_backward_blocks(const struct sfd_layer *layer, const struct fast_part *part,
                                       const float *x, const int wants_dx, const uint32_t blocks)
{
    const struct sfd_support *support = &layer->support;
    const void *column = support->column;
    const uint32_t index_width = support->index_width, rows = support->rows;
    const uint32_t vectors = blocks * PIXEL_VECTORS;
    const size_t x_block = (size_t)layer->in_channels * PIXEL, y_block = (size_t)rows * PIXEL;
    const float *w = part->w;
    float *dx = part->dx, *gradient = part->gradient;
    const int later = part->later;
    uint32_t row, k, j, u;

    for (row = 0u; row < rows; ++row) {
        const uint32_t end = support->row_pointer[row + 1u];
        vector value[8], products[SFD_LANES], sums;
#pragma GCC unroll 8
        for (u = 0u; u < vectors; ++u)
            value[u] = vector_load(part->dy + (size_t)row * PIXEL + block_vector(u, y_block));
        for (k = support->row_pointer[row]; end - k >= SFD_LANES; k += SFD_LANES) {
#pragma GCC unroll 16
            for (j = 0u; j < SFD_LANES; ++j) {
                const size_t at = (size_t)sfd_column_at(column, k + j, index_width) * PIXEL;
                products[j] = linear_product(value, w[k + j], x + at, wants_dx ? dx + at : NULL,
                                             x_block, vectors);
            }
            sums = vectors_sum(products);
            vector_store(gradient + k, later ? vector_load(gradient + k) + sums : sums);
        }
        for (; k < end; ++k) {
            const size_t at = (size_t)sfd_column_at(column, k, index_width) * PIXEL;
            const float sum = vector_sum(
                linear_product(value, w[k], x + at, wants_dx ? dx + at : NULL, x_block, vectors));
            gradient[k] = later ? gradient[k] + sum : sum;
        }
    }
}

static void linear_forward_image(const struct sfd_layer *layer, const float *w, const float *bias,
                                 const float *x, float *y)
{
    const struct sfd_support *support = &layer->support;
    const void *column = support->column;
    const uint32_t index_width = support->index_width, rows = support->rows;
    uint32_t row, k;

    for (row = 0u; row < rows; ++row) {
        const uint32_t end = support->row_pointer[row + 1u];
        float sum[4] = {bias ? bias[row] : 0.0f, 0.0f, 0.0f, 0.0f};
        for (k = support->row_pointer[row]; end - k >= 4u; k += 4u) {
            sum[0] += w[k] * x[sfd_column_at(column, k, index_width)];
            sum[1] += w[k + 1u] * x[sfd_column_at(column, k + 1u, index_width)];
            sum[2] += w[k + 2u] * x[sfd_column_at(column, k + 2u, index_width)];
            sum[3] += w[k + 3u] * x[sfd_column_at(column, k + 3u, index_width)];
        }
        for (; k < end; ++k)
            sum[0] += w[k] * x[sfd_column_at(column, k, index_width)];
        y[row] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}

/* The same of a single image. */
SFD_INLINE void linear_backward_image(const struct sfd_layer *layer, const struct fast_part *part,
                                      const float *x, const int wants_dx,
                                      const uint32_t index_width)
{
    const struct sfd_support *support = &layer->support;
    const void *column = support->column;
    const float *w = part->w;
    float *dx = part->dx, *gradient = part->gradient;
    const int later = part->later;
    uint32_t row, k;

    for (row = 0u; row < support->rows; ++row) {
        const uint32_t end = support->row_pointer[row + 1u];
        const float value = part->dy[row];
#pragma GCC unroll 4
        for (k = support->row_pointer[row]; k < end; ++k) {
            const uint32_t at = sfd_column_at(column, k, index_width);
            const float product = value * x[at];
            if (wants_dx)
                dx[at] += w[k] * value;
            gradient[k] = later ? gradient[k] + product : product;
        }
    }
}

static void linear_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                           const float *x, float *y, uint32_t images)
{
    if (images == 1u)
        linear_forward_image(layer, w, bias, x, y);
    else if (images == SFD_BLOCK)
        linear_forward_blocks(layer, w, bias, x, y, 1u);
    else if (images == 2u * SFD_BLOCK)
        linear_forward_blocks(layer, w, bias, x, y, 2u);
    else
        linear_forward_blocks(layer, w, bias, x, y, LINEAR_BLOCKS);
}

SFD_INLINE void linear_backward_any(const struct sfd_layer *layer, const struct fast_part *part,
                                    const float *x, const int wants_dx)
{
    if (part->images == 1u && layer->support.index_width == 2u)
        linear_backward_image(layer, part, x, wants_dx, 2u);
    else if (part->images == 1u)
        linear_backward_image(layer, part, x, wants_dx, 4u);
    else if (part->images == SFD_BLOCK)
        linear_backward_blocks(layer, part, x, wants_dx, 1u);
    else if (part->images == 2u * SFD_BLOCK)
        linear_backward_blocks(layer, part, x, wants_dx, 2u);
    else
        linear_backward_blocks(layer, part, x, wants_dx, LINEAR_BLOCKS);
}

/* scratch takes the unpacked input. */
static void linear_backward(const struct sfd_layer *layer, const struct fast_part *part,
                            float *scratch)
{
    const size_t elements = (size_t)layer->in_channels * part->images;
    const float *x = part->x ? part->x : scratch;

    if (!part->x)
        unpack_images(part->unpacking, (uint32_t)elements, scratch);
    if (part->dx && !part->accumulate)
        memset(part->dx, 0, elements * sizeof *part->dx);
    if (part->dx)
        linear_backward_any(layer, part, x, 1);
    else
        linear_backward_any(layer, part, x, 0);
}

/* Bytes of the unpacked input, where so many images are left. */
static uint64_t linear_backward_bytes(const struct sfd_layer *layer, uint32_t left)
{
    const uint64_t images = sfd_minimum(left, LINEAR_BLOCKS_LIMIT * SFD_BLOCK);

    return aligned_bytes(layer->in_channels * images * 4u);
}
#endif
