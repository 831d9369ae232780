/* Convolutions over a block of fewer than 16 images.
 *
 * A pixel is less than a vector there. So rows are copied into lines, and the kernels for whole blocks
 * run over a line as over one row of pixels of 16 floats. */
#ifndef SFD_FAST_SMALL_H
#define SFD_FAST_SMALL_H

#include "fast_lines.h"
#include "fast_pair.h"
#include "fast_part.h"

static uint64_t forward_copy_bytes(const struct sfd_layer *layer, const struct fast_lines *lines)
{
    return aligned_bytes((uint64_t)layer->in_channels * lines->phases_y * lines->phases_x *
                         lines->plane * 4u);
}

static uint64_t small_forward_bytes(const struct sfd_layer *layer, uint32_t images)
{
    const struct fast_lines lines = forward_lines(layer, images);
    const uint64_t taps = sfd_kernel_area(layer);

    return fast_program_bytes(layer) + aligned_bytes(taps * sizeof(struct fast_run)) +
           forward_copy_bytes(layer, &lines) + (uint64_t)layer->support.rows * lines.line * 4u;
}

static void small_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                          const float *x, float *y, uint32_t images, uint8_t *scratch)
{
    const uint32_t out_row = layer->out_width * images;
    struct fast_program program;
    uint8_t *cursor = fast_program_lay(&program, layer, scratch);
    struct fast_run *runs = (void *)cursor;
    struct fast_images strip;
    const struct fast_lines lines = forward_lines(layer, images);
    const uint64_t copy_bytes = forward_copy_bytes(layer, &lines);
    float *copy = (void *)(cursor + aligned_bytes(program.taps * sizeof *runs));
    float *result = copy + copy_bytes / sizeof *copy;
    uint32_t top, c, i;

    fast_taps_forward(&program, layer);
    lines_place(&lines, &program);
    strip.map = line_map(&lines);
    /* of each row of the kernel a tile reads its own length, and a vector for the shifts */
    fast_program_forward(&program, layer, (size_t)lines.phases_y * lines.phases_x * lines.plane,
                         layer->shape.kernel_h * gather_window(&strip.map, 1u, 2u), 1u, w);
    strip.first_channel = 0u;
    strip.last_channel = program.channels;
    strip.first_row = strip.x_first_row = 0u;
    strip.last_row = 1u;
    strip.x = copy;
    strip.x_row = 0u;
    strip.x_pixel = PIXEL;
    strip.y = result;
    strip.y_channel = lines.line;
    strip.y_row = 0u;
    for (top = 0u; top < layer->out_height; top += lines.rows) {
        const uint32_t rows =
            layer->out_height - top < lines.rows ? layer->out_height - top : lines.rows;
        copy_strip(x, layer->in_channels, layer->in_height, layer->in_width, &lines, top, copy);
        (void)gather_images(&program, &strip, runs, bias);
        for (c = 0u; c < layer->support.rows; ++c)
            for (i = 0u; i < rows; ++i)
                memcpy(y + ((size_t)c * layer->out_height + top + i) * out_row,
                       result + (size_t)c * lines.line + (size_t)i * lines.row,
                       out_row * sizeof *y);
    }
}

struct small_backward {
    struct fast_program program;
    struct fast_lines lines; /* of dy; x and dx lie in lines of the same rows */
    struct fast_tile *tiles;
    struct fast_run *runs;
    vector *partial;
    float *dy, *x, *dx, *row;
};

/* Rows [top, top + rows) of phase rows: x into the lines of all phases, zeros elsewhere. */
static void copy_x(const struct small_backward *backward, const struct sfd_layer *layer,
                   const struct fast_part *part, uint32_t top)
{
    const struct fast_lines *lines = &backward->lines;
    const uint32_t stride_y = layer->shape.stride_h, stride_x = layer->shape.stride_w;
    const uint32_t row = layer->in_width * lines->images;
    struct fast_lines phased = *lines;
    uint32_t c, i, y;

    phased.phases_x = stride_x;
    for (c = 0u; c < layer->in_channels; ++c) {
        float *to = backward->x + (size_t)c * stride_y * stride_x * lines->line;
        memset(to, 0, (size_t)stride_y * stride_x * lines->line * sizeof *to);
        for (i = 0u; i < lines->rows; ++i)
            for (y = 0u; y < stride_y; ++y) {
                const uint32_t at = (top + i) * stride_y + y;
                const float *from = backward->row;
                if (at >= layer->in_height)
                    continue;
                if (part->x)
                    from = part->x + ((size_t)c * layer->in_height + at) * row;
                else
                    unpack_rows(part->unpacking, c, at, 1u, backward->row);
                row_to_phases(from, layer->in_width, &phased,
                              to + (size_t)y * stride_x * lines->line + (size_t)i * lines->row,
                              lines->line);
            }
    }
}

/* To every `step`th pixel of a row, or the sums of it and what is there. */
SFD_INLINE void place_row(const float *from, uint32_t pixels, uint32_t images, uint32_t step,
                          float *to, const int accumulate)
{
    uint32_t x, j;

    for (x = 0u; x < pixels; ++x, from += images, to += (size_t)step * images)
        for (j = 0u; j < images; ++j)
            to[j] = accumulate ? to[j] + from[j] : from[j];
}

/* One phase of dx from its lines to where it belongs. */
static void place_dx(const struct small_backward *backward, const struct sfd_layer *layer,
                     const struct fast_part *part, uint32_t top, uint32_t phase_y, uint32_t phase_x)
{
    const struct fast_lines *lines = &backward->lines;
    const uint32_t stride_y = layer->shape.stride_h, stride_x = layer->shape.stride_w;
    const uint32_t images = lines->images,
                   pixels = phase_length(layer->in_width, phase_x, stride_x);
    uint32_t c, i, y;

    for (c = 0u; c < layer->in_channels; ++c)
        for (i = 0u; i < lines->rows; ++i) {
            const float *from = backward->dx + (size_t)c * lines->line + (size_t)i * lines->row;
            float *to;
            y = (top + i) * stride_y + phase_y;
            if (y >= layer->in_height)
                break;
            to = part->dx +
                 (((size_t)c * layer->in_height + y) * layer->in_width + phase_x) * images;
            if (stride_x == 1u && part->accumulate) /* one run */
                place_row(from, 1u, pixels * images, 1u, to, 1);
            else if (stride_x == 1u)
                memcpy(to, from, (size_t)pixels * images * sizeof *to);
            else if (part->accumulate)
                place_row(from, pixels, images, stride_x, to, 1);
            else
                place_row(from, pixels, images, stride_x, to, 0);
        }
}

/* Lay the working memory out. Returns its bytes; with cursor NULL it only counts. */
static uint64_t small_backward_lay(struct small_backward *backward, const struct sfd_layer *layer,
                                   uint8_t *cursor)
{
    const struct fast_lines *lines = &backward->lines;
    const uint64_t phases = (uint64_t)layer->shape.stride_h * layer->shape.stride_w;
    const uint64_t tiles = lines->line / PIXEL;
    const uint64_t taps = sfd_kernel_area(layer);
    const uint64_t bytes[7] = {
        aligned_bytes(tiles * sizeof *backward->tiles),
        aligned_bytes(tiles * taps * sizeof *backward->runs),
        partial_bytes(layer),
        aligned_bytes((uint64_t)layer->in_width * lines->images * 4u),
        aligned_bytes((uint64_t)layer->support.rows * lines->plane * 4u),
        aligned_bytes((uint64_t)layer->in_channels * phases * lines->line * 4u),
        aligned_bytes((uint64_t)layer->in_channels * lines->line * 4u),
    };
    void *part[7];
    uint64_t total = fast_program_bytes(layer);
    uint32_t i;

    if (cursor != NULL)
        cursor = fast_program_lay(&backward->program, layer, cursor);
    for (i = 0u; i < 7u; ++i) {
        part[i] = cursor;
        cursor = cursor != NULL ? cursor + bytes[i] : NULL;
        total += bytes[i];
    }
    backward->tiles = part[0];
    backward->runs = part[1];
    backward->partial = part[2];
    backward->row = part[3];
    backward->dy = part[4];
    backward->x = part[5];
    backward->dx = part[6];
    return total;
}

static uint64_t small_backward_bytes(const struct sfd_layer *layer, uint32_t images)
{
    struct small_backward backward;

    backward.lines = backward_lines(layer, images);
    return small_backward_lay(&backward, layer, NULL);
}

static void small_phases(struct small_backward *backward, const struct sfd_layer *layer,
                         const struct fast_part *part, uint32_t top)
{
    const struct fast_lines *lines = &backward->lines;
    const uint32_t stride_y = layer->shape.stride_h, stride_x = layer->shape.stride_w;
    struct sfd_multiply_adds ignored;
    struct fast_strip strip;
    uint32_t phase_y, phase_x;

    memset(&ignored, 0, sizeof ignored);
    strip.map = line_map(lines);
    strip.first_channel = 0u;
    strip.last_channel = backward->program.channels;
    strip.first_row = strip.x_first_row = 0u;
    strip.last_row = 1u;
    strip.dy = backward->dy;
    strip.dy_row = strip.x_row = strip.dx_row = 0u;
    strip.gradient = backward->program.gradient;
    strip.x_channel = (size_t)stride_y * stride_x * lines->line;
    strip.x_pixel = strip.dx_pixel = PIXEL;
    strip.dx = part->dx ? backward->dx : NULL;
    strip.dx_channel = lines->line;
    strip.accumulate = 0;
    for (phase_y = 0u; phase_y < stride_y; ++phase_y)
        for (phase_x = 0u; phase_x < stride_x; ++phase_x) {
            const uint32_t phase = phase_y * stride_x + phase_x;
            strip.first_tap = backward->program.phase[phase];
            strip.last_tap = backward->program.phase[phase + 1u];
            strip.x = backward->x + (size_t)phase * lines->line;
            pair_strip(&backward->program, &strip, backward->tiles, backward->runs,
                       backward->partial, &ignored);
            if (part->dx)
                place_dx(backward, layer, part, top, phase_y, phase_x);
        }
}

static void small_backward_part(const struct sfd_layer *layer, const struct fast_part *part,
                                uint8_t *scratch)
{
    struct small_backward backward;
    const uint32_t height = phase_length(layer->in_height, 0u, layer->shape.stride_h);
    uint32_t top;

    backward.lines = backward_lines(layer, part->images);
    (void)small_backward_lay(&backward, layer, scratch);
    fast_taps_backward(&backward.program, layer);
    lines_place(&backward.lines, &backward.program);
    fast_program_backward(&backward.program, layer, backward.lines.plane, pair_blocks(layer),
                          part->w);
    memset(backward.program.gradient, 0, layer->support.count * sizeof(float));
    for (top = 0u; top < height; top += backward.lines.rows) {
        copy_strip(part->dy, layer->support.rows, layer->out_height, layer->out_width,
                   &backward.lines, top, backward.dy);
        copy_x(&backward, layer, part, top);
        small_phases(&backward, layer, part, top);
    }
    fast_program_collect(&backward.program, layer, part->gradient, part->later);
}
#endif
