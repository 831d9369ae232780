/* Convolutions whose output is a few vectors in all, and linear layers over part of a block.
 *
 * Where the pixels of all images of an output channel fit a few registers, the input is unrolled into
 * columns: one row for each column of the weight, with what each output pixel reads there. Then each
 * nonzero is one short multiply-add at its own row, in the order of the support: nothing is sorted. */
#ifndef SFD_FAST_COLUMNS_H
#define SFD_FAST_COLUMNS_H

#include "fast_linear.h"

#define COLUMN_PIXELS 4u        /* most pixels of 16 floats in an unrolled row */
#define COLUMN_BYTES (2u << 20) /* most bytes of the unrolled input */
#define COLUMN_BLOCK_BYTES (320u << 10)

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

/* One pass over the nonzeros. They are taken block of columns by block of columns, so that the rows
 * of a block stay in the second-level cache while all output channels go by. */
struct fast_column_pass {
    const struct sfd_layer *layer;
    const float *w;
    const float *unrolled;
    uint32_t lanes;   /* floats of an output channel: the rest of an unrolled row is not used */
    uint32_t *cursor; /* for each output channel its next nonzero */
};

/* The nonzeros of a row from k on whose column is below `limit`: one after the last. */
static uint32_t block_end(const struct sfd_support *support, uint32_t row, uint32_t k,
                          uint32_t limit)
{
    const uint32_t end = support->row_pointer[row + 1u];

    return limit < support->columns ? sfd_column_search(support, k, end, limit) : end;
}

/* Columns in a block; the backward touches the gradient of each as well. */
static uint32_t column_block(uint32_t pixels)
{
    return COLUMN_BLOCK_BYTES / (pixels * PIXEL * 4u);
}

/* sum += W u over nonzeros [k, end) of a row. */
SFD_INLINE void columns_gather(vector *sum, const struct fast_column_pass *pass, size_t group,
                               uint32_t k, const uint32_t end, const uint32_t pixels)
{
    enum { MOST = 8 };
    const uint32_t vectors = pixels * PIXEL_VECTORS;
    const uint32_t chains = vectors < MOST ? MOST / vectors : 1u; /* additions need not wait */
    const size_t width = (size_t)pixels * PIXEL;
    const void *column = pass->layer->support.column;
    const uint32_t index_width = pass->layer->support.index_width;
    const float *from = pass->unrolled + group, *w = pass->w;
    vector chain[16];
    uint32_t c, u;

#pragma GCC unroll 16
    for (u = 0u; u < chains * vectors; ++u)
        chain[u] = vector_all(0.0f);
    for (; end - k >= chains; k += chains)
#pragma GCC unroll 8
        for (c = 0u; c < chains; ++c) {
            const float *at = from + sfd_column_at(column, k + c, index_width) * width;
#pragma GCC unroll 16
            for (u = 0u; u < vectors; ++u)
                chain[c * vectors + u] += w[k + c] * vector_load(at + u * SFD_LANES);
        }
    for (; k < end; ++k) {
        const float *at = from + sfd_column_at(column, k, index_width) * width;
#pragma GCC unroll 16
        for (u = 0u; u < vectors; ++u)
            chain[u] += w[k] * vector_load(at + u * SFD_LANES);
    }
#pragma GCC unroll 16
    for (u = 0u; u < vectors; ++u) {
#pragma GCC unroll 8
        for (c = 0u; c < chains; ++c)
            sum[u] += chain[c * vectors + u];
    }
}

/* y = bias + W u over unrolled rows. */
SFD_INLINE void columns_forward(const struct fast_column_pass *pass, const float *bias, float *y,
                                const uint32_t pixels)
{
    const struct sfd_support *support = &pass->layer->support;
    const uint32_t rows_per_group = support->rows / pass->layer->shape.groups;
    const uint32_t vectors = pixels * PIXEL_VECTORS, lanes = pass->lanes;
    const uint32_t block = column_block(pixels);
    uint32_t first, row, u;

    for (first = 0u; first < support->columns; first += block)
        for (row = 0u; row < support->rows; ++row) {
            const uint32_t k = first == 0u ? support->row_pointer[row] : pass->cursor[row];
            const uint32_t end = block_end(support, row, k, first + block);
            const size_t group = (size_t)(row / rows_per_group) * support->columns * pixels * PIXEL;
            float out[COLUMN_PIXELS * PIXEL];
            vector sum[16];
            for (u = 0u; u < lanes && first == 0u; ++u)
                out[u] = bias ? bias[row] : 0.0f;
            if (first > 0u)
                memcpy(out, y + (size_t)row * lanes, lanes * sizeof *out);
            memset(out + lanes, 0, (pixels * PIXEL - lanes) * sizeof *out);
#pragma GCC unroll 16
            for (u = 0u; u < vectors; ++u)
                sum[u] = vector_load(out + u * SFD_LANES);
            columns_gather(sum, pass, group, k, end, pixels);
#pragma GCC unroll 16
            for (u = 0u; u < vectors; ++u)
                vector_store(out + u * SFD_LANES, sum[u]);
            memcpy(y + (size_t)row * lanes, out, lanes * sizeof *y);
            pass->cursor[row] = end;
        }
}

/* du += w dy (du may be NULL). Returns u dy, not summed up. */
SFD_INLINE vector columns_product(const vector *dy, float w, const float *unrolled, float *du,
                                  const uint32_t vectors)
{
    vector sum = vector_all(0.0f);
    uint32_t u;

#pragma GCC unroll 16
    for (u = 0u; u < vectors; ++u)
        sum += dy[u] * vector_load(unrolled + u * SFD_LANES);
    if (du)
#pragma GCC unroll 16
        for (u = 0u; u < vectors; ++u)
            vector_store(du + u * SFD_LANES, vector_load(du + u * SFD_LANES) + w * dy[u]);
    return sum;
}

/* du += W^T dy and the gradient of nonzeros [k, end) of a row, added to where `later`. gradient may
 * be w: each weight is read before its gradient is written. */
SFD_INLINE void columns_scatter(const vector *dy, const struct fast_column_pass *pass, size_t group,
                                uint32_t k, const uint32_t end, float *du, float *gradient,
                                int later, const uint32_t pixels)
{
    const uint32_t vectors = pixels * PIXEL_VECTORS;
    const size_t width = (size_t)pixels * PIXEL;
    const void *column = pass->layer->support.column;
    const uint32_t index_width = pass->layer->support.index_width;
    const float *from = pass->unrolled + group, *w = pass->w;
    uint32_t j;

    du = du ? du + group : NULL;
    for (; k + SFD_LANES <= end; k += SFD_LANES) {
        vector part[SFD_LANES], sums;
        for (j = 0u; j < SFD_LANES; ++j) {
            const size_t at = sfd_column_at(column, k + j, index_width) * width;
            part[j] = columns_product(dy, w[k + j], from + at, du ? du + at : NULL, vectors);
        }
        sums = vectors_sum(part);
        vector_store(gradient + k, later ? vector_load(gradient + k) + sums : sums);
    }
    for (; k < end; ++k) {
        const size_t at = sfd_column_at(column, k, index_width) * width;
        const float sum =
            vector_sum(columns_product(dy, w[k], from + at, du ? du + at : NULL, vectors));
        gradient[k] = later ? gradient[k] + sum : sum;
    }
}

SFD_INLINE void columns_backward(const struct fast_column_pass *pass, const float *dy, float *du,
                                 float *gradient, int later, const uint32_t pixels)
{
    const struct sfd_support *support = &pass->layer->support;
    const uint32_t rows_per_group = support->rows / pass->layer->shape.groups;
    const uint32_t vectors = pixels * PIXEL_VECTORS, lanes = pass->lanes;
    const uint32_t block = column_block(2u * pixels);
    float in[COLUMN_PIXELS * PIXEL];
    uint32_t first, row, u;

    memset(in, 0, sizeof in);
    for (first = 0u; first < support->columns; first += block)
        for (row = 0u; row < support->rows; ++row) {
            const uint32_t k = first == 0u ? support->row_pointer[row] : pass->cursor[row];
            const uint32_t end = block_end(support, row, k, first + block);
            const size_t group = (size_t)(row / rows_per_group) * support->columns * pixels * PIXEL;
            vector value[16];
            memcpy(in, dy + (size_t)row * lanes, lanes * sizeof *in);
#pragma GCC unroll 16
            for (u = 0u; u < vectors; ++u)
                value[u] = vector_load(in + u * SFD_LANES);
            columns_scatter(value, pass, group, k, end, du, gradient, later, pixels);
            pass->cursor[row] = end;
        }
}

static void columns_forward_any(const struct fast_column_pass *pass, const float *bias, float *y,
                                uint32_t pixels)
{
    if (pixels == 1u)
        columns_forward(pass, bias, y, 1u);
    else if (pixels == 2u)
        columns_forward(pass, bias, y, 2u);
    else
        columns_forward(pass, bias, y, 4u);
}

static void columns_backward_any(const struct fast_column_pass *pass, const float *dy, float *du,
                                 float *gradient, int later, uint32_t pixels)
{
    if (pixels == 1u)
        columns_backward(pass, dy, du, gradient, later, 1u);
    else if (pixels == 2u)
        columns_backward(pass, dy, du, gradient, later, 2u);
    else
        columns_backward(pass, dy, du, gradient, later, 4u);
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
    struct fast_cells cells = {0u, layer->out_height, 0u, layer->out_width, 0u};

    if (layer->out_height == 1u && layer->out_width == 1u && layer->in_height == 1u &&
        layer->in_width == 1u && shape->padding_h == 0u && shape->padding_w == 0u) {
        cells.start = (size_t)channel * images; /* a linear layer */
        return cells;
    }
    sfd_valid_range(layer->in_height, layer->out_height, shape->stride_h, shape->padding_h, at_y,
                    &cells.y_low, &cells.y_high);
    sfd_valid_range(layer->in_width, layer->out_width, shape->stride_w, shape->padding_w, at_x,
                    &cells.x_low, &cells.x_high);
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
    uint32_t *cursor;
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

static uint64_t cursor_bytes(const struct sfd_layer *layer)
{
    return aligned_bytes((uint64_t)layer->support.rows * 4u);
}

static uint64_t columns_forward_bytes(const struct sfd_layer *layer, uint32_t images)
{
    return cursor_bytes(layer) + columns_bytes(layer, images);
}

static uint64_t columns_backward_bytes(const struct sfd_layer *layer, uint32_t images)
{
    return cursor_bytes(layer) + 2u * columns_bytes(layer, images) +
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
    columns.cursor = (uint32_t *)(void *)scratch;
    columns.unrolled = scratch + cursor_bytes(layer) / 4u;
    columns.du = columns.unrolled + columns.bytes / 4u;
    columns.channel = columns.du + columns.bytes / 4u;
    return columns;
}

static struct fast_column_pass column_pass(const struct sfd_layer *layer, const float *w,
                                           const struct fast_columns *columns)
{
    struct fast_column_pass pass;

    pass.layer = layer;
    pass.w = w;
    pass.unrolled = columns->unrolled;
    pass.lanes = columns->lanes;
    pass.cursor = columns->cursor;
    return pass;
}

static void columns_forward_block(const struct sfd_layer *layer, const float *w, const float *bias,
                                  const float *x, float *y, uint32_t images, float *scratch)
{
    const struct fast_columns columns = columns_lay(layer, images, scratch);
    struct fast_column_pass pass;
    uint32_t c;

    for (c = 0u; c < layer->in_channels; ++c)
        unroll_channel(layer, x, c, c, images, columns.pixels * PIXEL, columns.unrolled);
    pass = column_pass(layer, w, &columns);
    columns_forward_any(&pass, bias, y, columns.pixels);
}

/* The input unrolled, from its dense form or channel by channel from the packed one. */
static void unroll_saved(const struct sfd_layer *layer, const struct fast_columns *columns,
                         const float *dense, struct fast_unpacking *unpacking)
{
    uint32_t c;

    for (c = 0u; c < layer->in_channels; ++c) {
        if (!dense)
            unpack_rows(unpacking, c, 0u, layer->in_height, columns->channel);
        unroll_channel(layer, dense ? dense : columns->channel, c, dense ? c : 0u, columns->images,
                       columns->pixels * PIXEL, columns->unrolled);
    }
}

static void columns_backward_block(const struct sfd_layer *layer, const float *w,
                                   const float *dense, struct fast_unpacking *unpacking,
                                   const float *dy, float *dx, int accumulate, float *gradient,
                                   int later, uint32_t images, float *scratch)
{
    const struct fast_columns columns = columns_lay(layer, images, scratch);
    const size_t elements =
        (size_t)layer->in_channels * layer->in_height * layer->in_width * images;
    struct fast_column_pass pass;

    if (dx && !accumulate)
        memset(dx, 0, elements * sizeof *dx);
    if (dx)
        memset(columns.du, 0, columns.bytes);
    pass = column_pass(layer, w, &columns);
    unroll_saved(layer, &columns, dense, unpacking);
    columns_backward_any(&pass, dy, dx ? columns.du : NULL, gradient, later, columns.pixels);
    if (dx)
        roll_up(layer, columns.du, images, columns.pixels * PIXEL, dx);
}
#endif
