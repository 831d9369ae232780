/* Convolutions over whole blocks of 16 images: a pixel is a few vectors. */
#ifndef SFD_FAST_BLOCKS_H
#define SFD_FAST_BLOCKS_H

#include "fast_pair.h"
#include "fast_part.h"
#include "fast_window.h"

/* What a window of the input holds at most. */
#define WINDOW_BYTES (768u * 1024u)

/* It pays from so many multiply-adds for each pixel on. Large tiles load little again: with them it
 * only does where blocks of input channels stay in the first-level cache. */
#define WINDOW_MULTIPLY_ADDS (TILE_PIXELS >= 16u ? 192u : 24u)

/* A forward over a strip of rows of one block of 16 images, as its threads share it. */
struct gather_work {
    const struct sfd_layer *layer;
    struct fast_program program;
    struct fast_window window;
    struct fast_images images; /* all channels */
    const float *bias;
    uint32_t tile_rows;
    uint8_t *runs; /* of all threads */
    uint64_t done[SFD_MAX_THREADS];
};

static uint64_t gather_runs_bytes(const struct sfd_layer *layer)
{
    return aligned_bytes((uint64_t)sfd_kernel_area(layer) * sizeof(struct fast_run));
}

static void gather_some(struct gather_work *work, const struct fast_images *images, uint32_t index)
{
    struct fast_run *runs = (void *)(work->runs + index * gather_runs_bytes(work->layer));

    work->done[index] += gather_images(&work->program, images, runs, work->bias) * SFD_BLOCK;
}

/* The output channels of one thread. */
static void gather_channels(void *context, uint32_t index, uint32_t count)
{
    struct gather_work *work = context;
    const struct sfd_support *support = &work->layer->support;
    const uint32_t taps = work->program.taps;
    struct fast_images images = work->images;

    images.first_channel = fast_share(support->row_pointer, 1u, support->rows, taps, index, count);
    images.last_channel =
        fast_share(support->row_pointer, 1u, support->rows, taps, index + 1u, count);
    gather_some(work, &images, index);
}

/* One row of tiles. */
static void gather_row(void *context, uint32_t part, uint32_t index)
{
    struct gather_work *work = context;
    struct fast_images images = work->images;

    images.first_row += part * work->tile_rows;
    images.last_row = (uint32_t)sfd_minimum(images.last_row, images.first_row + work->tile_rows);
    gather_some(work, &images, index);
}

/* So few parts can't be shared evenly, unless each thread takes as many. */
#define FEW_PARTS 8u

static int is_even(uint32_t parts, uint32_t threads)
{
    return parts % threads == 0u || parts >= FEW_PARTS * threads;
}

/* A strip on all threads. By rows each of them reads its part of the input alone, and all nonzeros;
 * by channels it is the other way round. */
static void gather_strip(struct gather_work *work)
{
    const struct sfd_layer *layer = work->layer;
    const struct fast_images *images = &work->images;
    const uint32_t threads = sfd_team_count(layer->team);
    const uint32_t rows = images->last_row - images->first_row;
    const uint32_t parts = (rows + work->tile_rows - 1u) / work->tile_rows;
    const uint64_t input = sfd_in_elements(layer) * SFD_BLOCK * sizeof(float);

    if (threads > 1u && is_even(parts, threads) &&
        layer->support.count * sizeof(struct fast_entry) < input)
        sfd_team_parts(layer->team, gather_row, work, parts);
    else
        sfd_team_run(layer->team, gather_channels, work);
}

/* Rows of the input that `rows` rows of the output read. */
static uint64_t input_rows(const struct sfd_layer *layer, uint32_t rows)
{
    const struct sfd_convolution *shape = &layer->shape;
    const uint64_t reach = (uint64_t)(shape->kernel_h - 1u) * shape->dilation_h;

    return sfd_minimum((rows - 1u) * (uint64_t)shape->stride_h + reach + 1u, layer->in_height);
}

static struct fast_map forward_map(const struct sfd_layer *layer)
{
    struct fast_map map;

    map.height = layer->out_height;
    map.width = layer->out_width;
    map.in_height = layer->in_height;
    map.in_width = layer->in_width;
    map.step_y = layer->shape.stride_h;
    map.step_x = layer->shape.stride_w;
    return map;
}

/* Rows of a tile at the top of the output. */
static uint32_t top_tile_rows(const struct sfd_layer *layer)
{
    return fast_tile_rows(layer->out_height, 0u,
                          fast_tile_columns(layer->out_width, 0u, TILE_PIXELS), TILE_PIXELS);
}

/* Rows of the output for each window of the input, a multiple of a tile's; 0 where no window pays:
 * where the channels do not crowd any set, where a pixel is read seldom, or where no rows fit. */
static uint32_t forward_rows(const struct sfd_layer *layer)
{
    const uint32_t plane = layer->in_height * layer->in_width;
    const uint64_t work = (uint64_t)layer->support.count * layer->out_height * layer->out_width;
    const uint32_t step = top_tile_rows(layer);
    const uint64_t row_bytes = (uint64_t)layer->in_channels * layer->in_width * PIXEL * 4u;
    uint32_t rows = 0u;

    if (plane < CACHE_SETS || plane % 8u > 0u ||
        work / plane / layer->in_channels < WINDOW_MULTIPLY_ADDS)
        return 0u;
    while (rows < layer->out_height && input_rows(layer, rows + step) * row_bytes <= WINDOW_BYTES)
        rows += step;
    return rows < layer->out_height ? rows : layer->out_height;
}

/* Lay the working memory of the forward out. Returns its bytes; with scratch NULL only counts. */
static uint64_t forward_lay(struct gather_work *work, const struct sfd_layer *layer,
                            uint8_t *scratch)
{
    const uint32_t rows = forward_rows(layer);
    const uint64_t runs_bytes = layer->threads * gather_runs_bytes(layer);
    const uint64_t plane = (uint64_t)layer->in_height * layer->in_width;
    const uint64_t pixels = rows > 0u ? (input_rows(layer, rows) * layer->in_width) | 1u : 0u;

    if (scratch != NULL) {
        work->runs = fast_program_lay(&work->program, layer, scratch);
        work->window.copy = rows > 0u ? (void *)(work->runs + runs_bytes) : NULL;
        work->window.channel = PIXEL * (size_t)(rows > 0u ? pixels : plane);
    }
    return fast_program_bytes(layer) + runs_bytes + layer->in_channels * pixels * PIXEL * 4u;
}

static uint64_t blocks_forward_bytes(const struct sfd_layer *layer)
{
    return forward_lay(NULL, layer, NULL);
}

/* One block, strip by strip where its input is copied. */
static void forward_block(struct gather_work *work)
{
    const struct sfd_layer *layer = work->layer;
    const uint32_t height = layer->out_height;
    const uint32_t rows = work->window.copy ? forward_rows(layer) : height;
    struct fast_images *images = &work->images;

    for (images->first_row = 0u; images->first_row < height; images->first_row += rows) {
        images->last_row = (uint32_t)sfd_minimum(height, (uint64_t)images->first_row + rows);
        window_move(&work->window, layer->team, &work->program, images->first_row, images->last_row,
                    layer->shape.stride_h);
        images->x = window_data(&work->window);
        images->x_first_row = work->window.first_row;
        gather_strip(work);
    }
}

static uint64_t blocks_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                               const float *x, float *y, uint32_t count, uint8_t *scratch)
{
    const size_t in_row = (size_t)layer->in_width * PIXEL;
    struct gather_work work = {.layer = layer, .bias = bias};
    struct fast_images *images = &work.images;
    uint64_t done = 0u;
    uint32_t i;

    (void)forward_lay(&work, layer, scratch);
    fast_taps_forward(&work.program, layer);
    fast_taps_place(&work.program, in_row, PIXEL);
    images->map = forward_map(layer);
    images->x_row = work.window.row = in_row;
    images->x_pixel = PIXEL;
    images->y_row = (size_t)layer->out_width * PIXEL;
    images->y_channel = layer->out_height * images->y_row;
    images->last_channel = layer->support.rows;
    work.tile_rows = top_tile_rows(layer);
    work.window.channels = layer->in_channels;
    work.window.height = layer->in_height;
    fast_program_forward(&work.program, layer, work.window.channel,
                         gather_window(&images->map, layer->shape.kernel_h, layer->shape.kernel_w),
                         gather_changes(&images->map), w);
    for (i = 0u; i < count; i += SFD_BLOCK) {
        work.window.images = x + i * sfd_in_elements(layer);
        images->y = y + i * sfd_out_elements(layer);
        forward_block(&work);
    }
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

/* A window of dy pays from so many nonzeros of an output channel on. */
#define WINDOW_NONZEROS 24u

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

/* Strips of a block that threads take apart; 1: they share each strip by channels. Apart, a thread
 * reads no rows that another has just copied, which takes several times as long as rows of its own;
 * but each strip has sums of its own for all nonzeros. */
static uint32_t strips_apart(const struct sfd_layer *layer)
{
    const uint32_t height = phase_length(layer->in_height, 0u, layer->shape.stride_h);
    const uint32_t rows = strip_rows(layer), strips = (height + rows - 1u) / rows;

    if (layer->threads == 1u || !is_even(strips, layer->threads) ||
        (uint64_t)strips * layer->support.count * sizeof(float) > STRIP_BYTES)
        return 1u;
    return strips;
}

/* A backward over whole blocks of 16 images, as its threads share it. */
struct fast_backward {
    const struct sfd_layer *layer;
    struct fast_program program;
    const struct fast_part *part;
    uint32_t first; /* image with which the block begins */
    uint32_t rows;  /* of a phase in a strip */
    uint32_t top;   /* with which the strip begins that all threads share */
    uint32_t apart; /* strips that they take apart, or 1 */
    float *window;  /* rows of the input, all channels */
    struct fast_window dy_window;
    size_t window_floats, dy_floats; /* of one window: strips apart have one for each thread */
    float *sums;                     /* of the nonzeros, for each strip apart */
    uint8_t *tiles;                  /* of all threads, and the two that follow */
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
    const uint64_t tiles_bytes = aligned_bytes(tiles * sizeof(struct fast_tile));
    const uint64_t runs_bytes = aligned_bytes(tiles * taps * sizeof(struct fast_run));
    const uint64_t sums_bytes = partial_bytes(layer);
    const uint64_t input_floats =
        (uint64_t)layer->in_channels * rows * layer->shape.stride_h * layer->in_width * PIXEL;
    const uint64_t pixels = window_pixels(layer, rows);
    const uint64_t dy_floats = layer->support.rows * pixels * PIXEL;
    const uint32_t apart = strips_apart(layer), windows = apart > 1u ? layer->threads : 1u;
    const uint64_t sums = apart > 1u ? (uint64_t)apart * layer->support.count : 0u;

    if (scratch != NULL) {
        backward->tiles = fast_program_lay(&backward->program, layer, scratch);
        backward->runs = backward->tiles + layer->threads * tiles_bytes;
        backward->partial = backward->runs + layer->threads * runs_bytes;
        backward->window = (void *)(backward->partial + layer->threads * sums_bytes);
        backward->tiles_bytes = (size_t)tiles_bytes;
        backward->runs_bytes = (size_t)runs_bytes;
        backward->partial_bytes = (size_t)sums_bytes;
        backward->window_floats = (size_t)input_floats;
        backward->dy_floats = (size_t)dy_floats;
        backward->rows = rows;
        backward->apart = apart;
        backward->dy_window.copy = pixels > 0u ? backward->window + windows * input_floats : NULL;
        backward->sums = backward->window + windows * (input_floats + dy_floats);
        backward->dy_window.channel =
            PIXEL * (size_t)(pixels > 0u ? pixels : layer->out_height * layer->out_width);
    }
    return fast_program_bytes(layer) + layer->threads * (tiles_bytes + runs_bytes + sums_bytes) +
           (windows * (input_floats + dy_floats) + sums) * sizeof(float);
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

/* What does not change over the phases of the strip that begins with row `top`: all channels. */
static struct fast_strip backward_strip(const struct fast_backward *backward,
                                        const struct fast_window *dy, uint32_t top)
{
    const struct sfd_layer *layer = backward->layer;
    const size_t in_row = (size_t)layer->in_width * PIXEL, in_plane = layer->in_height * in_row;
    struct fast_strip strip;

    memset(&strip, 0, sizeof strip);
    strip.map.in_height = layer->out_height;
    strip.map.in_width = layer->out_width;
    strip.map.step_y = strip.map.step_x = 1u;
    strip.last_channel = layer->in_channels;
    strip.first_row = top;
    strip.dy = window_data(dy);
    strip.dy_first_row = dy->first_row;
    strip.dy_row = dy->row;
    strip.x_first_row = backward->part->x ? 0u : top;
    strip.x_channel =
        backward->part->x ? in_plane : backward->rows * layer->shape.stride_h * in_row;
    strip.x_row = strip.dx_row = layer->shape.stride_h * in_row;
    strip.x_pixel = strip.dx_pixel = (size_t)layer->shape.stride_w * PIXEL;
    strip.dx_channel = in_plane;
    strip.accumulate = backward->part->accumulate;
    return strip;
}

/* The input channels of a strip that it says; `window` takes what they read of a packed input. */
static void backward_channels(struct fast_backward *backward, struct fast_strip *strip,
                              float *window, uint32_t index)
{
    const struct sfd_layer *layer = backward->layer;
    const struct sfd_convolution *shape = &layer->shape;
    const struct fast_part *part = backward->part;
    const size_t in_row = (size_t)layer->in_width * PIXEL;
    const size_t in_start = (size_t)backward->first * sfd_in_elements(layer);
    uint32_t phase_y, phase_x, c;

    for (c = strip->first_channel; !part->x && c < strip->last_channel; ++c)
        unpack_rows(part->unpacking, c, strip->first_row * shape->stride_h,
                    backward->rows * shape->stride_h, window + c * strip->x_channel);
    for (phase_y = 0u; phase_y < shape->stride_h; ++phase_y)
        for (phase_x = 0u; phase_x < shape->stride_w; ++phase_x) {
            const size_t corner = phase_y * in_row + (size_t)phase_x * PIXEL;
            strip->x = part->x ? part->x + in_start + corner : window + corner;
            strip->dx = part->dx ? part->dx + in_start + corner : NULL;
            backward_phase(backward, strip, phase_y, phase_x, index);
        }
}

/* The input channels of one thread, in the strip that all share. */
static void backward_share(void *context, uint32_t index, uint32_t count)
{
    struct fast_backward *backward = context;
    const struct fast_program *program = &backward->program;
    const uint32_t *start = program->start, taps = program->taps;
    struct fast_strip strip = backward_strip(backward, &backward->dy_window, backward->top);

    strip.gradient = program->gradient;
    strip.first_channel = fast_share(start, taps, program->channels, taps, index, count);
    strip.last_channel = fast_share(start, taps, program->channels, taps, index + 1u, count);
    backward_channels(backward, &strip, backward->window, index);
}

/* A strip of one thread. */
static void backward_apart(void *context, uint32_t part, uint32_t index)
{
    struct fast_backward *backward = context;
    const uint32_t nonzeros = backward->layer->support.count, top = part * backward->rows;
    struct fast_window dy = backward->dy_window;
    struct fast_strip strip;

    if (dy.copy)
        dy.copy += index * backward->dy_floats;
    window_move(&dy, NULL, &backward->program, top, top + backward->rows, 1u);
    strip = backward_strip(backward, &dy, top);
    strip.gradient = backward->sums + (size_t)part * nonzeros;
    memset(strip.gradient, 0, nonzeros * sizeof *strip.gradient);
    backward_channels(backward, &strip, backward->window + index * backward->window_floats, index);
}

/* The sums of strips apart, added in the order of the strips. */
static void add_strips(void *context, uint32_t index, uint32_t count)
{
    const struct fast_backward *backward = context;
    const uint32_t nonzeros = backward->layer->support.count;
    const uint32_t last = sfd_run_share(nonzeros, index + 1u, count);
    float *gradient = backward->program.gradient;
    uint32_t k, strip;

    for (k = sfd_run_share(nonzeros, index, count); k < last; ++k) {
        float total = backward->first > 0u ? gradient[k] : 0.0f;
        for (strip = 0u; strip < backward->apart; ++strip)
            total += backward->sums[(size_t)strip * nonzeros + k];
        gradient[k] = total;
    }
}

/* One block, strip by strip. */
static void backward_block(struct fast_backward *backward)
{
    const struct sfd_layer *layer = backward->layer;

    if (backward->apart > 1u) {
        sfd_team_parts(layer->team, backward_apart, backward, backward->apart);
        sfd_team_run(layer->team, add_strips, backward);
        return;
    }
    for (backward->top = 0u; backward->top * layer->shape.stride_h < layer->in_height;
         backward->top += backward->rows) {
        window_move(&backward->dy_window, layer->team, &backward->program, backward->top,
                    backward->top + backward->rows, 1u);
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
    struct fast_backward backward = {.layer = layer, .part = part};
    uint32_t i;

    (void)backward_lay(&backward, layer, scratch);
    fast_taps_backward(&backward.program, layer);
    backward.dy_window.row = (size_t)layer->out_width * PIXEL;
    backward.dy_window.channels = layer->support.rows;
    backward.dy_window.height = layer->out_height;
    fast_taps_place(&backward.program, backward.dy_window.row, PIXEL);
    fast_program_backward(&backward.program, layer, backward.dy_window.channel, pair_blocks(layer),
                          part->w);
    if (backward.apart == 1u)
        memset(backward.program.gradient, 0, layer->support.count * sizeof *part->gradient);
    for (; backward.first < part->images; backward.first += SFD_BLOCK) {
        backward.dy_window.images = part->dy + backward.first * sfd_out_elements(layer);
        if (!part->x)
            unpacking_begin(part->unpacking, layer->team, SFD_BLOCK,
                            backward.apart > 1u ? backward.rows * layer->shape.stride_h
                                                : layer->in_height);
        backward_block(&backward);
    }
    for (i = 0u; i < SFD_MAX_THREADS; ++i) {
        done->d_input += backward.done[i].d_input;
        done->d_weight += backward.done[i].d_weight;
    }
    fast_program_collect(&backward.program, layer, part->gradient, part->later);
}

#endif
