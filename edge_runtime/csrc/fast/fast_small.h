/* Convolutions over a block of fewer than 16 images.
 *
 * A pixel is less than a vector there. So strips of rows are copied with zeros between the rows, wide
 * enough that a shifted read never meets the next row: a strip is one long line, every tap a constant
 * shift along it, and the kernels for whole blocks run over it as over one row of pixels of 16
 * floats. Strides are resolved by the copy: it puts the pixels of each phase side by side. */
#ifndef SFD_FAST_SMALL_H
#define SFD_FAST_SMALL_H

#include "fast_pair.h"
#include "fast_unpack.h"

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

static uint64_t forward_copy_bytes(const struct sfd_layer *layer, const struct fast_lines *lines)
{
    return aligned_bytes((uint64_t)layer->in_channels * lines->phases_y * lines->phases_x *
                         lines->plane * 4u);
}

static uint64_t small_forward_bytes(const struct sfd_layer *layer, uint32_t images)
{
    const struct fast_lines lines = forward_lines(layer, images);
    const uint64_t taps = (uint64_t)layer->shape.kernel_h * layer->shape.kernel_w;

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
    strip.x = copy;
    strip.x_row = 0u;
    strip.x_pixel = PIXEL;
    strip.y = result;
    strip.y_channel = lines.line;
    strip.y_row = 0u;
    strip.y_pixel = PIXEL;
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
                   const float *dense, struct fast_unpacking *unpacking, uint32_t top)
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
                if (dense)
                    from = dense + ((size_t)c * layer->in_height + at) * row;
                else
                    unpack_rows(unpacking, c, at, 1u, backward->row);
                row_to_phases(from, layer->in_width, &phased,
                              to + (size_t)y * stride_x * lines->line + (size_t)i * lines->row,
                              lines->line);
            }
    }
}

/* One phase of dx from its lines to where it belongs. */
static void place_dx(const struct small_backward *backward, const struct sfd_layer *layer,
                     uint32_t top, uint32_t phase_y, uint32_t phase_x, float *dx, int accumulate)
{
    const struct fast_lines *lines = &backward->lines;
    const uint32_t stride_y = layer->shape.stride_h, stride_x = layer->shape.stride_w;
    const uint32_t images = lines->images;
    uint32_t c, i, x, j;

    for (c = 0u; c < layer->in_channels; ++c)
        for (i = 0u; i < lines->rows; ++i) {
            const float *from = backward->dx + (size_t)c * lines->line + (size_t)i * lines->row;
            const uint32_t y = (top + i) * stride_y + phase_y;
            float *to = dx + ((size_t)c * layer->in_height + y) * layer->in_width * images;
            if (y >= layer->in_height)
                break;
            for (x = phase_x; x < layer->in_width; x += stride_x, from += images)
                for (j = 0u; j < images; ++j)
                    to[(size_t)x * images + j] =
                        accumulate ? to[(size_t)x * images + j] + from[j] : from[j];
        }
}

/* Lay the working memory out. Returns its bytes; with cursor NULL it only counts. */
static uint64_t small_backward_lay(struct small_backward *backward, const struct sfd_layer *layer,
                                   uint8_t *cursor)
{
    const struct fast_lines *lines = &backward->lines;
    const uint64_t phases = (uint64_t)layer->shape.stride_h * layer->shape.stride_w;
    const uint64_t tiles = lines->line / PIXEL;
    const uint64_t taps = (uint64_t)layer->shape.kernel_h * layer->shape.kernel_w;
    const uint64_t column = (uint64_t)layer->support.rows / layer->shape.groups * taps;
    const uint64_t bytes[7] = {
        aligned_bytes(tiles * sizeof *backward->tiles),
        aligned_bytes(tiles * taps * sizeof *backward->runs),
        aligned_bytes(column * SFD_BLOCK * 4u),
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
                         uint32_t top, float *dx, int accumulate)
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
    strip.first_row = 0u;
    strip.last_row = 1u;
    strip.dy = backward->dy;
    strip.dy_row = strip.x_row = strip.dx_row = 0u;
    strip.x_channel = (size_t)stride_y * stride_x * lines->line;
    strip.x_pixel = strip.dx_pixel = PIXEL;
    strip.dx = dx ? backward->dx : NULL;
    strip.dx_channel = lines->line;
    strip.accumulate = 0;
    for (phase_y = 0u; phase_y < stride_y; ++phase_y)
        for (phase_x = 0u; phase_x < stride_x; ++phase_x) {
            fast_phase_taps(layer, phase_y, phase_x, &strip.first_tap, &strip.last_tap);
            strip.x = backward->x + (size_t)(phase_y * stride_x + phase_x) * lines->line;
            pair_strip(&backward->program, &strip, backward->tiles, backward->runs,
                       backward->partial, &ignored);
            if (dx)
                place_dx(backward, layer, top, phase_y, phase_x, dx, accumulate);
        }
}

static void small_backward_block(const struct sfd_layer *layer, const float *w, const float *x,
                                 struct fast_unpacking *unpacking, const float *dy, float *dx,
                                 int accumulate, float *gradient, int later, uint32_t images,
                                 uint8_t *scratch)
{
    struct small_backward working, *backward = &working;
    const uint32_t height = phase_length(layer->in_height, 0u, layer->shape.stride_h);
    uint32_t top;

    backward->lines = backward_lines(layer, images);
    (void)small_backward_lay(backward, layer, scratch);
    fast_taps_backward(&backward->program, layer);
    lines_place(&backward->lines, &backward->program);
    fast_program_backward(&backward->program, layer, backward->lines.plane, w);
    memset(backward->program.gradient, 0, layer->support.count * sizeof(float));
    for (top = 0u; top < height; top += backward->lines.rows) {
        copy_strip(dy, layer->support.rows, layer->out_height, layer->out_width, &backward->lines,
                   top, backward->dy);
        copy_x(backward, layer, x, unpacking, top);
        small_phases(backward, layer, top, dx, accumulate);
    }
    fast_program_collect(&backward->program, layer, gradient, later);
}
#endif
