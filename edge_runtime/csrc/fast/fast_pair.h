/* Input and weight gradient in one pass over dy.
 *
 * Both read dy at the same places: dx[c][p] += w * dy[r][p + shift], and the gradient of w is the sum
 * of x[c][p] * dy[r][p + shift]. So a tile of dx and the same tile of x stay in registers while the
 * nonzeros of an input channel go by, and each vector of dy that is loaded serves two multiply-adds:
 * the loads are what limits the speed. Each nonzero has a vector of partial sums of its gradient,
 * which is added up once for a strip of tiles.
 *
 * A dense layer takes the channels of dy in blocks: what a tile reads of one stays in the first-level
 * cache while some input channels go by. */
#ifndef SFD_FAST_PAIR_H
#define SFD_FAST_PAIR_H

#include "fast_gather.h"

/* What is wanted of a tile. */
enum fast_wanted { FAST_D_INPUT = 1, FAST_D_WEIGHT = 2 };

/* One tile of one input channel; all point to the tile's first pixel. Strides in floats. */
struct fast_pair {
    const struct fast_program *program;
    const struct fast_tile *tile;
    const uint32_t *start; /* of the buckets of the channel in a block of those of dy */
    const float *dy;
    size_t dy_row;
    const float *x;
    size_t x_row, x_pixel;
    float *dx;
    size_t dx_row, dx_pixel;
    int accumulate;
    vector *partial; /* of the first tap's first entry */
    uint32_t first_tap;
};

SFD_INLINE void pair_run(vector *sum, const vector *x, const struct fast_entry *entry,
                         const struct fast_entry *end, vector *partial, const float *dy,
                         size_t dy_row, const int wanted, const uint32_t columns,
                         const uint32_t top, const uint32_t bottom, const uint32_t left,
                         const uint32_t right)
{
    enum { CHAINS = 4 };
    uint32_t i, j, u;

    for (; entry != end; ++entry, ++partial) {
        const vector weight = vector_all(entry->value);
        const float *from = dy + entry->offset;
        vector chain[CHAINS];
        uint32_t used = 0u;
#pragma GCC unroll 4
        for (i = top; i < bottom; ++i)
#pragma GCC unroll 8
            for (j = left; j < right; ++j)
#pragma GCC unroll 4
                for (u = 0; u < PIXEL_VECTORS; ++u) {
                    const uint32_t at = (i * columns + j) * PIXEL_VECTORS + u;
                    const vector value =
                        vector_load(from + (size_t)i * dy_row + j * PIXEL + u * SFD_LANES);
                    if (wanted & FAST_D_INPUT)
                        sum[at] += weight * value;
                    if (wanted & FAST_D_WEIGHT)
                        chain[used % CHAINS] =
                            used < CHAINS ? x[at] * value : chain[used % CHAINS] + x[at] * value;
                    ++used;
                }
        for (; used < CHAINS; ++used)
            chain[used] = vector_all(0.0f);
        if (wanted & FAST_D_WEIGHT)
            *partial += (chain[0] + chain[1]) + (chain[2] + chain[3]);
    }
}

/* Runs whose pixels no pattern describes, pixel by pixel, on the stored result. */
static void pair_irregular(const struct fast_pair *pair, int wanted)
{
    const struct fast_program *program = pair->program;
    const uint32_t *start = pair->start;
    uint32_t r, i, j, u;

    for (r = 0u; r < pair->tile->run_count; ++r) {
        const struct fast_run *run = &pair->tile->run[r];
        const struct fast_entry *entry = program->entry + start[run->first], *e;
        const struct fast_entry *end = program->entry + start[run->last];
        vector *partial = pair->partial + (start[run->first] - start[pair->first_tap]);
        if (run->pattern != FAST_IRREGULAR || entry == end)
            continue;
        for (i = run->top; i < run->bottom; ++i)
            for (j = run->left; j < run->right; ++j) {
                const float *dy = pair->dy + i * pair->dy_row + j * PIXEL;
                const float *x = pair->x + i * pair->x_row + j * pair->x_pixel;
                float *dx = pair->dx + i * pair->dx_row + j * pair->dx_pixel;
                if (wanted & FAST_D_INPUT) {
                    vector sum[PIXEL_VECTORS];
                    for (u = 0u; u < PIXEL_VECTORS; ++u)
                        sum[u] = vector_load(dx + u * SFD_LANES);
                    gather_pixel(sum, entry, end, dy);
                    for (u = 0u; u < PIXEL_VECTORS; ++u)
                        vector_store(dx + u * SFD_LANES, sum[u]);
                }
                if (wanted & FAST_D_WEIGHT)
                    for (e = entry; e != end; ++e)
                        for (u = 0u; u < PIXEL_VECTORS; ++u)
                            partial[e - entry] += vector_load(x + u * SFD_LANES) *
                                                  vector_load(dy + e->offset + u * SFD_LANES);
            }
    }
}

#define PAIR_CASE(ROWS, COLUMNS, ROW_EDGE, COLUMN_EDGE)                                          \
    case FAST_PATTERN(ROW_EDGE, COLUMN_EDGE):                                                    \
        pair_run(sum, x, entry, end, partial, dy, dy_row, wanted, COLUMNS,                       \
                 (ROW_EDGE) == FAST_BUT_FIRST, (ROWS) - ((ROW_EDGE) == FAST_BUT_LAST),           \
                 (COLUMN_EDGE) == FAST_BUT_FIRST, (COLUMNS) - ((COLUMN_EDGE) == FAST_BUT_LAST)); \
        break;

/* Begin with sums of zero, and the pixels of x. */
SFD_INLINE void pair_begin(const struct fast_pair *pair, vector *sum, vector *x,
                           const uint32_t rows, const uint32_t columns, const int wanted)
{
    uint32_t i, j, u;

#pragma GCC unroll 4
    for (i = 0; i < rows; ++i)
#pragma GCC unroll 8
        for (j = 0; j < columns; ++j)
#pragma GCC unroll 4
            for (u = 0; u < PIXEL_VECTORS; ++u) {
                const uint32_t at = (i * columns + j) * PIXEL_VECTORS + u;
                sum[at] = vector_all(0.0f);
                if (wanted & FAST_D_WEIGHT)
                    x[at] = vector_load(pair->x + (size_t)i * pair->x_row +
                                        (size_t)j * pair->x_pixel + u * SFD_LANES);
            }
}

/* Returns the multiply-adds of either gradient for one image. */
SFD_INLINE uint64_t pair_tile(const struct fast_pair *pair, const uint32_t rows,
                              const uint32_t columns, const int wanted)
{
    const struct fast_entry *entries = pair->program->entry;
    const uint32_t *start = pair->start;
    const struct fast_run *run = pair->tile->run, *last = run + pair->tile->run_count;
    const uint32_t first = start[pair->first_tap];
    const float *dy = pair->dy;
    const size_t dy_row = pair->dy_row;
    vector sum[8 * PIXEL_VECTORS], x[8 * PIXEL_VECTORS];
    uint64_t done = 0u;

    pair_begin(pair, sum, x, rows, columns, wanted);
    for (; run != last; ++run) {
        const struct fast_entry *entry = entries + start[run->first];
        const struct fast_entry *end = entries + start[run->last];
        vector *partial = pair->partial + (start[run->first] - first);
        done += (uint64_t)(end - entry) * run->pixels;
        switch (run->pattern) {
            PAIR_CASE(rows, columns, FAST_ALL, FAST_ALL)
            PAIR_CASE(rows, columns, FAST_ALL, FAST_BUT_FIRST)
            PAIR_CASE(rows, columns, FAST_ALL, FAST_BUT_LAST)
            PAIR_CASE(rows, columns, FAST_BUT_FIRST, FAST_ALL)
            PAIR_CASE(rows, columns, FAST_BUT_FIRST, FAST_BUT_FIRST)
            PAIR_CASE(rows, columns, FAST_BUT_FIRST, FAST_BUT_LAST)
            PAIR_CASE(rows, columns, FAST_BUT_LAST, FAST_ALL)
            PAIR_CASE(rows, columns, FAST_BUT_LAST, FAST_BUT_FIRST)
            PAIR_CASE(rows, columns, FAST_BUT_LAST, FAST_BUT_LAST)
        }
    }
    if ((wanted & FAST_D_INPUT) && pair->accumulate)
        tile_store(sum, pair->dx, pair->dx_row, pair->dx_pixel, rows, columns, 1);
    else if (wanted & FAST_D_INPUT)
        tile_store(sum, pair->dx, pair->dx_row, pair->dx_pixel, rows, columns, 0);
    if (pair->tile->irregular)
        pair_irregular(pair, wanted);
    return done;
}

typedef uint64_t (*pair_function)(const struct fast_pair *pair);

#define PAIR_FUNCTIONS(ROWS, COLUMNS)                                              \
    static uint64_t pair_both_##ROWS##x##COLUMNS(const struct fast_pair *pair)     \
    {                                                                              \
        return pair_tile(pair, ROWS, COLUMNS, FAST_D_INPUT | FAST_D_WEIGHT);       \
    }                                                                              \
    static uint64_t pair_d_input_##ROWS##x##COLUMNS(const struct fast_pair *pair)  \
    {                                                                              \
        return pair_tile(pair, ROWS, COLUMNS, FAST_D_INPUT);                       \
    }                                                                              \
    static uint64_t pair_d_weight_##ROWS##x##COLUMNS(const struct fast_pair *pair) \
    {                                                                              \
        return pair_tile(pair, ROWS, COLUMNS, FAST_D_WEIGHT);                      \
    }
FOR_PAIR_SHAPES(PAIR_FUNCTIONS)

#define PAIR_BOTH(ROWS, COLUMNS) [TILE_INDEX(ROWS, COLUMNS)] = pair_both_##ROWS##x##COLUMNS,
#define PAIR_D_INPUT(ROWS, COLUMNS) [TILE_INDEX(ROWS, COLUMNS)] = pair_d_input_##ROWS##x##COLUMNS,
#define PAIR_D_WEIGHT(ROWS, COLUMNS) [TILE_INDEX(ROWS, COLUMNS)] = pair_d_weight_##ROWS##x##COLUMNS,

static const pair_function pair_functions[3][TILE_SHAPES] = {
    [FAST_D_INPUT - 1] = {FOR_PAIR_SHAPES(PAIR_D_INPUT)},
    [FAST_D_WEIGHT - 1] = {FOR_PAIR_SHAPES(PAIR_D_WEIGHT)},
    [(FAST_D_INPUT | FAST_D_WEIGHT) - 1] = {FOR_PAIR_SHAPES(PAIR_BOTH)},
};

/* Rows of one phase of channels [first_channel, last_channel) of the input gradient. The pointers are
 * to the phase's first pixel in channel 0, x and dy with the row that they begin with. */
struct fast_strip {
    struct fast_map map;
    uint32_t first_channel, last_channel, first_row, last_row, first_tap, last_tap;
    const float *dy;
    size_t dy_row;
    float *gradient;       /* of all entries: their sums are added to */
    const float *x;        /* NULL: no weight gradient */
    uint32_t dy_first_row; /* where dy begins */
    uint32_t x_first_row;  /* of the phase: where x begins */
    size_t x_channel, x_row, x_pixel;
    float *dx; /* NULL: no input gradient */
    size_t dx_channel, dx_row, dx_pixel;
    int accumulate;
};

/* Two rows of pixels touch fewer pixels of dy than one: the rows around them serve both. */
static uint32_t pair_columns(uint32_t height)
{
    return PAIR_PIXELS >= 8u && height > 1u ? PAIR_PIXELS / 2u : PAIR_PIXELS;
}

/* Bytes that a tile of one phase touches of each channel of dy. */
static size_t pair_window(const struct sfd_layer *layer)
{
    const struct sfd_convolution *shape = &layer->shape;
    const uint32_t height = phase_length(layer->in_height, 0u, shape->stride_h);
    const uint32_t width = phase_length(layer->in_width, 0u, shape->stride_w);
    const uint32_t columns = fast_tile_columns(width, 0u, pair_columns(height));
    const uint32_t rows = fast_tile_rows(height, 0u, columns, PAIR_PIXELS);
    const size_t high = rows + (shape->kernel_h - 1u) / shape->stride_h;
    const size_t wide = columns + (shape->kernel_w - 1u) / shape->stride_w;

    return (high < layer->out_height ? high : layer->out_height) *
           (wide < layer->out_width ? wide : layer->out_width) * PIXEL * 4u;
}

static uint32_t pair_blocks(const struct sfd_layer *layer)
{
    return fast_backward_blocks(layer, pair_window(layer), PAIR_VISIT);
}

/* Partial sums of channels that go by together, so that a block of dy which they read in turns serves
 * them all: what the second-level cache has room for. */
#define PAIR_PARTIALS 2048u

/* Partial sums of one channel, which may keep all its weights, or of as many. */
static uint64_t partial_bytes(const struct sfd_layer *layer)
{
    uint64_t most = (uint64_t)layer->support.rows / layer->shape.groups * sfd_kernel_area(layer);

    if (pair_blocks(layer) > 1u)
        most = sfd_maximum(most, PAIR_PARTIALS);
    return aligned_bytes(sfd_minimum(most, layer->support.count) * SFD_BLOCK * 4u);
}

/* The tiles of a strip with their runs. Returns their number. */
static uint32_t strip_tiles(const struct fast_program *program, const struct fast_strip *strip,
                            struct fast_tile *tiles, struct fast_run *runs)
{
    const uint32_t width = strip->map.width, limit = pair_columns(strip->map.height);
    uint32_t count = 0u, y = strip->first_row, x, rows;

    for (; y < strip->last_row; y += rows) {
        rows = fast_tile_rows(strip->last_row, y, fast_tile_columns(width, 0u, limit), PAIR_PIXELS);
        for (x = 0u; x < width; x += tiles[count++].columns) {
            struct fast_tile *tile = &tiles[count];
            tile->y = y;
            tile->x = x;
            tile->rows = rows;
            tile->columns = fast_tile_columns(width, x, limit);
            tile->run = runs + (size_t)count * program->taps;
            fast_tile_runs(tile, &strip->map, program->tap, strip->first_tap, strip->last_tap);
        }
    }
    return count;
}

/* gradient[k] += the sum of partial[k]. */
static void add_sums(vector *partial, uint32_t count, float *gradient)
{
    uint32_t k = 0u;

    for (; k + SFD_LANES <= count; k += SFD_LANES)
        vector_store(gradient + k, vector_load(gradient + k) + vectors_sum(partial + k));
    for (; k < count; ++k)
        gradient[k] += vector_sum(partial[k]);
}

/* The nonzeros of a channel in a block of the channels of dy, of the taps of a strip. */
static const uint32_t *strip_bucket(const struct fast_program *program, uint32_t block,
                                    uint32_t channel)
{
    return program->start + ((size_t)block * program->channels + channel) * program->taps;
}

/* One tile of a channel, of one block of the channels of dy. Returns its multiply-adds. */
static uint64_t pair_visit(const struct fast_strip *strip, struct fast_pair *pair, uint32_t channel,
                           int wanted)
{
    const struct fast_tile *tile = pair->tile;

    pair->dy =
        strip->dy + (tile->y - strip->dy_first_row) * strip->dy_row + (size_t)tile->x * PIXEL;
    if (wanted & FAST_D_WEIGHT)
        pair->x = strip->x + channel * strip->x_channel +
                  (tile->y - strip->x_first_row) * strip->x_row + tile->x * strip->x_pixel;
    if (wanted & FAST_D_INPUT)
        pair->dx = strip->dx + channel * strip->dx_channel + tile->y * strip->dx_row +
                   tile->x * strip->dx_pixel;
    return pair_functions[wanted - 1][TILE_INDEX(tile->rows, tile->columns)](pair) * SFD_BLOCK;
}

/* One tile of channels [first, last), block by block of the channels of dy. */
static void pair_channels(const struct fast_program *program, const struct fast_strip *strip,
                          struct fast_pair *pair, uint32_t first, uint32_t last, vector *partial,
                          struct sfd_multiply_adds *done)
{
    uint32_t block, channel;

    for (block = 0u; block < program->blocks; ++block)
        for (channel = first; channel < last; ++channel) {
            const uint32_t *start = strip_bucket(program, block, channel);
            const uint32_t count = start[strip->last_tap] - start[strip->first_tap];
            const int wanted =
                (strip->dx ? FAST_D_INPUT : 0) | (strip->x && count > 0u ? FAST_D_WEIGHT : 0);
            uint64_t work;
            pair->start = start;
            pair->partial = partial;
            pair->accumulate = strip->accumulate || block > 0u;
            if (wanted == 0 || (count == 0u && pair->accumulate))
                continue;
            work = pair_visit(strip, pair, channel, wanted);
            done->d_input += wanted & FAST_D_INPUT ? work : 0u;
            done->d_weight += wanted & FAST_D_WEIGHT ? work : 0u;
            partial += count;
        }
}

/* The nonzeros of a channel of a strip. */
static uint32_t strip_nonzeros(const struct fast_program *program, const struct fast_strip *strip,
                               uint32_t channel)
{
    uint32_t block, count = 0u;

    for (block = 0u; block < program->blocks; ++block) {
        const uint32_t *start = strip_bucket(program, block, channel);
        count += start[strip->last_tap] - start[strip->first_tap];
    }
    return count;
}

/* The channels after `channel` that go by with it, where dy is read in blocks. Returns the one after
 * the last. */
static uint32_t group_end(const struct fast_program *program, const struct fast_strip *strip,
                          uint32_t channel, uint32_t *nonzeros)
{
    *nonzeros = strip_nonzeros(program, strip, channel);
    while (++channel < strip->last_channel && program->blocks > 1u) {
        const uint32_t more = strip_nonzeros(program, strip, channel);
        if (*nonzeros + more > PAIR_PARTIALS)
            break;
        *nonzeros += more;
    }
    return channel;
}

/* The partial sums of channels [first, last) to their gradients. */
static void group_sums(const struct fast_program *program, const struct fast_strip *strip,
                       uint32_t first, uint32_t last, vector *partial)
{
    uint32_t block, channel;

    for (block = 0u; block < program->blocks; ++block)
        for (channel = first; channel < last; ++channel) {
            const uint32_t *start = strip_bucket(program, block, channel);
            const uint32_t from = start[strip->first_tap], count = start[strip->last_tap] - from;
            add_sums(partial, count, strip->gradient + from);
            partial += count;
        }
}

static void pair_strip(const struct fast_program *program, const struct fast_strip *strip,
                       struct fast_tile *tiles, struct fast_run *runs, vector *partial,
                       struct sfd_multiply_adds *done)
{
    const uint32_t tile_count = strip_tiles(program, strip, tiles, runs);
    struct fast_pair pair;
    uint32_t first, last, t, k, nonzeros;

    pair.program = program;
    pair.dy_row = strip->dy_row;
    pair.x_row = strip->x_row;
    pair.x_pixel = strip->x_pixel;
    pair.dx_row = strip->dx_row;
    pair.dx_pixel = strip->dx_pixel;
    pair.first_tap = strip->first_tap;
    for (first = strip->first_channel; first < strip->last_channel; first = last) {
        last = group_end(program, strip, first, &nonzeros);
        for (k = 0u; strip->x && k < nonzeros; ++k)
            partial[k] = vector_all(0.0f);
        for (t = 0u; t < tile_count; ++t) {
            pair.tile = &tiles[t];
            pair_channels(program, strip, &pair, first, last, partial, done);
        }
        if (strip->x)
            group_sums(program, strip, first, last, partial);
    }
}
#endif
