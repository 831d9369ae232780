/* Linear layers, and convolutions whose output is a few vectors in all.
 *
 * Where the pixels of all images of an output channel fit a few registers, the input is unrolled into
 * columns: one row for each column of the weight, with what each output pixel reads there. Then each
 * nonzero is one short multiply-add at its own row, in the order of the support: nothing is sorted.
 * The input of a linear layer over a whole block is its own unrolling. */
#ifndef SFD_FAST_COLUMNS_H
#define SFD_FAST_COLUMNS_H

#include "fast_unpack.h"

#define COLUMN_PIXELS 4u        /* most pixels of 16 floats in an unrolled row */
#define COLUMN_BYTES (2u << 20) /* most bytes of the unrolled input */

/* Whether the input is its own unrolling: a linear layer over a whole block. */
static int is_own_unrolling(const struct sfd_layer *layer, uint32_t images)
{
    return images == SFD_BLOCK && layer->shape.kernel_h == 1u && layer->shape.kernel_w == 1u &&
           layer->in_height == 1u && layer->in_width == 1u && layer->out_height == 1u &&
           layer->out_width == 1u;
}

/* Pixels of 16 floats in an unrolled row: 1, 2 or 4; 0 where this is not the way to go. */
static uint32_t column_pixels(const struct sfd_layer *layer, uint32_t images)
{
    const uint64_t lanes = (uint64_t)layer->out_height * layer->out_width * images;
    const uint64_t rows =
        (uint64_t)layer->in_channels * layer->shape.kernel_h * layer->shape.kernel_w;
    uint32_t pixels = 1u;

    while (pixels * PIXEL < lanes)
        pixels *= 2u;
    return pixels <= COLUMN_PIXELS && rows * pixels * PIXEL * 4u <= COLUMN_BYTES ? pixels : 0u;
}

/* y = bias + W u over unrolled rows. */
SFD_INLINE void columns_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                                const float *unrolled, float *y, uint32_t lanes,
                                const uint32_t pixels)
{
    enum { MOST = 8 };
    const struct sfd_support *support = &layer->support;
    const uint32_t vectors = pixels * PIXEL_VECTORS;
    const uint32_t chains = vectors < MOST ? MOST / vectors : 1; /* additions need not wait */
    const uint32_t rows_per_group = support->rows / layer->shape.groups;
    const size_t width = (size_t)pixels * PIXEL;
    uint32_t row;

    for (row = 0u; row < support->rows; ++row) {
        const float *from = unrolled + (size_t)(row / rows_per_group) * support->columns * width;
        const uint32_t end = support->row_pointer[row + 1u];
        const float first = bias ? bias[row] : 0.0f;
        vector sum[16];
        float out[COLUMN_PIXELS * PIXEL];
        uint32_t k = support->row_pointer[row];
        uint32_t c, u;

#pragma GCC unroll 16
        for (u = 0; u < chains * vectors; ++u)
            sum[u] = vector_all(u < vectors ? first : 0.0f);
        for (; end - k >= chains; k += chains)
#pragma GCC unroll 8
            for (c = 0; c < chains; ++c) {
                const float *at = from + sfd_column(support, k + c) * width;
#pragma GCC unroll 16
                for (u = 0; u < vectors; ++u)
                    sum[c * vectors + u] += w[k + c] * vector_load(at + u * SFD_LANES);
            }
        for (; k < end; ++k)
#pragma GCC unroll 16
            for (u = 0; u < vectors; ++u)
                sum[u] += w[k] * vector_load(from + sfd_column(support, k) * width + u * SFD_LANES);
#pragma GCC unroll 16
        for (u = 0; u < vectors; ++u) {
#pragma GCC unroll 8
            for (c = 1; c < chains; ++c)
                sum[u] += sum[c * vectors + u];
            vector_store(out + u * SFD_LANES, sum[u]);
        }
        memcpy(y + (size_t)row * lanes, out, lanes * sizeof *y);
    }
}

/* du += W^T dy (du may be NULL) and the gradient of each nonzero, added to where `later`. gradient
 * may be w: each weight is read before its gradient is written. */
SFD_INLINE void columns_backward(const struct sfd_layer *layer, const float *w,
                                 const float *unrolled, const float *dy, uint32_t lanes, float *du,
                                 float *gradient, int later, const uint32_t pixels)
{
    const struct sfd_support *support = &layer->support;
    const uint32_t vectors = pixels * PIXEL_VECTORS;
    const uint32_t rows_per_group = support->rows / layer->shape.groups;
    const size_t width = (size_t)pixels * PIXEL;
    float in[COLUMN_PIXELS * PIXEL];
    uint32_t row, k;
    uint32_t u;

    memset(in, 0, sizeof in);
    for (row = 0u; row < support->rows; ++row) {
        const size_t group = (size_t)(row / rows_per_group) * support->columns * width;
        vector value[16];
        memcpy(in, dy + (size_t)row * lanes, lanes * sizeof *in);
#pragma GCC unroll 16
        for (u = 0; u < vectors; ++u)
            value[u] = vector_load(in + u * SFD_LANES);
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k) {
            const size_t at = group + sfd_column(support, k) * width;
            const float weight = w[k];
            vector sum = vector_all(0.0f);
#pragma GCC unroll 16
            for (u = 0; u < vectors; ++u)
                sum += value[u] * vector_load(unrolled + at + u * SFD_LANES);
            if (du)
#pragma GCC unroll 16
                for (u = 0; u < vectors; ++u)
                    vector_store(du + at + u * SFD_LANES,
                                 vector_load(du + at + u * SFD_LANES) + weight * value[u]);
            gradient[k] = vector_sum(sum) + (later ? gradient[k] : 0.0f);
        }
    }
}

static void columns_forward_any(const struct sfd_layer *layer, const float *w, const float *bias,
                                const float *unrolled, float *y, uint32_t lanes, uint32_t pixels)
{
    if (pixels == 1u)
        columns_forward(layer, w, bias, unrolled, y, lanes, 1);
    else if (pixels == 2u)
        columns_forward(layer, w, bias, unrolled, y, lanes, 2);
    else
        columns_forward(layer, w, bias, unrolled, y, lanes, 4);
}

static void columns_backward_any(const struct sfd_layer *layer, const float *w,
                                 const float *unrolled, const float *dy, uint32_t lanes, float *du,
                                 float *gradient, int later, uint32_t pixels)
{
    if (pixels == 1u)
        columns_backward(layer, w, unrolled, dy, lanes, du, gradient, later, 1);
    else if (pixels == 2u)
        columns_backward(layer, w, unrolled, dy, lanes, du, gradient, later, 2);
    else
        columns_backward(layer, w, unrolled, dy, lanes, du, gradient, later, 4);
}

/* The pixels of one unrolled row, which reads one channel through one tap. */
struct fast_cells {
    uint32_t y_low, y_high, x_low, x_high; /* of the output, where the input is inside */
    size_t start;                          /* of the input that pixel (y_low, x_low) reads */
};

static struct fast_cells cells_find(const struct sfd_layer *layer, uint32_t channel, uint32_t tap,
                                    uint32_t images)
{
    const struct sfd_convolution *shape = &layer->shape;
    const uint32_t at_y = tap / shape->kernel_w * shape->dilation_h;
    const uint32_t at_x = tap % shape->kernel_w * shape->dilation_w;
    struct fast_cells cells;

    sfd_valid_range(layer->in_height, layer->out_height, shape->stride_h, shape->padding_h, at_y,
                    &cells.y_low, &cells.y_high);
    sfd_valid_range(layer->in_width, layer->out_width, shape->stride_w, shape->padding_w, at_x,
                    &cells.x_low, &cells.x_high);
    cells.start = 0u;
    if (cells.y_low < cells.y_high && cells.x_low < cells.x_high)
        cells.start = (((size_t)channel * layer->in_height + cells.y_low * shape->stride_h + at_y -
                        shape->padding_h) *
                           layer->in_width +
                       cells.x_low * shape->stride_w + at_x - shape->padding_w) *
                      images;
    return cells;
}

/* One channel into its unrolled rows. x is that of channel 0. */
static void unroll_channel(const struct sfd_layer *layer, const float *x, uint32_t channel,
                           uint32_t from_channel, uint32_t images, uint32_t width, float *unrolled)
{
    const uint32_t taps = layer->shape.kernel_h * layer->shape.kernel_w;
    const uint32_t step = layer->shape.stride_w * images;
    const size_t row_step = (size_t)layer->shape.stride_h * layer->in_width * images;
    uint32_t t, y, px, i;

    for (t = 0u; t < taps; ++t) {
        const struct fast_cells cells = cells_find(layer, from_channel, t, images);
        const uint32_t run = (cells.x_high - cells.x_low) * images;
        float *row = unrolled + ((size_t)channel * taps + t) * width;
        memset(row, 0, width * sizeof *row);
        for (y = cells.y_low; y < cells.y_high; ++y) {
            const float *from = x + cells.start + (y - cells.y_low) * row_step;
            float *to = row + (y * layer->out_width + cells.x_low) * images;
            if (step == images)
                for (i = 0u; i < run; ++i)
                    to[i] = from[i];
            else
                for (px = 0u; px * images < run; ++px)
                    for (i = 0u; i < images; ++i)
                        to[px * images + i] = from[(size_t)px * step + i];
        }
    }
}

/* dx += what the unrolled rows gathered. */
static void roll_up(const struct sfd_layer *layer, const float *du, uint32_t images, uint32_t width,
                    float *dx)
{
    const uint32_t taps = layer->shape.kernel_h * layer->shape.kernel_w;
    const uint32_t step = layer->shape.stride_w * images;
    const size_t row_step = (size_t)layer->shape.stride_h * layer->in_width * images;
    uint32_t c, t, y, px, i;

    for (c = 0u; c < layer->in_channels; ++c)
        for (t = 0u; t < taps; ++t, du += width) {
            const struct fast_cells cells = cells_find(layer, c, t, images);
            const uint32_t run = (cells.x_high - cells.x_low) * images;
            for (y = cells.y_low; y < cells.y_high; ++y) {
                const float *from = du + (y * layer->out_width + cells.x_low) * images;
                float *to = dx + cells.start + (y - cells.y_low) * row_step;
                if (step == images)
                    for (i = 0u; i < run; ++i)
                        to[i] += from[i];
                else
                    for (px = 0u; px * images < run; ++px)
                        for (i = 0u; i < images; ++i)
                            to[(size_t)px * step + i] += from[px * images + i];
            }
        }
}

/* Where the working memory lies. */
struct fast_columns {
    float *unrolled, *du;
    float *channel; /* of the unpacked input */
    uint32_t pixels, lanes, images;
    size_t bytes;
};

/* Bytes of the unrolled input. */
static uint64_t columns_bytes(const struct sfd_layer *layer, uint32_t images)
{
    return (uint64_t)layer->in_channels * layer->shape.kernel_h * layer->shape.kernel_w *
           column_pixels(layer, images) * PIXEL * 4u;
}

static uint64_t columns_backward_bytes(const struct sfd_layer *layer, uint32_t images)
{
    return 2u * columns_bytes(layer, images) +
           aligned_bytes((uint64_t)layer->in_height * layer->in_width * images * 4u);
}

static struct fast_columns columns_lay(const struct sfd_layer *layer, uint32_t images,
                                       float *scratch)
{
    struct fast_columns columns;

    columns.pixels = column_pixels(layer, images);
    columns.lanes = layer->out_height * layer->out_width * images;
    columns.images = images;
    columns.bytes = (size_t)columns_bytes(layer, images);
    columns.unrolled = scratch;
    columns.du = scratch + columns.bytes / 4u;
    columns.channel = columns.du + columns.bytes / 4u;
    return columns;
}

static void columns_forward_block(const struct sfd_layer *layer, const float *w, const float *bias,
                                  const float *x, float *y, uint32_t images, float *scratch)
{
    const struct fast_columns columns = columns_lay(layer, images, scratch);
    uint32_t c;

    for (c = 0u; c < layer->in_channels && !is_own_unrolling(layer, images); ++c)
        unroll_channel(layer, x, c, c, images, columns.pixels * PIXEL, columns.unrolled);
    columns_forward_any(layer, w, bias, is_own_unrolling(layer, images) ? x : columns.unrolled, y,
                        columns.lanes, columns.pixels);
}

/* The input unrolled, from its dense form or channel by channel from the packed one. */
static const float *unroll_saved(const struct sfd_layer *layer, const struct fast_columns *columns,
                                 const float *dense, struct fast_unpacking *unpacking)
{
    uint32_t c;

    if (dense && is_own_unrolling(layer, columns->images))
        return dense;
    for (c = 0u; c < layer->in_channels; ++c) {
        if (!dense)
            unpack_rows(unpacking, c, 0u, layer->in_height, columns->channel);
        unroll_channel(layer, dense ? dense : columns->channel, c, dense ? c : 0u, columns->images,
                       columns->pixels * PIXEL, columns->unrolled);
    }
    return columns->unrolled;
}

static void columns_backward_block(const struct sfd_layer *layer, const float *w,
                                   const float *dense, struct fast_unpacking *unpacking,
                                   const float *dy, float *dx, int accumulate, float *gradient,
                                   int later, uint32_t images, float *scratch)
{
    const struct fast_columns columns = columns_lay(layer, images, scratch);
    const float *unrolled = unroll_saved(layer, &columns, dense, unpacking);
    const size_t elements =
        (size_t)layer->in_channels * layer->in_height * layer->in_width * images;
    const int own = is_own_unrolling(layer, images);

    if (dx && !accumulate)
        memset(dx, 0, elements * sizeof *dx);
    if (dx && !own)
        memset(columns.du, 0, columns.bytes);
    columns_backward_any(layer, w, unrolled, dy, columns.lanes,
                         !dx   ? NULL
                         : own ? dx
                               : columns.du,
                         gradient, later, columns.pixels);
    if (dx && !own)
        roll_up(layer, columns.du, images, columns.pixels * PIXEL, dx);
}
#endif
