/* y = W x for layers that keep many weights, three output channels at a time.
 *
 * A vector of the input that is loaded serves all channels of a trio that have a nonzero there: where
 * half the weights are kept, that halves the loads, which are what limits the speed. So the nonzeros of
 * a trio are sorted by which of its channels share them, and each such pattern is a loop of its own.
 * The input is copied with zeros around the images: every tile is like every other. */
#ifndef SFD_FAST_TRIO_H
#define SFD_FAST_TRIO_H

#include "fast_pair.h"

#define TRIO 3u
#define TRIO_PATTERNS 7u /* sets of channels, but the empty one */

/* What a block of input channels may hold of the first-level cache. */
#define TRIO_BLOCK_BYTES (24u * 1024u)

/* Where some channels of a trio have a nonzero: where its input lies, in floats from the input of the
 * tile's first pixel, and the values, of which those that the pattern lacks are not set. */
struct trio_entry {
    int32_t offset;
    float value[TRIO];
};

/* A forward over a strip of rows of one block of 16 images, as its threads share it. */
struct fast_trios {
    const struct sfd_layer *layer;
    const float *w, *bias;
    const float *x; /* of one block of images, as y */
    float *y;
    struct trio_entry *entry;
    uint32_t *start; /* of each trio, block of input channels and pattern; the end of the last */
    uint32_t *place; /* for each thread and column of the weight */
    float *window;   /* rows of the input, all channels */
    size_t row;      /* floats of a row of the window */
    size_t channel;  /* floats of a channel of it */
    uint32_t trios, blocks;
    uint32_t top, bottom; /* rows of the output */
};

/* Part of a tile. Strides in floats. */
struct trio_visit {
    const struct trio_entry *entry;
    const uint32_t *start;
    const float *x;
    size_t x_row, x_pixel;
    float *y;
    size_t y_channel, y_row;
    const float *bias;
    int accumulate;
    uint32_t channels; /* of the trio that there are */
};

/* The compiler would load a vector again for each multiply-add that takes it, and compute the address
 * of each pixel anew. */
#define KEEP_ADDRESS(pointer) __asm__("" : "+r"(pointer))
#ifdef __aarch64__
#define KEEP_VECTOR(value) __asm__("" : "+w"(value))
#else
#define KEEP_VECTOR(value) __asm__("" : "+v"(value))
#endif

/* Add a run of entries to the sums of the channels in the pattern. */
SFD_INLINE void trio_run(vector *sum, const struct trio_visit *visit, const size_t x_pixel,
                         const uint32_t pattern, const uint32_t rows, const uint32_t columns)
{
    const struct trio_entry *entry = visit->entry + visit->start[pattern - 1u];
    const struct trio_entry *end = visit->entry + visit->start[pattern];
    const float *x = visit->x;
    const size_t x_row = visit->x_row;
    uint32_t i, j, u, c;

    for (; entry != end; ++entry) {
        const float *from = x + entry->offset;
        vector weight[TRIO];
#pragma GCC unroll 3
        for (c = 0u; c < TRIO; ++c)
            if (pattern >> c & 1u)
                weight[c] = vector_all(entry->value[c]);
#pragma GCC unroll 4
        for (i = 0u; i < rows; ++i, from += x_row) {
            KEEP_ADDRESS(from);
#pragma GCC unroll 8
            for (j = 0u; j < columns; ++j)
#pragma GCC unroll 4
                for (u = 0u; u < PIXEL_VECTORS; ++u) {
                    vector value = vector_load(from + j * x_pixel + u * SFD_LANES);
                    if (pattern & (pattern - 1u))
                        KEEP_VECTOR(value);
#pragma GCC unroll 3
                    for (c = 0u; c < TRIO; ++c)
                        if (pattern >> c & 1u)
                            sum[((c * rows + i) * columns + j) * PIXEL_VECTORS + u] +=
                                weight[c] * value;
                }
        }
    }
}

SFD_INLINE void trio_tile(const struct trio_visit *visit, const size_t x_pixel, const uint32_t rows,
                          const uint32_t columns)
{
    vector sum[TRIO * PAIR_PIXELS * PIXEL_VECTORS];
    const uint32_t vectors = rows * columns * PIXEL_VECTORS; /* of a channel */
    uint32_t c, i;

#pragma GCC unroll 3
    for (c = 0u; c < TRIO; ++c) {
        const vector first = vector_all(visit->bias && c < visit->channels ? visit->bias[c] : 0.0f);
#pragma GCC unroll 8
        for (i = 0u; i < vectors; ++i)
            sum[c * vectors + i] = first;
    }
#pragma GCC unroll 7
    for (i = 1u; i <= TRIO_PATTERNS; ++i)
        trio_run(sum, visit, x_pixel, i, rows, columns);
#pragma GCC unroll 3
    for (c = 0u; c < TRIO; ++c) {
        float *y = visit->y + c * visit->y_channel;
        const vector *from = sum + c * vectors;
        if (c >= visit->channels)
            break;
        if (visit->accumulate)
            tile_store(from, y, visit->y_row, PIXEL, rows, columns, 1);
        else
            tile_store(from, y, visit->y_row, PIXEL, rows, columns, 0);
    }
}

typedef void (*trio_function)(const struct trio_visit *visit);

#define TRIO_FUNCTIONS(ROWS, COLUMNS)                                         \
    static void trio_##ROWS##x##COLUMNS(const struct trio_visit *visit)       \
    {                                                                         \
        trio_tile(visit, PIXEL, ROWS, COLUMNS);                               \
    }                                                                         \
    static void trio_apart_##ROWS##x##COLUMNS(const struct trio_visit *visit) \
    {                                                                         \
        trio_tile(visit, visit->x_pixel, ROWS, COLUMNS);                      \
    }
FOR_PAIR_SHAPES(TRIO_FUNCTIONS)

#define TRIO_NEIGHBOURS(ROWS, COLUMNS) [TILE_INDEX(ROWS, COLUMNS)] = trio_##ROWS##x##COLUMNS,
#define TRIO_APART(ROWS, COLUMNS) [TILE_INDEX(ROWS, COLUMNS)] = trio_apart_##ROWS##x##COLUMNS,

static const trio_function trio_neighbours[TILE_SHAPES] = {FOR_PAIR_SHAPES(TRIO_NEIGHBOURS)};
static const trio_function trio_apart[TILE_SHAPES] = {FOR_PAIR_SHAPES(TRIO_APART)};

/* It pays from so many nonzeros of an output channel on. */
#define TRIO_NONZEROS 24u

/* Whether at most a tenth of the multiply-adds would read zeros around the images. */
static int trio_fits(const struct sfd_layer *layer)
{
    const struct sfd_convolution *shape = &layer->shape;
    uint64_t rows = 0u, columns = 0u, all;
    uint32_t i, low, high;

    for (i = 0u; i < shape->kernel_h; ++i) {
        sfd_valid_range(layer->in_height, layer->out_height, shape->stride_h, shape->padding_h,
                        i * shape->dilation_h, &low, &high);
        rows += high - low;
    }
    for (i = 0u; i < shape->kernel_w; ++i) {
        sfd_valid_range(layer->in_width, layer->out_width, shape->stride_w, shape->padding_w,
                        i * shape->dilation_w, &low, &high);
        columns += high - low;
    }
    all = (uint64_t)sfd_kernel_area(layer) * layer->out_height * layer->out_width;
    return rows * columns * 10u >= all * 9u;
}

/* A kernel of one pixel reads too little again for the copy to pay. */
static int trio_pays(const struct sfd_layer *layer)
{
    const struct sfd_support *support = &layer->support;

    return TRIO_SIXTEENTHS > 0u && layer->shape.groups == 1u && sfd_kernel_area(layer) > 1u &&
           support->rows >= TRIO &&
           (uint64_t)support->count * 16u >=
               (uint64_t)support->rows * support->columns * TRIO_SIXTEENTHS &&
           support->count / support->rows >= TRIO_NONZEROS && trio_fits(layer);
}

/* Columns and rows of a tile, as the backward's. */
static uint32_t trio_columns(const struct sfd_layer *layer, uint32_t x)
{
    return fast_tile_columns(layer->out_width, x, pair_columns(layer->out_height));
}

static uint32_t trio_rows(const struct sfd_layer *layer, uint32_t y, uint32_t bottom)
{
    return fast_tile_rows(bottom, y, trio_columns(layer, 0u), PAIR_PIXELS);
}

/* Rows or columns of the input that `count` of the output read. */
static uint64_t trio_reach(uint32_t count, uint32_t stride, uint32_t kernel, uint32_t dilation)
{
    return (count - 1u) * (uint64_t)stride + (uint64_t)(kernel - 1u) * dilation + 1u;
}

static uint64_t trio_window_row(const struct sfd_layer *layer)
{
    return PIXEL * trio_reach(layer->out_width, layer->shape.stride_w, layer->shape.kernel_w,
                              layer->shape.dilation_w);
}

/* An odd number of lines from channel to channel: no set of the first-level cache is crowded. */
static uint64_t trio_window_channel(const struct sfd_layer *layer, uint32_t rows)
{
    const uint64_t high =
        trio_reach(rows, layer->shape.stride_h, layer->shape.kernel_h, layer->shape.dilation_h);

    return (high * trio_window_row(layer) / PIXEL | 1u) * PIXEL;
}

/* Rows of the output in a strip, a multiple of a tile's. */
static uint32_t trio_strip(const struct sfd_layer *layer)
{
    const uint32_t step = trio_rows(layer, 0u, layer->out_height);
    uint32_t rows = step;

    while (rows < layer->out_height &&
           trio_window_channel(layer, rows + step) * layer->in_channels * 4u <= STRIP_BYTES)
        rows += step;
    return rows < layer->out_height ? rows : layer->out_height;
}

/* Blocks of input channels, so that what a tile reads of one stays in the first-level cache. */
static uint32_t trio_blocks(const struct sfd_layer *layer)
{
    const struct sfd_convolution *shape = &layer->shape;
    const uint64_t high = trio_reach(trio_rows(layer, 0u, layer->out_height), shape->stride_h,
                                     shape->kernel_h, shape->dilation_h);
    const uint64_t wide =
        trio_reach(trio_columns(layer, 0u), shape->stride_w, shape->kernel_w, shape->dilation_w);
    const uint64_t bytes = high * wide * PIXEL * 4u * layer->in_channels;

    return (uint32_t)sfd_minimum((bytes + TRIO_BLOCK_BYTES - 1u) / TRIO_BLOCK_BYTES,
                                 layer->in_channels);
}

/* The first entry of a trio: no two meet. */
static uint32_t trio_first(const struct sfd_layer *layer, uint32_t trio)
{
    const uint32_t row = (uint32_t)sfd_minimum(trio * TRIO, layer->support.rows);

    return (uint32_t)sfd_minimum(layer->support.row_pointer[row],
                                 (uint64_t)trio * layer->support.columns);
}

/* Lay the working memory out. Returns its bytes; with scratch NULL only counts. */
static uint64_t trio_lay(struct fast_trios *work, const struct sfd_layer *layer, uint8_t *scratch)
{
    const uint32_t trios = (layer->support.rows + TRIO - 1u) / TRIO, blocks = trio_blocks(layer);
    const uint64_t entries =
        sfd_minimum(layer->support.count, (uint64_t)trios * layer->support.columns);
    const uint64_t entry_bytes = aligned_bytes(entries * sizeof *work->entry);
    const uint64_t start_bytes =
        aligned_bytes((uint64_t)trios * blocks * (TRIO_PATTERNS + 1u) * sizeof *work->start);
    const uint64_t place_bytes =
        aligned_bytes((uint64_t)layer->threads * layer->support.columns * sizeof *work->place);
    const uint64_t channel = trio_window_channel(layer, trio_strip(layer));

    if (scratch != NULL) {
        work->entry = (void *)scratch;
        work->start = (void *)(scratch + entry_bytes);
        work->place = (void *)(scratch + entry_bytes + start_bytes);
        work->window = (void *)(scratch + entry_bytes + start_bytes + place_bytes);
        work->trios = trios;
        work->blocks = blocks;
        work->row = (size_t)trio_window_row(layer);
        work->channel = (size_t)channel;
    }
    return entry_bytes + start_bytes + place_bytes + layer->in_channels * channel * 4u;
}

static uint64_t trio_forward_bytes(const struct sfd_layer *layer)
{
    return trio_lay(NULL, layer, NULL);
}

/* The starts of the patterns of a trio in one block, and the end of the last. */
static uint32_t *trio_start(const struct fast_trios *work, uint32_t trio, uint32_t block)
{
    return work->start + ((size_t)block * work->trios + trio) * (TRIO_PATTERNS + 1u);
}

/* Sort columns [first, last) of a trio: place[k] is the pattern of column k, and becomes its entry.
 * Returns the entry after the last. */
static uint32_t trio_place(const struct fast_trios *work, uint32_t *start, uint32_t entry,
                           uint32_t first_channel, uint32_t last_channel, uint32_t *place)
{
    const struct sfd_convolution *shape = &work->layer->shape;
    const uint32_t area = sfd_kernel_area(work->layer);
    uint32_t next[TRIO_PATTERNS + 1u] = {0u};
    uint32_t c, t, p, k;

    for (k = first_channel * area; k < last_channel * area; ++k)
        ++next[place[k]];
    for (p = 0u; p <= TRIO_PATTERNS; ++p) {
        const uint32_t count = p > 0u ? next[p] : 0u;
        next[p] = entry;
        entry += count;
        start[p] = entry;
    }
    for (c = first_channel; c < last_channel; ++c)
        for (t = 0u; t < area; ++t) {
            const uint32_t at_y = t / shape->kernel_w * shape->dilation_h;
            const uint32_t at_x = t % shape->kernel_w * shape->dilation_w;
            k = c * area + t;
            if (place[k] == 0u)
                continue;
            place[k] = next[place[k]]++;
            work->entry[place[k]].offset =
                (int32_t)(c * work->channel + at_y * work->row + (size_t)at_x * PIXEL);
        }
    return entry;
}

static void trio_sort(const struct fast_trios *work, uint32_t trio, uint32_t *place)
{
    const struct sfd_support *support = &work->layer->support;
    const uint32_t channels = work->layer->in_channels;
    const uint32_t first = trio * TRIO;
    const uint32_t count = support->rows - first < TRIO ? support->rows - first : TRIO;
    uint32_t entry = trio_first(work->layer, trio);
    uint32_t c, k, b;

    memset(place, 0, support->columns * sizeof *place);
    for (c = 0u; c < count; ++c)
        for (k = support->row_pointer[first + c]; k < support->row_pointer[first + c + 1u]; ++k)
            place[sfd_column(support, k)] |= 1u << c;
    for (b = 0u; b < work->blocks; ++b)
        entry = trio_place(work, trio_start(work, trio, b), entry,
                           (uint32_t)((uint64_t)channels * b / work->blocks),
                           (uint32_t)((uint64_t)channels * (b + 1u) / work->blocks), place);
    for (c = 0u; c < count; ++c)
        for (k = support->row_pointer[first + c]; k < support->row_pointer[first + c + 1u]; ++k)
            work->entry[place[sfd_column(support, k)]].value[c] = work->w[k];
}

static void trio_sort_share(void *context, uint32_t index, uint32_t count)
{
    const struct fast_trios *work = context;
    const uint32_t last = sfd_share(work->trios, index + 1u, count);
    uint32_t *place = work->place + (size_t)index * work->layer->support.columns;
    uint32_t trio;

    for (trio = sfd_share(work->trios, index, count); trio < last; ++trio)
        trio_sort(work, trio, place);
}

/* One row of a channel into the window, zeros around it. */
static void trio_copy_row(const struct fast_trios *work, const float *from, float *to)
{
    const size_t before = sfd_minimum(work->layer->shape.padding_w * PIXEL, work->row);
    const size_t inside = sfd_minimum((uint64_t)work->layer->in_width * PIXEL, work->row - before);

    memset(to, 0, before * sizeof *to);
    memcpy(to + before, from, inside * sizeof *to);
    memset(to + before + inside, 0, (work->row - before - inside) * sizeof *to);
}

/* The channels of the window that one thread copies. */
static void trio_copy_share(void *context, uint32_t index, uint32_t count)
{
    const struct fast_trios *work = context;
    const struct sfd_layer *layer = work->layer;
    const uint32_t last = sfd_share(layer->in_channels, index + 1u, count);
    const uint64_t high = trio_reach(work->bottom - work->top, layer->shape.stride_h,
                                     layer->shape.kernel_h, layer->shape.dilation_h);
    uint32_t c, i;

    for (c = sfd_share(layer->in_channels, index, count); c < last; ++c)
        for (i = 0u; i < high; ++i) {
            const int64_t y =
                (int64_t)work->top * layer->shape.stride_h + i - layer->shape.padding_h;
            float *to = work->window + c * work->channel + i * work->row;
            if (y >= 0 && y < (int64_t)layer->in_height)
                trio_copy_row(work,
                              work->x + (c * (size_t)layer->in_height + (size_t)y) *
                                            layer->in_width * PIXEL,
                              to);
            else
                memset(to, 0, work->row * sizeof *to);
        }
}

/* One tile of trios [first, last). */
static void trio_visits(const struct fast_trios *work, struct trio_visit *visit,
                        trio_function function, float *y, uint32_t first, uint32_t last)
{
    const uint32_t channels = work->layer->support.rows;
    uint32_t block, trio;

    for (block = 0u; block < work->blocks; ++block)
        for (trio = first; trio < last; ++trio) {
            const uint32_t channel = trio * TRIO;
            visit->start = trio_start(work, trio, block);
            visit->y = y + channel * visit->y_channel;
            visit->bias = block == 0u && work->bias ? work->bias + channel : NULL;
            visit->accumulate = block > 0u;
            visit->channels = channels - channel < TRIO ? channels - channel : TRIO;
            function(visit);
        }
}

/* The trios of one thread, in one strip. */
static void trio_share(void *context, uint32_t index, uint32_t count)
{
    const struct fast_trios *work = context;
    const struct sfd_layer *layer = work->layer;
    const uint32_t first = sfd_share(work->trios, index, count);
    const uint32_t last = sfd_share(work->trios, index + 1u, count);
    struct trio_visit visit = {.entry = work->entry};
    uint32_t y, x, rows, columns;

    visit.x_row = work->row * layer->shape.stride_h;
    visit.x_pixel = (size_t)layer->shape.stride_w * PIXEL;
    visit.y_row = (size_t)layer->out_width * PIXEL;
    visit.y_channel = layer->out_height * visit.y_row;
    for (y = work->top; y < work->bottom; y += rows) {
        rows = trio_rows(layer, y, work->bottom);
        for (x = 0u; x < layer->out_width; x += columns) {
            columns = trio_columns(layer, x);
            visit.x = work->window + (y - work->top) * visit.x_row + x * visit.x_pixel;
            trio_visits(work, &visit,
                        (layer->shape.stride_w == 1u ? trio_neighbours
                                                     : trio_apart)[TILE_INDEX(rows, columns)],
                        work->y + y * visit.y_row + (size_t)x * PIXEL, first, last);
        }
    }
}

static void trio_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                         const float *x, float *y, uint32_t count, uint8_t *scratch)
{
    struct fast_trios work = {.layer = layer, .w = w, .bias = bias};
    const uint32_t rows = trio_strip(layer);
    uint32_t i;

    (void)trio_lay(&work, layer, scratch);
    sfd_team_run(layer->team, trio_sort_share, &work);
    for (i = 0u; i < count; i += SFD_BLOCK) {
        work.x = x + i * sfd_in_elements(layer);
        work.y = y + i * sfd_out_elements(layer);
        for (work.top = 0u; work.top < layer->out_height; work.top += rows) {
            work.bottom = (uint32_t)sfd_minimum(layer->out_height, (uint64_t)work.top + rows);
            sfd_team_run(layer->team, trio_copy_share, &work);
            sfd_team_run(layer->team, trio_share, &work);
        }
    }
}

#endif
