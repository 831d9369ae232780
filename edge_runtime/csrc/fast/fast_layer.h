/* The passes over a convolution or linear layer. */
#ifndef SFD_FAST_LAYER_H
#define SFD_FAST_LAYER_H

#include "fast_columns.h"
#include "fast_small.h"

/* Whole blocks of 16 images. */
static uint64_t gather_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                               const float *x, float *y, uint32_t blocks, uint8_t *scratch)
{
    const size_t in_row = (size_t)layer->in_width * PIXEL, in_plane = layer->in_height * in_row;
    const size_t out_row = (size_t)layer->out_width * PIXEL;
    struct fast_program program;
    struct fast_run *runs = (void *)fast_program_lay(&program, layer, scratch);
    struct fast_images images;
    uint64_t done = 0u;

    fast_taps_forward(&program, layer);
    fast_taps_place(&program, in_row, PIXEL);
    images.map.height = layer->out_height;
    images.map.width = layer->out_width;
    images.map.in_height = layer->in_height;
    images.map.in_width = layer->in_width;
    images.map.step_y = layer->shape.stride_h;
    images.map.step_x = layer->shape.stride_w;
    images.x = x;
    images.x_row = in_row;
    images.x_pixel = PIXEL;
    images.y = y;
    images.y_channel = layer->out_height * out_row;
    images.y_row = out_row;
    images.y_pixel = PIXEL;
    fast_program_forward(&program, layer, in_plane,
                         gather_window(&images.map, layer->shape.kernel_h, layer->shape.kernel_w),
                         gather_changes(&images.map), w);
    for (; blocks > 0u; --blocks) {
        done += gather_images(&program, &images, runs, bias) * SFD_BLOCK;
        images.x += layer->in_channels * in_plane;
        images.y += layer->support.rows * images.y_channel;
    }
    return done;
}

static size_t in_elements(const struct sfd_layer *layer)
{
    return (size_t)layer->in_channels * layer->in_height * layer->in_width;
}

static size_t out_elements(const struct sfd_layer *layer)
{
    return (size_t)layer->support.rows * layer->out_height * layer->out_width;
}

static uint64_t maximum(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* A batch may be smaller than planned: each number of images from 1 on can be the rest. */
static uint64_t fast_forward_scratch_bytes(const struct sfd_layer *layer, uint32_t n)
{
    const uint64_t taps = (uint64_t)layer->shape.kernel_h * layer->shape.kernel_w;
    uint64_t bytes = 0u;
    uint32_t images;

    for (images = 1u; images <= n && images <= SFD_BLOCK; ++images)
        if (linear_images(layer, images) == images)
            continue; /* needs none */
        else if (column_pixels(layer, images) > 0u)
            bytes = maximum(bytes, columns_forward_bytes(layer, images));
        else if (images < SFD_BLOCK)
            bytes = maximum(bytes, small_forward_bytes(layer, images));
        else
            bytes = maximum(bytes, fast_program_bytes(layer) + taps * sizeof(struct fast_run));
    return bytes;
}

/* Images of a batch's next part, of `left`. */
static uint32_t part_images(const struct sfd_layer *layer, uint32_t left)
{
    const uint32_t linear = linear_images(layer, left);

    return linear > 0u ? linear : left < SFD_BLOCK ? left : SFD_BLOCK;
}

static uint64_t fast_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                             const float *x, float *y, uint32_t n, void *scratch)
{
    uint32_t first = 0u, images;
    uint64_t done = 0u;

    if (column_pixels(layer, SFD_BLOCK) == 0u && n >= SFD_BLOCK && !is_linear(layer)) {
        done = gather_forward(layer, w, bias, x, y, n / SFD_BLOCK, scratch);
        first = n / SFD_BLOCK * SFD_BLOCK;
    }
    for (; first < n; first += images) {
        const float *from = x + first * in_elements(layer);
        float *to = y + first * out_elements(layer);
        images = part_images(layer, n - first);
        if (linear_images(layer, images) == images)
            linear_forward(layer, w, bias, from, to, images);
        else if (column_pixels(layer, images) > 0u)
            columns_forward_block(layer, w, bias, from, to, images, scratch);
        else
            small_forward(layer, w, bias, from, to, images, scratch);
        done += layer->multiply_adds * images;
    }
    return done;
}

/* Rows of a phase in a strip: a multiple of a tile's. */
static uint32_t strip_rows(const struct sfd_layer *layer)
{
    const uint32_t height = phase_length(layer->in_height, 0u, layer->shape.stride_h);
    const uint64_t dy_row = (uint64_t)layer->support.rows * layer->out_width;
    const uint64_t x_row = (uint64_t)layer->in_channels * layer->in_width * layer->shape.stride_h;
    const uint64_t around = (uint64_t)(layer->shape.kernel_h - 1u) / layer->shape.stride_h;
    uint32_t rows = 4u;

    while (rows < height &&
           ((rows + 4u + around) * dy_row + (rows + 4u) * x_row) * PIXEL * 4u <= STRIP_BYTES)
        rows += 4u;
    return rows < height ? rows : height;
}

struct fast_backward {
    struct fast_program program;
    struct fast_tile *tiles;
    struct fast_run *runs;
    vector *partial;
    float *window;
    uint32_t rows; /* of a phase in a strip */
};

/* Lay the working memory of the backward out. Returns its bytes; with scratch NULL only counts. */
static uint64_t backward_lay(struct fast_backward *backward, const struct sfd_layer *layer,
                             uint8_t *scratch)
{
    const uint32_t rows = strip_rows(layer);
    const uint64_t tiles = (uint64_t)rows * layer->in_width;
    const uint64_t taps = (uint64_t)layer->shape.kernel_h * layer->shape.kernel_w;
    const uint64_t column = (uint64_t)layer->support.rows / layer->shape.groups * taps;
    const uint64_t parts[4] = {
        aligned_bytes(tiles * sizeof(struct fast_tile)),
        aligned_bytes(tiles * taps * sizeof(struct fast_run)),
        aligned_bytes(column * SFD_BLOCK * 4u),
        (uint64_t)layer->in_channels * rows * layer->shape.stride_h * layer->in_width * PIXEL * 4u,
    };
    uint8_t *cursor = scratch;

    if (scratch != NULL) {
        cursor = fast_program_lay(&backward->program, layer, scratch);
        backward->tiles = (void *)cursor;
        cursor += parts[0];
        backward->runs = (void *)cursor;
        cursor += parts[1];
        backward->partial = (void *)cursor;
        cursor += parts[2];
        backward->window = (void *)cursor;
        backward->rows = rows;
    }
    return fast_program_bytes(layer) + parts[0] + parts[1] + parts[2] + parts[3];
}

static void backward_block(struct fast_backward *backward, const struct sfd_layer *layer,
                           const struct sfd_saved_input *x, struct fast_unpacking *unpacking,
                           uint32_t first, const float *dy, float *dx, int accumulate,
                           struct sfd_multiply_adds *done)
{
    const struct sfd_convolution *shape = &layer->shape;
    const size_t in_row = (size_t)layer->in_width * PIXEL, in_plane = layer->in_height * in_row;
    const size_t in_start = (size_t)first * layer->in_channels * (in_plane / PIXEL);
    const uint32_t window_rows = backward->rows * shape->stride_h;
    struct fast_strip strip;
    uint32_t phase_y, phase_x, top, c;

    strip.map.in_height = layer->out_height;
    strip.map.in_width = layer->out_width;
    strip.map.step_y = strip.map.step_x = 1u;
    strip.dy = dy + (size_t)first * layer->support.rows * layer->out_height * layer->out_width;
    strip.dy_row = (size_t)layer->out_width * PIXEL;
    strip.x_channel = x->dense ? in_plane : window_rows * in_row;
    strip.x_row = strip.dx_row = shape->stride_h * in_row;
    strip.x_pixel = strip.dx_pixel = (size_t)shape->stride_w * PIXEL;
    strip.dx_channel = in_plane;
    strip.accumulate = accumulate;
    if (!x->dense)
        unpacking_begin(unpacking, (uint32_t)in_start, SFD_BLOCK);
    for (top = 0u; top * shape->stride_h < layer->in_height; top += backward->rows) {
        if (!x->dense)
            for (c = 0u; c < layer->in_channels; ++c)
                unpack_rows(unpacking, c, top * shape->stride_h, window_rows,
                            backward->window + (size_t)c * window_rows * in_row);
        for (phase_y = 0u; phase_y < shape->stride_h; ++phase_y)
            for (phase_x = 0u; phase_x < shape->stride_w; ++phase_x) {
                const size_t corner = phase_y * in_row + (size_t)phase_x * PIXEL;
                fast_phase_taps(layer, phase_y, phase_x, &strip.first_tap, &strip.last_tap);
                strip.map.height = phase_length(layer->in_height, phase_y, shape->stride_h);
                strip.map.width = phase_length(layer->in_width, phase_x, shape->stride_w);
                strip.first_row = top;
                strip.last_row = strip.map.height < top + backward->rows ? strip.map.height
                                                                         : top + backward->rows;
                /* a window begins with row `top` of the phase */
                strip.x = x->dense ? x->dense + in_start + corner
                                   : backward->window + corner - top * strip.x_row;
                strip.dx = dx ? dx + in_start + corner : NULL;
                if (strip.first_row < strip.last_row && strip.map.width > 0u)
                    pair_strip(&backward->program, &strip, backward->tiles, backward->runs,
                               backward->partial, done);
            }
    }
}

/* Whole blocks of 16 images. */
static void pair_backward(const struct sfd_layer *layer, const float *w,
                          const struct sfd_saved_input *x, struct fast_unpacking *unpacking,
                          const float *dy, float *dx, int accumulate, float *gradient,
                          uint32_t blocks, uint8_t *scratch, struct sfd_multiply_adds *done)
{
    const size_t out_row = (size_t)layer->out_width * PIXEL;
    struct fast_backward backward;
    uint32_t block;

    (void)backward_lay(&backward, layer, scratch);
    fast_taps_backward(&backward.program, layer);
    fast_taps_place(&backward.program, out_row, PIXEL);
    fast_program_backward(&backward.program, layer, layer->out_height * out_row, w);
    memset(backward.program.gradient, 0, layer->support.count * sizeof *gradient);
    for (block = 0u; block < blocks; ++block)
        backward_block(&backward, layer, x, unpacking, block * SFD_BLOCK, dy, dx, accumulate, done);
    fast_program_collect(&backward.program, layer, gradient, 0);
}

static void fast_backward(const struct sfd_layer *layer, const float *w,
                          const struct sfd_saved_input *x, const float *dy, float *dx,
                          int accumulate, float *gradient, uint32_t n, void *scratch,
                          struct sfd_multiply_adds *done)
{
    struct fast_unpacking unpacking;
    uint8_t *cursor = scratch;
    uint32_t first = 0u, images;
    int linear;

    unpacking.mask = x->mask;
    unpacking.values = x->values;
    unpacking.channels = layer->in_channels;
    unpacking.height = layer->in_height;
    unpacking.width = layer->in_width;
    unpacking.taken = 0u;
    unpacking.rank = (void *)cursor;
    cursor += aligned_bytes((uint64_t)layer->in_channels * sizeof *unpacking.rank);
    if (n > SFD_BLOCK) { /* gradient may be w: a later block needs w as it was */
        memcpy(cursor, w, layer->support.count * sizeof *w);
        w = (const float *)(void *)cursor;
        cursor += aligned_bytes(layer->support.count * sizeof *w);
    }
    if (column_pixels(layer, SFD_BLOCK) == 0u && n >= SFD_BLOCK && !is_linear(layer)) {
        pair_backward(layer, w, x, &unpacking, dy, dx, accumulate, gradient, n / SFD_BLOCK, cursor,
                      done);
        first = n / SFD_BLOCK * SFD_BLOCK;
    }
    for (; first < n; first += images) {
        const size_t at = first * in_elements(layer);
        const float *dense = x->dense ? x->dense + at : NULL;
        const float *from = dy + first * out_elements(layer);
        float *to = dx ? dx + at : NULL;
        images = part_images(layer, n - first);
        linear = linear_images(layer, images) == images;
        unpacking.first = (uint32_t)at;
        if (!dense && !linear)
            unpacking_begin(&unpacking, (uint32_t)at, images);
        if (linear)
            linear_backward(layer, w, dense, &unpacking, from, to, accumulate, gradient, first > 0u,
                            images, (void *)cursor);
        else if (column_pixels(layer, images) > 0u)
            columns_backward_block(layer, w, dense, &unpacking, from, to, accumulate, gradient,
                                   first > 0u, images, (void *)cursor);
        else
            small_backward_block(layer, w, dense, &unpacking, from, to, accumulate, gradient,
                                 first > 0u, images, cursor);
        done->d_weight += layer->multiply_adds * images;
        done->d_input += dx ? layer->multiply_adds * images : 0u;
    }
}

static uint64_t fast_backward_scratch_bytes(const struct sfd_layer *layer, uint32_t n)
{
    uint64_t bytes = 0u, kept = aligned_bytes((uint64_t)layer->in_channels * 4u);
    uint32_t images;

    if (n > SFD_BLOCK)
        kept += aligned_bytes((uint64_t)layer->support.count * 4u);
    for (images = 1u; images <= n && images <= SFD_BLOCK; ++images)
        if (linear_images(layer, images) == images)
            bytes = maximum(bytes, linear_bytes(layer, n));
        else if (column_pixels(layer, images) > 0u)
            bytes = maximum(bytes, columns_backward_bytes(layer, images));
        else if (images < SFD_BLOCK)
            bytes = maximum(bytes, small_backward_bytes(layer, images));
        else
            bytes = maximum(bytes, backward_lay(NULL, layer, NULL));
    return kept + bytes;
}

#endif
