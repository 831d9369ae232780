/* Convolutions whose output is a few vectors in all, and linear layers over part of a block.
 *
 * Where the pixels of all images of an output channel fit a few registers, the input is unrolled into
 * columns. Then each nonzero is one short multiply-add at its own row, in the order of the support:
 * nothing is sorted. */
#ifndef SFD_FAST_COLUMNS_H
#define SFD_FAST_COLUMNS_H

#include "fast_full.h"
#include "fast_part.h"
#include "fast_unroll.h"

#define COLUMN_BYTES (2u << 20) /* most bytes of the unrolled input */
#define COLUMN_BLOCK_BYTES (320u << 10)

/* Pixels of 16 floats in an unrolled row: 1, 2 or 4; 0 where this is not the way to go. */
static uint32_t column_pixels(const struct sfd_layer *layer, uint32_t images)
{
    const uint64_t floats = (uint64_t)layer->out_height * layer->out_width * images;
    const uint64_t rows = (uint64_t)layer->in_channels * sfd_kernel_area(layer);
    uint32_t pixels = 1u;

    while (pixels * PIXEL < floats)
        pixels *= 2u;
    return pixels * PIXEL <= UNROLLED_FLOATS && rows * pixels * PIXEL * 4u <= COLUMN_BYTES ? pixels
                                                                                           : 0u;
}

/* A pass over the nonzeros, and where its working memory lies. They are taken block of columns by
 * block of columns, so that the rows of a block stay in the second-level cache while all output
 * channels go by. */
struct fast_columns {
    const struct sfd_layer *layer;
    const float *w;
    struct fast_unrolling unrolling;
    float *unrolled;
    float *du;        /* the gradient of the unrolled input; backward only, as the next */
    float *channel;   /* one channel of the unpacked input */
    uint32_t *cursor; /* for each output channel its next nonzero */
    uint32_t pixels;
    uint32_t floats; /* floats of an output channel: the rest of an unrolled row is not used */
    size_t bytes;    /* of the unrolled input */
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
SFD_INLINE void columns_gather(vector *sum, const struct fast_columns *columns, size_t group,
                               uint32_t k, const uint32_t end, const uint32_t pixels)
{
    enum { MOST = 8 };
    const uint32_t vectors = pixels * PIXEL_VECTORS;
    const uint32_t chains = vectors < MOST ? MOST / vectors : 1u; /* additions need not wait */
    const size_t width = (size_t)pixels * PIXEL;
    const void *column = columns->layer->support.column;
    const uint32_t index_width = columns->layer->support.index_width;
    const float *from = columns->unrolled + group, *w = columns->w;
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
SFD_INLINE void columns_forward(const struct fast_columns *columns, const float *bias, float *y,
                                const uint32_t pixels)
{
    const struct sfd_support *support = &columns->layer->support;
    const uint32_t rows_per_group = support->rows / columns->layer->shape.groups;
    const uint32_t vectors = pixels * PIXEL_VECTORS, floats = columns->floats;
    const uint32_t block = column_block(pixels);
    uint32_t first, row, u;

    for (first = 0u; first < support->columns; first += block)
        for (row = 0u; row < support->rows; ++row) {
            const uint32_t k = columns->cursor[row];
            const uint32_t end = block_end(support, row, k, first + block);
            const size_t group = (size_t)(row / rows_per_group) * support->columns * pixels * PIXEL;
            float out[UNROLLED_FLOATS];
            vector sum[16];
            for (u = 0u; u < floats && first == 0u; ++u)
                out[u] = bias ? bias[row] : 0.0f;
            if (first > 0u)
                memcpy(out, y + (size_t)row * floats, floats * sizeof *out);
            memset(out + floats, 0, (pixels * PIXEL - floats) * sizeof *out);
#pragma GCC unroll 16
            for (u = 0u; u < vectors; ++u)
                sum[u] = vector_load(out + u * SFD_LANES);
            columns_gather(sum, columns, group, k, end, pixels);
#pragma GCC unroll 16
            for (u = 0u; u < vectors; ++u)
                vector_store(out + u * SFD_LANES, sum[u]);
            memcpy(y + (size_t)row * floats, out, floats * sizeof *y);
            columns->cursor[row] = end;
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

/* du += W^T dy where it is wanted, and the gradient of nonzeros [k, end) of a row. */
SFD_INLINE void columns_scatter(const struct fast_columns *columns, const struct fast_part *part,
                                const vector *dy, size_t group, uint32_t k, const uint32_t end,
                                const int wants_dx, const uint32_t pixels)
{
    const uint32_t vectors = pixels * PIXEL_VECTORS;
    const size_t width = (size_t)pixels * PIXEL;
    const void *column = columns->layer->support.column;
    const uint32_t index_width = columns->layer->support.index_width;
    const float *from = columns->unrolled + group, *w = columns->w;
    float *du = columns->du + group, *gradient = part->gradient;
    const int later = part->later;
    uint32_t j;

    for (; k + SFD_LANES <= end; k += SFD_LANES) {
        vector products[SFD_LANES], sums;
#pragma GCC unroll 16
        for (j = 0u; j < SFD_LANES; ++j) {
            const size_t at = sfd_column_at(column, k + j, index_width) * width;
            products[j] =
                columns_product(dy, w[k + j], from + at, wants_dx ? du + at : NULL, vectors);
        }
        sums = vectors_sum(products);
        vector_store(gradient + k, later ? vector_load(gradient + k) + sums : sums);
    }
    for (; k < end; ++k) {
        const size_t at = sfd_column_at(column, k, index_width) * width;
        const float sum =
            vector_sum(columns_product(dy, w[k], from + at, wants_dx ? du + at : NULL, vectors));
        gradient[k] = later ? gradient[k] + sum : sum;
    }
}

SFD_INLINE void columns_backward(const struct fast_columns *columns, const struct fast_part *part,
                                 const uint32_t pixels)
{
    const struct sfd_support *support = &columns->layer->support;
    const uint32_t rows_per_group = support->rows / columns->layer->shape.groups;
    const uint32_t vectors = pixels * PIXEL_VECTORS, floats = columns->floats;
    const uint32_t block = column_block(2u * pixels);
    float in[UNROLLED_FLOATS];
    uint32_t first, row, u;

    memset(in, 0, sizeof in);
    for (first = 0u; first < support->columns; first += block)
        for (row = 0u; row < support->rows; ++row) {
            const uint32_t k = columns->cursor[row];
            const uint32_t end = block_end(support, row, k, first + block);
            const size_t group = (size_t)(row / rows_per_group) * support->columns * pixels * PIXEL;
            vector value[16];
            memcpy(in, part->dy + (size_t)row * floats, floats * sizeof *in);
#pragma GCC unroll 16
            for (u = 0u; u < vectors; ++u)
                value[u] = vector_load(in + u * SFD_LANES);
            if (part->dx)
                columns_scatter(columns, part, value, group, k, end, 1, pixels);
            else
                columns_scatter(columns, part, value, group, k, end, 0, pixels);
            columns->cursor[row] = end;
        }
}

/* Bytes of the unrolled input. */
static uint64_t columns_bytes(const struct sfd_layer *layer, uint32_t images)
{
    return (uint64_t)layer->in_channels * sfd_kernel_area(layer) * column_pixels(layer, images) *
           PIXEL * 4u;
}

static uint64_t cells_bytes(const struct sfd_layer *layer)
{
    return aligned_bytes((uint64_t)sfd_kernel_area(layer) * sizeof(struct fast_cells));
}

static uint64_t cursor_bytes(const struct sfd_layer *layer)
{
    return aligned_bytes((uint64_t)layer->support.rows * 4u);
}

static uint64_t columns_forward_bytes(const struct sfd_layer *layer, uint32_t images)
{
    return cells_bytes(layer) + cursor_bytes(layer) + columns_bytes(layer, images);
}

static uint64_t columns_backward_bytes(const struct sfd_layer *layer, uint32_t images)
{
    return columns_forward_bytes(layer, images) + columns_bytes(layer, images) +
           aligned_bytes((uint64_t)layer->in_height * layer->in_width * images * 4u);
}

static struct fast_columns columns_begin(const struct sfd_layer *layer, const float *w,
                                         uint32_t images, uint8_t *scratch)
{
    struct fast_cells *cells = (void *)scratch;
    struct fast_columns columns;

    cells_find(layer, images, cells);
    columns.layer = layer;
    columns.w = w;
    columns.pixels = column_pixels(layer, images);
    columns.floats = layer->out_height * layer->out_width * images;
    columns.bytes = (size_t)columns_bytes(layer, images);
    columns.unrolling.layer = layer;
    columns.unrolling.cells = cells;
    columns.unrolling.images = images;
    columns.unrolling.width = columns.pixels * PIXEL;
    scratch += cells_bytes(layer);
    columns.cursor = memcpy(scratch, layer->support.row_pointer, layer->support.rows * 4u);
    scratch += cursor_bytes(layer);
    columns.unrolled = (void *)scratch;
    columns.du = columns.unrolled + columns.bytes / 4u;
    columns.channel = columns.du + columns.bytes / 4u;
    return columns;
}

/* The rows of a channel in the unrolled input or in its gradient. */
static float *channel_rows(const struct fast_columns *columns, float *unrolled, uint32_t channel)
{
    return unrolled + (size_t)channel * sfd_kernel_area(columns->layer) * columns->unrolling.width;
}

static void columns_forward_full(const struct fast_columns *columns, const float *bias, float *y)
{
    const uint32_t width = columns->unrolling.width;

    if (width == SFD_LANES)
        full_forward(columns->layer, columns->w, bias, columns->unrolled, width, y, columns->floats,
                     1u);
    else
        full_forward(columns->layer, columns->w, bias, columns->unrolled, width, y, columns->floats,
                     FULL_VECTORS);
}

static void columns_forward_part(const struct sfd_layer *layer, const float *w, const float *bias,
                                 const float *x, float *y, uint32_t images, uint8_t *scratch)
{
    const struct fast_columns columns = columns_begin(layer, w, images, scratch);
    const size_t plane = (size_t)layer->in_height * layer->in_width * images;
    uint32_t c;

    for (c = 0u; c < layer->in_channels; ++c)
        unroll_channel(&columns.unrolling, x + c * plane,
                       channel_rows(&columns, columns.unrolled, c));
    if (keeps_all(layer))
        columns_forward_full(&columns, bias, y);
    else if (columns.pixels == 1u)
        columns_forward(&columns, bias, y, 1u);
    else if (columns.pixels == 2u)
        columns_forward(&columns, bias, y, 2u);
    else
        columns_forward(&columns, bias, y, 4u);
}

/* The input unrolled, from its dense form or channel by channel from the packed one. */
static void unroll_saved(const struct fast_columns *columns, const struct fast_part *part)
{
    const struct sfd_layer *layer = columns->layer;
    const size_t plane = (size_t)layer->in_height * layer->in_width * part->images;
    const float *x = columns->channel;
    uint32_t c;

    for (c = 0u; c < layer->in_channels; ++c) {
        if (part->x)
            x = part->x + c * plane;
        else
            unpack_rows(part->unpacking, c, 0u, layer->in_height, columns->channel);
        unroll_channel(&columns->unrolling, x, channel_rows(columns, columns->unrolled, c));
    }
}

/* Whole panels of columns; those that are left over have their nonzeros still to come. */
static void columns_backward_full(const struct fast_columns *columns, const struct fast_part *part)
{
    const struct sfd_layer *layer = columns->layer;
    const uint32_t width = columns->unrolling.width, count = layer->support.columns;
    float *du = part->dx ? columns->du : NULL;
    uint32_t row;

    full_turn(columns->unrolled, count, width);
    if (width == SFD_LANES)
        full_backward(layer, part, columns->unrolled, du, width, columns->floats, 1u);
    else
        full_backward(layer, part, columns->unrolled, du, width, columns->floats, FULL_VECTORS);
    for (row = 0u; row < layer->support.rows; ++row)
        columns->cursor[row] += count - count % SFD_LANES;
}

/* dx, or the sum of it and what is there, from the gradient of the unrolled input. */
static void roll_up(const struct fast_columns *columns, const struct fast_part *part)
{
    const struct sfd_layer *layer = columns->layer;
    const size_t plane = (size_t)layer->in_height * layer->in_width * part->images;
    uint32_t c;

    if (!part->accumulate)
        memset(part->dx, 0, layer->in_channels * plane * sizeof *part->dx);
    for (c = 0u; c < layer->in_channels; ++c)
        roll_up_channel(&columns->unrolling, channel_rows(columns, columns->du, c),
                        part->dx + c * plane);
}

static void columns_backward_part(const struct sfd_layer *layer, const struct fast_part *part,
                                  uint8_t *scratch)
{
    const struct fast_columns columns = columns_begin(layer, part->w, part->images, scratch);

    if (part->dx)
        memset(columns.du, 0, columns.bytes);
    unroll_saved(&columns, part);
    if (keeps_all(layer))
        columns_backward_full(&columns, part);
    if (columns.pixels == 1u)
        columns_backward(&columns, part, 1u);
    else if (columns.pixels == 2u)
        columns_backward(&columns, part, 2u);
    else
        columns_backward(&columns, part, 4u);
    if (part->dx)
        roll_up(&columns, part);
}
#endif
