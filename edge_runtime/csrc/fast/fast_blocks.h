/* Convolutions over whole blocks of 16 images: a pixel is a few vectors. */
#ifndef SFD_FAST_BLOCKS_H
#define SFD_FAST_BLOCKS_H

#include "fast_pair.h"
#include "fast_part.h"

/* A forward over whole blocks of 16 images, as its threads share it. */
struct gather_work {
    const struct sfd_layer *layer;
    const struct fast_program *program;
    struct fast_images images; /* the first block, all channels */
    size_t x_block, y_block;   /* from block to block */
    const float *bias;
    uint32_t blocks;
    uint8_t *runs; /* of all threads */
    uint64_t done[SFD_MAX_THREADS];
};

static uint64_t gather_runs_bytes(const struct sfd_layer *layer)
{
    return aligned_bytes((uint64_t)sfd_kernel_area(layer) * sizeof(struct fast_run));
}

/* The output channels of one thread. */
static void gather_share(void *context, uint32_t index, uint32_t count)
{
    struct gather_work *work = context;
    const struct sfd_support *support = &work->layer->support;
    const uint32_t taps = work->program->taps;
    struct fast_run *runs = (void *)(work->runs + index * gather_runs_bytes(work->layer));
    struct fast_images images = work->images;
    uint32_t block;

    images.first_channel = fast_share(support->row_pointer, 1u, support->rows, taps, index, count);
    images.last_channel =
        fast_share(support->row_pointer, 1u, support->rows, taps, index + 1u, count);
    work->done[index] = 0u;
    for (block = 0u; block < work->blocks; ++block) {
        work->done[index] += gather_images(work->program, &images, runs, work->bias) * SFD_BLOCK;
        images.x += work->x_block;
        images.y += work->y_block;
    }
}

static uint64_t blocks_forward_bytes(const struct sfd_layer *layer)
{
    return fast_program_bytes(layer) + layer->threads * gather_runs_bytes(layer);
}

static uint64_t blocks_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                               const float *x, float *y, uint32_t count, uint8_t *scratch)
{
    const size_t in_row = (size_t)layer->in_width * PIXEL, in_plane = layer->in_height * in_row;
    const size_t out_row = (size_t)layer->out_width * PIXEL;
    struct fast_program program;
    struct gather_work work = {.layer = layer, .program = &program, .bias = bias};
    struct fast_images *images = &work.images;
    uint64_t done = 0u;
    uint32_t i;

    work.blocks = count / SFD_BLOCK;
    work.runs = fast_program_lay(&program, layer, scratch);
    fast_taps_forward(&program, layer);
    fast_taps_place(&program, in_row, PIXEL);
    images->map.height = layer->out_height;
    images->map.width = layer->out_width;
    images->map.in_height = layer->in_height;
    images->map.in_width = layer->in_width;
    images->map.step_y = layer->shape.stride_h;
    images->map.step_x = layer->shape.stride_w;
    images->x = x;
    images->x_row = in_row;
    images->x_pixel = PIXEL;
    images->y = y;
    images->y_channel = layer->out_height * out_row;
    images->y_row = out_row;
    work.x_block = layer->in_channels * in_plane;
    work.y_block = layer->support.rows * images->y_channel;
    fast_program_forward(&program, layer, in_plane,
                         gather_window(&images->map, layer->shape.kernel_h, layer->shape.kernel_w),
                         gather_changes(&images->map), w);
    sfd_team_run(layer->team, gather_share, &work);
    for (i = 0u; i < SFD_MAX_THREADS; ++i)
        done += work.done[i];
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

/* Rows of dy that a strip of `rows` rows reads at most. */
static uint64_t window_rows(const struct sfd_layer *layer, uint32_t rows)
{
    const struct sfd_convolution *shape = &layer->shape;
    const uint32_t around =
        ((shape->kernel_h - 1u) * shape->dilation_h + shape->stride_h - 1u) / shape->stride_h;

    return sfd_minimum(rows + around, layer->out_height);
}

/* From one channel of a window of dy to the next, in pixels: 0 where no window pays. A copy costs as
 * much as a few nonzeros, and images smaller than the sets of a first-level cache do not crowd any.
 * Where the padding is wider than the kernel a strip may read rows below its own alone. */
static uint64_t window_pixels(const struct sfd_layer *layer, uint32_t rows)
{
    const struct sfd_convolution *shape = &layer->shape;
    const uint32_t plane = layer->out_height * layer->out_width;

    if (plane < CACHE_SETS || layer->support.count / layer->support.rows < WINDOW_NONZEROS ||
        shape->padding_h > (shape->kernel_h - 1u) * shape->dilation_h)
        return 0u;
    return (window_rows(layer, rows) * layer->out_width) | 1u;
}

/* A backward over whole blocks of 16 images, as its threads share it. */
struct fast_backward {
    const struct sfd_layer *layer;
    struct fast_program program;
    const struct fast_part *part;
    uint32_t first; /* image with which the block begins */
    uint32_t rows;  /* of a phase in a strip */
    uint32_t top;   /* with which the strip begins */
    float *window;  /* rows of the input, all channels */
    struct fast_window dy_window;
    uint8_t *tiles; /* of all threads, and the two that follow */
    uint8_t *runs, *partial;
    size_t tiles_bytes, runs_bytes, partial_bytes; /* of one thread */
    struct sfd_multiply_adds done[SFD_MAX_THREADS];
};

/* Lay the working memory of the backward out. Returns its bytes; with scratch NULL only counts. */
static uint64_t backward_lay(struct fast_backward *backward, const struct sfd_layer *layer,
                             uint8_t *scratch)
{
    const uint32_t rows = strip_rows(layer);
    const uint64_t tiles = (uint64_t)rows * layer->in_width;
    const uint64_t taps = sfd_kernel_area(layer);
    const uint64_t column = (uint64_t)layer->support.rows / layer->shape.groups * taps;
    const uint64_t tiles_bytes = aligned_bytes(tiles * sizeof(struct fast_tile));
    const uint64_t runs_bytes = aligned_bytes(tiles * taps * sizeof(struct fast_run));
    const uint64_t partial_bytes = aligned_bytes(column * SFD_BLOCK * 4u);
    const uint64_t input_bytes =
        (uint64_t)layer->in_channels * rows * layer->shape.stride_h * layer->in_width * PIXEL * 4u;
    const uint64_t pixels = window_pixels(layer, rows);

    if (scratch != NULL) {
        backward->tiles = fast_program_lay(&backward->program, layer, scratch);
        backward->runs = backward->tiles + layer->threads * tiles_bytes;
        backward->partial = backward->runs + layer->threads * runs_bytes;
        backward->window = (void *)(backward->partial + layer->threads * partial_bytes);
        backward->tiles_bytes = (size_t)tiles_bytes;
        backward->runs_bytes = (size_t)runs_bytes;
        backward->partial_bytes = (size_t)partial_bytes;
        backward->rows = rows;
        backward->dy_window.rows = pixels > 0u ? backward->window + input_bytes / 4u : NULL;
        backward->dy_window.channel =
            PIXEL * (size_t)(pixels > 0u ? pixels : layer->out_height * layer->out_width);
    }
    return fast_program_bytes(layer) + layer->threads * (tiles_bytes + runs_bytes + partial_bytes) +
           input_bytes + layer->support.rows * pixels * PIXEL * 4u;
}

/* One phase of the rows from `top` on, of the channels that the strip says. */
static void backward_phase(struct fast_backward *backward, struct fast_strip *strip,
                           uint32_t phase_y, uint32_t phase_x, uint32_t index)
{
    const struct sfd_layer *layer = backward->layer;
    const uint32_t end = strip->first_row + backward->rows;
    const uint32_t phase = phase_y * layer->shape.stride_w + phase_x;

    strip->first_tap = backward->program.phase[phase];
    strip->last_tap = backward->program.phase[phase + 1u];
    strip->map.height = phase_length(layer->in_height, phase_y, layer->shape.stride_h);
    strip->map.width = phase_length(layer->in_width, phase_x, layer->shape.stride_w);
    strip->last_row = strip->map.height < end ? strip->map.height : end;
    if (strip->first_row < strip->last_row && strip->map.width > 0u)
        pair_strip(
            &backward->program, strip, (void *)(backward->tiles + index * backward->tiles_bytes),
            (void *)(backward->runs + index * backward->runs_bytes),
            (void *)(backward->partial + index * backward->partial_bytes), &backward->done[index]);
}

/* dy of the block. */
static const float *backward_dy(const struct fast_backward *backward)
{
    return backward->part->dy + backward->first * sfd_out_elements(backward->layer);
}

/* What does not change over the phases of a strip. */
static struct fast_strip backward_strip(const struct fast_backward *backward)
{
    const struct sfd_layer *layer = backward->layer;
    const size_t in_row = (size_t)layer->in_width * PIXEL, in_plane = layer->in_height * in_row;
    struct fast_strip strip;

    memset(&strip, 0, sizeof strip);
    strip.map.in_height = layer->out_height;
    strip.map.in_width = layer->out_width;
    strip.map.step_y = strip.map.step_x = 1u;
    strip.dy = backward_dy(backward);
    if (backward->dy_window.rows) {
        strip.dy = backward->dy_window.rows;
        strip.dy_first_row = backward->dy_window.first_row;
    }
    strip.dy_row = (size_t)layer->out_width * PIXEL;
    strip.x_channel =
        backward->part->x ? in_plane : backward->rows * layer->shape.stride_h * in_row;
    strip.x_row = strip.dx_row = layer->shape.stride_h * in_row;
    strip.x_pixel = strip.dx_pixel = (size_t)layer->shape.stride_w * PIXEL;
    strip.dx_channel = in_plane;
    strip.accumulate = backward->part->accumulate;
    return strip;
}

/* The input channels of one thread, in one strip. */
static void backward_share(void *context, uint32_t index, uint32_t count)
{
    struct fast_backward *backward = context;
    const struct sfd_layer *layer = backward->layer;
    const struct sfd_convolution *shape = &layer->shape;
    const struct fast_program *program = &backward->program;
    const struct fast_part *part = backward->part;
    const size_t in_row = (size_t)layer->in_width * PIXEL;
    const size_t in_start = (size_t)backward->first * sfd_in_elements(layer);
    struct fast_strip strip = backward_strip(backward);
    uint32_t phase_y, phase_x, c;

    strip.first_channel =
        fast_share(program->start, program->taps, program->channels, program->taps, index, count);
    strip.last_channel = fast_share(program->start, program->taps, program->channels, program->taps,
                                    index + 1u, count);
    for (c = strip.first_channel; !part->x && c < strip.last_channel; ++c)
        unpack_rows(part->unpacking, c, backward->top * shape->stride_h,
                    backward->rows * shape->stride_h, backward->window + c * strip.x_channel);
    strip.first_row = backward->top;
    strip.x_first_row = part->x ? 0u : backward->top;
    for (phase_y = 0u; phase_y < shape->stride_h; ++phase_y)
        for (phase_x = 0u; phase_x < shape->stride_w; ++phase_x) {
            const size_t corner = phase_y * in_row + (size_t)phase_x * PIXEL;
            strip.x = part->x ? part->x + in_start + corner : backward->window + corner;
            strip.dx = part->dx ? part->dx + in_start + corner : NULL;
            backward_phase(backward, &strip, phase_y, phase_x, index);
        }
}

/* The channels of dy that one thread copies for the strip. */
static void window_share(void *context, uint32_t index, uint32_t count)
{
    const struct fast_backward *backward = context;
    const struct sfd_layer *layer = backward->layer;
    const size_t row = (size_t)layer->out_width * PIXEL;

    window_copy(&backward->dy_window, backward_dy(backward), row, layer->out_height * row,
                sfd_share(layer->support.rows, index, count),
                sfd_share(layer->support.rows, index + 1u, count));
}

/* Which rows of dy the strip reads: where its taps lie. */
static void window_find(struct fast_backward *backward)
{
    const struct sfd_layer *layer = backward->layer;
    const struct fast_program *program = &backward->program;
    struct fast_window *window = &backward->dy_window;
    int64_t low = layer->out_height, high = 0;
    uint32_t t;

    for (t = 0u; t < program->taps; ++t) {
        const int64_t at = (int64_t)backward->top + program->tap[t].shift_y;
        low = at < low ? at : low;
        high = at + backward->rows > high ? at + backward->rows : high;
    }
    high = high < layer->out_height ? high : layer->out_height;
    window->first_row = (uint32_t)(low > 0 ? low : 0);
    window->last_row = high > window->first_row ? (uint32_t)high : window->first_row;
}

/* One block, strip by strip. */
static void backward_block(struct fast_backward *backward)
{
    const struct sfd_layer *layer = backward->layer;

    for (backward->top = 0u; backward->top * layer->shape.stride_h < layer->in_height;
         backward->top += backward->rows) {
        if (backward->dy_window.rows) {
            window_find(backward);
            sfd_team_run(layer->team, window_share, backward);
        }
        sfd_team_run(layer->team, backward_share, backward);
    }
}

static uint64_t blocks_backward_bytes(const struct sfd_layer *layer)
{
    return backward_lay(NULL, layer, NULL);
}

static void blocks_backward(const struct sfd_layer *layer, const struct fast_part *part,
                            uint8_t *scratch, struct sfd_multiply_adds *done)
{
    const size_t out_row = (size_t)layer->out_width * PIXEL;
    struct fast_backward backward = {.layer = layer, .part = part};
    uint32_t i;

    (void)backward_lay(&backward, layer, scratch);
    fast_taps_backward(&backward.program, layer);
    fast_taps_place(&backward.program, out_row, PIXEL);
    fast_program_backward(&backward.program, layer, backward.dy_window.channel, part->w);
    memset(backward.program.gradient, 0, layer->support.count * sizeof *part->gradient);
    for (; backward.first < part->images; backward.first += SFD_BLOCK) {
        if (!part->x)
            unpacking_begin(part->unpacking, layer->team, SFD_BLOCK);
        backward_block(&backward);
    }
    for (i = 0u; i < SFD_MAX_THREADS; ++i) {
        done->d_input += backward.done[i].d_input;
        done->d_weight += backward.done[i].d_weight;
    }
    fast_program_collect(&backward.program, layer, part->gradient, part->later);
}

#endif
