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

/* One channel into its unrolled rows. */
static void unroll_channel(const struct fast_unrolling *unrolling, const float *x, float *row)
{
    const struct sfd_layer *layer = unrolling->layer;
    const uint32_t images = unrolling->images, step = layer->shape.stride_w * images;
    const size_t row_step = (size_t)layer->shape.stride_h * layer->in_width * images;
    uint32_t t, y, px, i;

    for (t = 0u; t < sfd_kernel_area(layer); ++t, row += unrolling->width) {
        const struct fast_cells *cells = &unrolling->cells[t];
        const uint32_t run = (cells->x_high - cells->x_low) * images;
        memset(row, 0, unrolling->width * sizeof *row);
        for (y = cells->y_low; y < cells->y_high; ++y) {
            const float *from = x + cells->start + (y - cells->y_low) * row_step;
            float *to = row + (y * layer->out_width + cells->x_low) * images;
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

/* x += what the unrolled rows of a channel gathered. */
static void roll_up_channel(const struct fast_unrolling *unrolling, const float *row, float *x)
{
    const struct sfd_layer *layer = unrolling->layer;
    const uint32_t images = unrolling->images, step = layer->shape.stride_w * images;
    const size_t row_step = (size_t)layer->shape.stride_h * layer->in_width * images;
    uint32_t t, y, px, i;

    for (t = 0u; t < sfd_kernel_area(layer); ++t, row += unrolling->width) {
        const struct fast_cells *cells = &unrolling->cells[t];
        const uint32_t run = (cells->x_high - cells->x_low) * images;
        for (y = cells->y_low; y < cells->y_high; ++y) {
            const float *from = row + (y * layer->out_width + cells->x_low) * images;
            float *to = x + cells->start + (y - cells->y_low) * row_step;
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

#endif
