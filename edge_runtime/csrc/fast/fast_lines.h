/* Lines: strips of rows, copied with zeros between the rows, wide enough that a shifted read never
 * meets the next row. A strip is one long line, and every tap a constant shift along it. Strides are
 * resolved by the copy: it puts the pixels of each phase side by side. */
#ifndef SFD_FAST_LINES_H
#define SFD_FAST_LINES_H

#include "fast_gather.h"

/* How the images that are read lie in the copy. Lengths in floats but for the rows. */
struct fast_lines {
    uint32_t images;
    uint32_t rows;  /* of a strip's output */
    uint32_t above; /* rows that are read above the first one */
    uint32_t held;  /* rows of a phase in the copy */
    uint32_t row;   /* from row to row: its pixels and the zeros after them */
    uint32_t lead;  /* zeros before the first row */
    uint32_t plane; /* of one phase of one channel */
    uint32_t line;  /* of a strip's output: rows * row, in whole vectors */
    uint32_t phases_y, phases_x;
};

/* How far taps reach along one axis, in rows or columns of a phase; 0 is always reached. */
struct fast_reach {
    uint32_t below, beyond;
};

static int32_t floor_division(int32_t value, uint32_t divisor)
{
    const int32_t by = (int32_t)divisor;

    return value >= 0 ? value / by : -((by - 1 - value) / by);
}

/* Output pixel i of a forward reads phase pixels i - below to i + beyond; of a backward, the other
 * way round. */
static struct fast_reach forward_reach(uint32_t kernel, uint32_t dilation, uint32_t padding,
                                       uint32_t stride)
{
    const int32_t last = (int32_t)((kernel - 1u) * dilation) - (int32_t)padding;
    const int32_t low = floor_division(-(int32_t)padding, stride);
    const int32_t high = floor_division(last, stride);
    struct fast_reach reach;

    reach.below = low < 0 ? (uint32_t)-low : 0u;
    reach.beyond = high > 0 ? (uint32_t)high : 0u;
    return reach;
}

static struct fast_reach backward_reach(uint32_t kernel, uint32_t dilation, uint32_t padding,
                                        uint32_t stride)
{
    const struct fast_reach forward = forward_reach(kernel, dilation, padding, stride);
    struct fast_reach reach;

    reach.below = forward.beyond;
    reach.beyond = forward.below;
    return reach;
}

/* Rows of a strip, so that `row_bytes` for each stay within the budget. */
static uint32_t line_rows(uint32_t height, uint64_t row_bytes, struct fast_reach reach)
{
    uint32_t rows = 1u;

    while (rows < height && (rows + 1u + reach.below + reach.beyond) * row_bytes <= STRIP_BYTES)
        ++rows;
    return rows;
}

/* The copy for strips of `rows` rows of an output `width` pixels wide, which reads images `in_width`
 * pixels wide (of one phase). */
static void lines_measure(struct fast_lines *lines, uint32_t images, uint32_t rows, uint32_t width,
                          uint32_t in_width, struct fast_reach y, struct fast_reach x)
{
    const uint32_t before = in_width + x.below, after = width + x.beyond;

    lines->images = images;
    lines->rows = rows;
    lines->above = y.below;
    lines->held = rows + y.below + y.beyond;
    lines->row = (before > after ? before : after) * images;
    lines->lead = x.below * images;
    lines->line = (rows * lines->row + PIXEL - 1u) / PIXEL * PIXEL;
    lines->plane = lines->lead + lines->held * lines->row + x.beyond * images + PIXEL;
}

static struct fast_lines forward_lines(const struct sfd_layer *layer, uint32_t images)
{
    const struct sfd_convolution *shape = &layer->shape;
    const struct fast_reach y =
        forward_reach(shape->kernel_h, shape->dilation_h, shape->padding_h, shape->stride_h);
    const struct fast_reach x =
        forward_reach(shape->kernel_w, shape->dilation_w, shape->padding_w, shape->stride_w);
    const uint64_t row_bytes = ((uint64_t)layer->in_channels * layer->in_width * shape->stride_h +
                                (uint64_t)layer->support.rows * layer->out_width) *
                               images * 4u;
    struct fast_lines lines;

    lines.phases_y = shape->stride_h;
    lines.phases_x = shape->stride_w;
    lines_measure(&lines, images, line_rows(layer->out_height, row_bytes, y), layer->out_width,
                  phase_length(layer->in_width, 0u, shape->stride_w), y, x);
    return lines;
}

static struct fast_lines backward_lines(const struct sfd_layer *layer, uint32_t images)
{
    const struct sfd_convolution *shape = &layer->shape;
    const struct fast_reach y =
        backward_reach(shape->kernel_h, shape->dilation_h, shape->padding_h, shape->stride_h);
    const struct fast_reach x =
        backward_reach(shape->kernel_w, shape->dilation_w, shape->padding_w, shape->stride_w);
    const uint64_t row_bytes =
        ((uint64_t)layer->in_channels * layer->in_width * (shape->stride_h + 1u) +
         (uint64_t)layer->support.rows * layer->out_width) *
        images * 4u;
    struct fast_lines lines;

    lines.phases_y = lines.phases_x = 1u;
    lines_measure(&lines, images,
                  line_rows(phase_length(layer->in_height, 0u, shape->stride_h), row_bytes, y),
                  phase_length(layer->in_width, 0u, shape->stride_w), layer->out_width, y, x);
    return lines;
}

/* The taps get their offsets in the copy; they shift nothing else any more. */
static void lines_place(const struct fast_lines *lines, struct fast_program *program)
{
    uint32_t t;

    for (t = 0u; t < program->taps; ++t) {
        struct fast_tap *tap = &program->tap[t];
        const int32_t row = floor_division(tap->shift_y, lines->phases_y);
        const int32_t column = floor_division(tap->shift_x, lines->phases_x);
        const uint32_t phase_y = (uint32_t)(tap->shift_y - row * (int32_t)lines->phases_y);
        const uint32_t phase_x = (uint32_t)(tap->shift_x - column * (int32_t)lines->phases_x);
        tap->offset =
            (int32_t)((phase_y * lines->phases_x + phase_x) * lines->plane + lines->lead) +
            (row + (int32_t)lines->above) * (int32_t)lines->row + column * (int32_t)lines->images;
        tap->shift_y = tap->shift_x = 0;
    }
}

/* One row of an image to the phases of its columns, zeros after it. */
static void row_to_phases(const float *from, uint32_t width, const struct fast_lines *lines,
                          float *to, size_t phase_stride)
{
    const uint32_t images = lines->images, step = lines->phases_x;
    uint32_t phase, x, i;

    for (phase = 0u; phase < step; ++phase) {
        float *out = to + phase * phase_stride;
        uint32_t filled = 0u;
        if (step == 1u) {
            memcpy(out, from, (size_t)width * images * sizeof *out);
            filled = width * images;
        } else {
            for (x = phase; x < width; x += step)
                for (i = 0u; i < images; ++i)
                    out[filled++] = from[(size_t)x * images + i];
        }
        memset(out + filled, 0, (lines->row - filled) * sizeof *out);
    }
}

/* Copy what a strip reads, from row `top` of the output on, of all channels. */
static void copy_strip(const float *images, uint32_t channels, uint32_t height, uint32_t width,
                       const struct fast_lines *lines, uint32_t top, float *copy)
{
    const uint32_t row = width * lines->images;
    const size_t phases = (size_t)lines->phases_y * lines->phases_x;
    uint32_t c, phase, held, x;

    for (c = 0u; c < channels; ++c)
        for (phase = 0u; phase < lines->phases_y; ++phase) {
            float *plane = copy + (c * phases + (size_t)phase * lines->phases_x) * lines->plane;
            for (x = 0u; x < lines->phases_x; ++x) {
                float *end = plane + (size_t)(x + 1u) * lines->plane;
                memset(plane + (size_t)x * lines->plane, 0, lines->lead * sizeof *plane);
                memset(end - (lines->plane - lines->lead - lines->held * lines->row), 0,
                       (lines->plane - lines->lead - lines->held * lines->row) * sizeof *plane);
            }
            for (held = 0u; held < lines->held; ++held) {
                const int64_t y = ((int64_t)top + held - lines->above) * lines->phases_y + phase;
                float *to = plane + lines->lead + (size_t)held * lines->row;
                if (y >= 0 && y < (int64_t)height)
                    row_to_phases(images + ((size_t)c * height + (size_t)y) * row, width, lines, to,
                                  lines->plane);
                else
                    for (x = 0u; x < lines->phases_x; ++x)
                        memset(to + (size_t)x * lines->plane, 0, lines->row * sizeof *to);
            }
        }
}

/* One line of 16-float pixels, every tap inside. */
static struct fast_map line_map(const struct fast_lines *lines)
{
    struct fast_map map;

    map.height = map.in_height = 1u;
    map.width = map.in_width = lines->line / PIXEL;
    map.step_y = map.step_x = 1u;
    return map;
}

#endif
