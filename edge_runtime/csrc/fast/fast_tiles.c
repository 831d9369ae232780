/* Where the taps of a layer read, and how images are cut into tiles. */
#include "fast_program.h"

static uint32_t modulo(int64_t value, uint32_t divisor)
{
    int64_t rest = value % (int64_t)divisor;

    return (uint32_t)(rest < 0 ? rest + (int64_t)divisor : rest);
}

/* The phase along one axis whose pixels kernel offset `offset` reaches. */
static uint32_t tap_phase(uint32_t offset, uint32_t dilation, uint32_t padding, uint32_t stride)
{
    return modulo((int64_t)offset * dilation - padding, stride);
}

/* Pixel `phase + stride * i` of dx reads pixel i + shift of dy. */
static int32_t tap_shift(uint32_t offset, uint32_t dilation, uint32_t padding, uint32_t stride,
                         uint32_t phase)
{
    return (int32_t)(((int64_t)phase + padding - (int64_t)offset * dilation) / (int64_t)stride);
}

void fast_taps_forward(struct fast_program *program, const struct sfd_layer *layer)
{
    const struct sfd_convolution *shape = &layer->shape;
    struct fast_tap *tap = program->tap;
    uint32_t y, x;

    for (x = 0u; x < shape->kernel_w; ++x)
        for (y = 0u; y < shape->kernel_h; ++y, ++tap) {
            tap->kernel_y = (uint16_t)y;
            tap->kernel_x = (uint16_t)x;
            tap->shift_y = (int32_t)(y * shape->dilation_h) - (int32_t)shape->padding_h;
            tap->shift_x = (int32_t)(x * shape->dilation_w) - (int32_t)shape->padding_w;
        }
}

/* The taps of one phase. Returns the one after the last. */
static struct fast_tap *phase_taps(const struct sfd_convolution *shape, uint32_t phase_y,
                                   uint32_t phase_x, struct fast_tap *tap)
{
    uint32_t y, x;

    for (x = shape->kernel_w; x-- > 0u;) {
        if (tap_phase(x, shape->dilation_w, shape->padding_w, shape->stride_w) != phase_x)
            continue;
        for (y = shape->kernel_h; y-- > 0u;) {
            if (tap_phase(y, shape->dilation_h, shape->padding_h, shape->stride_h) != phase_y)
                continue;
            tap->kernel_y = (uint16_t)y;
            tap->kernel_x = (uint16_t)x;
            tap->shift_y =
                tap_shift(y, shape->dilation_h, shape->padding_h, shape->stride_h, phase_y);
            tap->shift_x =
                tap_shift(x, shape->dilation_w, shape->padding_w, shape->stride_w, phase_x);
            ++tap;
        }
    }
    return tap;
}

void fast_taps_backward(struct fast_program *program, const struct sfd_layer *layer)
{
    struct fast_tap *tap = program->tap;
    uint16_t *phase = program->phase;
    uint32_t y, x;

    for (y = 0u; y < layer->shape.stride_h; ++y)
        for (x = 0u; x < layer->shape.stride_w; ++x, ++phase) {
            *phase = (uint16_t)(tap - program->tap);
            tap = phase_taps(&layer->shape, y, x, tap);
        }
    *phase = (uint16_t)program->taps;
}

void fast_taps_place(struct fast_program *program, size_t row_stride, size_t pixel_stride)
{
    uint32_t t;

    for (t = 0u; t < program->taps; ++t)
        program->tap[t].offset = program->tap[t].shift_y * (int32_t)row_stride +
                                 program->tap[t].shift_x * (int32_t)pixel_stride;
}

uint32_t fast_tile_columns(uint32_t width, uint32_t x, uint32_t limit)
{
    uint32_t tiles = (width + limit - 1u) / limit, wide = (width + tiles - 1u) / tiles;

    return width - x < wide ? width - x : wide; /* as even as can be: no narrow rest */
}

uint32_t fast_tile_rows(uint32_t height, uint32_t y, uint32_t columns, uint32_t limit)
{
    uint32_t rows = 4u;

    while (rows > 1u && (rows * columns > limit || rows > height - y))
        rows /= 2u;
    return rows;
}

/* Pixels [*low, *high) of `count` from `start` on whose input is inside [0, in). */
static void valid_pixels(uint32_t start, uint32_t count, uint32_t step, int32_t shift, uint32_t in,
                         uint8_t *low, uint8_t *high)
{
    int64_t at = (int64_t)start * step + shift;
    uint32_t i = 0u;

    while (i < count && at + (int64_t)i * step < 0)
        ++i;
    *low = (uint8_t)i;
    while (i < count && at + (int64_t)i * step < (int64_t)in)
        ++i;
    *high = (uint8_t)i;
}

static uint32_t edge(uint32_t low, uint32_t high, uint32_t count)
{
    if (low == 0u)
        return high == count ? FAST_ALL : high + 1u == count ? FAST_BUT_LAST : FAST_IRREGULAR;
    return low == 1u && high == count ? FAST_BUT_FIRST : FAST_IRREGULAR;
}

void fast_tile_runs(struct fast_tile *tile, const struct fast_map *map, const struct fast_tap *tap,
                    uint32_t first, uint32_t last)
{
    uint32_t t;

    tile->run_count = 0u;
    tile->irregular = 0;
    for (t = first; t < last; ++t) {
        struct fast_run *run = &tile->run[tile->run_count];
        struct fast_run *before = tile->run_count > 0u ? run - 1 : NULL;
        uint32_t rows, columns;
        valid_pixels(tile->y, tile->rows, map->step_y, tap[t].shift_y, map->in_height, &run->top,
                     &run->bottom);
        valid_pixels(tile->x, tile->columns, map->step_x, tap[t].shift_x, map->in_width, &run->left,
                     &run->right);
        if (run->top == run->bottom || run->left == run->right)
            continue;
        rows = edge(run->top, run->bottom, tile->rows);
        columns = edge(run->left, run->right, tile->columns);
        run->pattern = (uint8_t)(rows == FAST_IRREGULAR || columns == FAST_IRREGULAR
                                     ? FAST_IRREGULAR
                                     : FAST_PATTERN(rows, columns));
        run->pixels = (uint16_t)((run->bottom - run->top) * (run->right - run->left));
        tile->irregular |= run->pattern == FAST_IRREGULAR;
        run->first = t;
        run->last = t + 1u;
        if (before && before->last == t && before->top == run->top &&
            before->bottom == run->bottom && before->left == run->left &&
            before->right == run->right)
            before->last = t + 1u;
        else
            ++tile->run_count;
    }
}
