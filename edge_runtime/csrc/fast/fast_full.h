/* Layers that keep all their weights, over unrolled columns: dense products. Some output channels go
 * by at once, so that what is read of the input serves them all. */
#ifndef SFD_FAST_FULL_H
#define SFD_FAST_FULL_H

#include "fast_part.h"
#include "fast_unroll.h"

#if SFD_LANES == 16 || defined(__aarch64__) /* 32 registers */
#define FULL_ROWS 8u
#else
#define FULL_ROWS 4u
#endif
#define FULL_VECTORS 2u /* of an unrolled row at once */

static int keeps_all(const struct sfd_layer *layer)
{
    return layer->shape.groups == 1u &&
           layer->support.count == (uint64_t)layer->support.rows * layer->support.columns;
}

/* sum[r] += W u over all columns, for some vectors of unrolled rows `width` floats long. */
SFD_INLINE void full_gather(vector *sum, const float *w, uint32_t columns, const float *unrolled,
                            size_t width, const uint32_t rows, const uint32_t vectors)
{
    uint32_t k, r, u;

    for (k = 0u; k < columns; ++k, unrolled += width)
#pragma GCC unroll 2
        for (u = 0u; u < vectors; ++u) {
            const vector value = vector_load(unrolled + u * SFD_LANES);
#pragma GCC unroll 8
            for (r = 0u; r < rows; ++r)
                sum[r * vectors + u] += w[(size_t)r * columns + k] * value;
        }
}

/* Some rows of y = bias + W u, whose rows are `floats` long. */
SFD_INLINE void full_forward_rows(const float *w, uint32_t columns, const float *bias,
                                  const float *unrolled, uint32_t width, float *y, uint32_t floats,
                                  const uint32_t rows, const uint32_t vectors)
{
    uint32_t first, r, u;

    for (first = 0u; first < floats; first += vectors * SFD_LANES) {
        const uint32_t run = (uint32_t)sfd_minimum(floats - first, vectors * SFD_LANES);
        vector sum[FULL_ROWS * FULL_VECTORS];
#pragma GCC unroll 8
        for (r = 0u; r < rows; ++r)
#pragma GCC unroll 2
            for (u = 0u; u < vectors; ++u)
                sum[r * vectors + u] = vector_all(bias ? bias[r] : 0.0f);
        full_gather(sum, w, columns, unrolled + first, width, rows, vectors);
#pragma GCC unroll 8
        for (r = 0u; r < rows; ++r) {
            float out[FULL_VECTORS * SFD_LANES];
#pragma GCC unroll 2
            for (u = 0u; u < vectors; ++u)
                vector_store(out + u * SFD_LANES, sum[r * vectors + u]);
            memcpy(y + (size_t)r * floats + first, out, run * sizeof *out);
        }
    }
}

SFD_INLINE void full_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                             const float *unrolled, uint32_t width, float *y, uint32_t floats,
                             const uint32_t vectors)
{
    const uint32_t rows = layer->support.rows, columns = layer->support.columns;
    uint32_t row = 0u;

    for (; rows - row >= FULL_ROWS; row += FULL_ROWS)
        full_forward_rows(w + (size_t)row * columns, columns, bias ? bias + row : NULL, unrolled,
                          width, y + (size_t)row * floats, floats, FULL_ROWS, vectors);
    for (; row < rows; ++row)
        full_forward_rows(w + (size_t)row * columns, columns, bias ? bias + row : NULL, unrolled,
                          width, y + (size_t)row * floats, floats, 1u, vectors);
}

/* Panels of SFD_LANES unrolled rows become as many lanes of one row for each pixel, in place. */
static void full_turn(float *unrolled, uint32_t columns, uint32_t width)
{
    float panel[UNROLLED_FLOATS * SFD_LANES];
    uint32_t k, i, j;

    for (k = 0u; k + SFD_LANES <= columns; k += SFD_LANES, unrolled += (size_t)SFD_LANES * width) {
        for (i = 0u; i < SFD_LANES; ++i)
            for (j = 0u; j < width; ++j)
                panel[j * SFD_LANES + i] = unrolled[i * width + j];
        memcpy(unrolled, panel, (size_t)width * SFD_LANES * sizeof *panel);
    }
}

/* Some rows of a layer: their weights, their gradients (perhaps the same memory), and dy with zeros
 * after its floats. */
struct full_rows {
    const float *w;
    float *gradient;
    int later;
    float dy[FULL_ROWS][UNROLLED_FLOATS];
};

/* du += W^T dy over one panel of columns. */
SFD_INLINE void full_scatter(const struct full_rows *some, uint32_t columns, float *du,
                             uint32_t width, const uint32_t rows, const uint32_t vectors)
{
    uint32_t first, k, r, u;

    for (first = 0u; first < width; first += vectors * SFD_LANES) {
        vector dy[FULL_ROWS * FULL_VECTORS];
        float *to = du + first;
#pragma GCC unroll 8
        for (r = 0u; r < rows; ++r)
#pragma GCC unroll 2
            for (u = 0u; u < vectors; ++u)
                dy[r * vectors + u] = vector_load(some->dy[r] + first + u * SFD_LANES);
        for (k = 0u; k < SFD_LANES; ++k, to += width)
#pragma GCC unroll 2
            for (u = 0u; u < vectors; ++u) {
                vector sum = vector_load(to + u * SFD_LANES);
#pragma GCC unroll 8
                for (r = 0u; r < rows; ++r)
                    sum += some->w[(size_t)r * columns + k] * dy[r * vectors + u];
                vector_store(to + u * SFD_LANES, sum);
            }
    }
}

/* The gradients of one panel of columns, turned. */
SFD_INLINE void full_products(const struct full_rows *some, uint32_t columns, const float *turned,
                              uint32_t floats, const uint32_t rows)
{
    vector sum[FULL_ROWS];
    uint32_t p, r;

#pragma GCC unroll 8
    for (r = 0u; r < rows; ++r)
        sum[r] = some->later ? vector_load(some->gradient + (size_t)r * columns) : vector_all(0.0f);
    for (p = 0u; p < floats; ++p) {
        const vector value = vector_load(turned + p * SFD_LANES);
#pragma GCC unroll 8
        for (r = 0u; r < rows; ++r)
            sum[r] += some->dy[r][p] * value;
    }
#pragma GCC unroll 8
    for (r = 0u; r < rows; ++r)
        vector_store(some->gradient + (size_t)r * columns, sum[r]);
}

/* Whole panels of some rows from `row` on; du NULL: not wanted. */
SFD_INLINE void full_backward_rows(const struct sfd_layer *layer, const struct fast_part *part,
                                   uint32_t row, const float *turned, float *du, uint32_t width,
                                   uint32_t floats, const uint32_t rows, const uint32_t vectors)
{
    const uint32_t columns = layer->support.columns;
    struct full_rows some = {.w = part->w + (size_t)row * columns,
                             .gradient = part->gradient + (size_t)row * columns,
                             .later = part->later};
    uint32_t k, r;

    for (r = 0u; r < rows; ++r) {
        memcpy(some.dy[r], part->dy + (size_t)(row + r) * floats, floats * sizeof(float));
        memset(some.dy[r] + floats, 0, (width - floats) * sizeof(float));
    }
    for (k = 0u; k + SFD_LANES <= columns; k += SFD_LANES) {
        if (du)
            full_scatter(&some, columns, du + (size_t)k * width, width, rows, vectors);
        full_products(&some, columns, turned + (size_t)k * width, floats, rows);
        some.w += SFD_LANES;
        some.gradient += SFD_LANES;
    }
}

SFD_INLINE void full_backward(const struct sfd_layer *layer, const struct fast_part *part,
                              const float *turned, float *du, uint32_t width, uint32_t floats,
                              const uint32_t vectors)
{
    const uint32_t rows = layer->support.rows;
    uint32_t row = 0u;

    for (; rows - row >= FULL_ROWS; row += FULL_ROWS)
        full_backward_rows(layer, part, row, turned, du, width, floats, FULL_ROWS, vectors);
    for (; row < rows; ++row)
        full_backward_rows(layer, part, row, turned, du, width, floats, 1u, vectors);
}
#endif
