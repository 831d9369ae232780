/* Inputs unrolled into columns: one row for each column of the weight, with what each output pixel
 * reads there, zeros where that is outside the image. */
#ifndef SFD_FAST_UNROLL_H
#define SFD_FAST_UNROLL_H

#include "fast_vector.h"

#define UNROLLED_FLOATS 64u /* most of an unrolled row */

/* The pixels of an unrolled row, which reads one channel through one tap. */
struct fast_cells {
    uint32_t y_low, y_high, x_low, x_high; /* of the output, where the input is inside */
    size_t start; /* of the input that pixel (y_low, x_low) reads, in floats of the channel */
};

struct fast_unrolling {
    const struct sfd_layer *layer;
    const struct fast_cells *cells; /* of all taps */
    uint32_t images;
    uint32_t width; /* floats of an unrolled row; those after the pixels stay 0 */
};

/* The cells of all taps. */
static void cells_find(const struct sfd_layer *layer, uint32_t images, struct fast_cells *cells)
{
    const struct sfd_convolution *shape = &layer->shape;
    uint32_t y, x;

    for (y = 0u; y < shape->kernel_h; ++y)
        for (x = 0u; x < shape->kernel_w; ++x, ++cells) {
            const uint32_t at_y = y * shape->dilation_h, at_x = x * shape->dilation_w;
            sfd_valid_range(layer->in_height, layer->out_height, shape->stride_h, shape->padding_h,
                            at_y, &cells->y_low, &cells->y_high);
            sfd_valid_range(layer->in_width, layer->out_width, shape->stride_w, shape->padding_w,
                            at_x, &cells->x_low, &cells->x_high);
            cells->start = 0u;
            if (cells->y_low < cells->y_high && cells->x_low < cells->x_high)
                cells->start = ((size_t)(cells->y_low * shape->stride_h + at_y - shape->padding_h) *
                                    layer->in_width +
                                cells->x_low * shape->stride_w + at_x - shape->padding_w) *
                               images;
        }
}

/* The pixels of one row of the output that a tap reads, from the channel to the unrolled row, or back
 * to where they are added up. */
SFD_INLINE void unroll_pixels(float *x, size_t step, float *row, uint32_t count, uint32_t images,
                              const int back)
{
    uint32_t pixel, i;

    for (pixel = 0u; pixel < count; ++pixel, x += step, row += images)
        for (i = 0u; i < images; ++i)
            if (back)
                x[i] += row[i];
            else
                row[i] = x[i];
}

SFD_INLINE void unroll_either(const struct fast_unrolling *unrolling, float *x, float *row,
                              const int back)
{
    const struct sfd_layer *layer = unrolling->layer;
    const uint32_t images = unrolling->images, step = layer->shape.stride_w * images;
    const size_t row_step = (size_t)layer->shape.stride_h * layer->in_width * images;
    uint32_t t, y;

    for (t = 0u; t < sfd_kernel_area(layer); ++t, row += unrolling->width) {
        const struct fast_cells *cells = &unrolling->cells[t];
        const uint32_t count = cells->x_high - cells->x_low;
        if (!back)
            memset(row, 0, unrolling->width * sizeof *row);
        for (y = cells->y_low; y < cells->y_high; ++y) {
            float *at = x + cells->start + (y - cells->y_low) * row_step;
            float *cell = row + (y * layer->out_width + cells->x_low) * images;
            if (step == images) /* one run */
                unroll_pixels(at, 0u, cell, 1u, count * images, back);
            else
                unroll_pixels(at, step, cell, count, images, back);
        }
    }
}

/* One channel into its unrolled rows. x is only read. */
static void unroll_channel(const struct fast_unrolling *unrolling, const float *x, float *row)
{
    unroll_either(unrolling, (float *)(uintptr_t)x, row, 0);
}

/* x += what the unrolled rows of a channel gathered; those are only read. */
static void roll_up_channel(const struct fast_unrolling *unrolling, const float *row, float *x)
{
    unroll_either(unrolling, x, (float *)(uintptr_t)row, 1);
}

#endif
