/* y = W x over the nonzeros, a register tile of output pixels at a time.
 *
 * The images of a block are interleaved, so that a pixel is 16 floats. For a tile of pixels the sums
 * stay in registers while the nonzeros of one output channel go by: each costs one broadcast of its
 * weight and one multiply-add with a memory operand for each vector of the tile. The input gradient
 * is the same sum over the transposed list. Patterns skip the tile's edge where a tap falls outside
 * the image, so that no border is stored and no multiply-add is wasted. */
#ifndef SFD_FAST_GATHER_H
#define SFD_FAST_GATHER_H

#include "fast_program.h"
#include "fast_shapes.h"
#include "fast_vector.h"

#define PIXEL SFD_BLOCK                /* floats of a pixel */
#define PIXEL_VECTORS (16 / SFD_LANES) /* registers of a pixel */

/* One tile of output channels [first_channel, last_channel). x and y point to the tile's first pixel. Strides in floats. */
struct fast_gather {
    const struct fast_program *program;
    const uint32_t *start; /* of the buckets of a block of input channels */
    const struct fast_tile *tile;
    const float *x;
    size_t x_row,
        x_pixel; /* from an output pixel's input to that of the next row, the next pixel */
    float *y;
    size_t y_channel, y_row;
    const float *bias; /* NULL: none */
    int accumulate;
    uint32_t first_channel, last_channel;
};

/* Add a run of entries to the sums of pixels [top, bottom) x [left, right). The sums of a small tile
 * are kept `chains` times, so that additions do not wait for each other. */
SFD_INLINE void gather_run(vector *sum, const struct fast_entry *entry,
                           const struct fast_entry *end, const float *x, size_t x_row,
                           size_t x_pixel, const uint32_t columns, const uint32_t top,
                           const uint32_t bottom, const uint32_t left, const uint32_t right)
{
    uint32_t i, j, u;

    for (; entry != end; ++entry) {
        const vector weight = vector_all(entry->value);
        const float *from = x + entry->offset;
#pragma GCC unroll 4
        for (i = top; i < bottom; ++i)
#pragma GCC unroll 16
            for (j = left; j < right; ++j)
#pragma GCC unroll 4
                for (u = 0; u < PIXEL_VECTORS; ++u)
                    sum[(i * columns + j) * PIXEL_VECTORS + u] +=
                        weight *
                        vector_load(from + (size_t)i * x_row + (size_t)j * x_pixel + u * SFD_LANES);
    }
}

/* One pixel, with several sums. */
SFD_INLINE void gather_pixel(vector *sum, const struct fast_entry *entry,
                             const struct fast_entry *end, const float *x)
{
    enum { CHAINS = 8 / PIXEL_VECTORS };
    vector chain[CHAINS * PIXEL_VECTORS];
    uint32_t c, u;

#pragma GCC unroll 8
    for (u = 0; u < CHAINS * PIXEL_VECTORS; ++u)
        chain[u] = vector_all(0.0f);
    for (; end - entry >= CHAINS; entry += CHAINS)
#pragma GCC unroll 8
        for (c = 0; c < CHAINS; ++c)
#pragma GCC unroll 4
            for (u = 0; u < PIXEL_VECTORS; ++u)
                chain[c * PIXEL_VECTORS + u] +=
                    entry[c].value * vector_load(x + entry[c].offset + u * SFD_LANES);
    for (; entry != end; ++entry)
#pragma GCC unroll 4
        for (u = 0; u < PIXEL_VECTORS; ++u)
            chain[u] += entry->value * vector_load(x + entry->offset + u * SFD_LANES);
#pragma GCC unroll 4
    for (u = 0; u < PIXEL_VECTORS; ++u)
#pragma GCC unroll 8
        for (c = 0; c < CHAINS; ++c)
            sum[u] += chain[c * PIXEL_VECTORS + u];
}

/* Runs whose pixels no pattern describes: pixel by pixel, on the stored result. */
static void gather_irregular(const struct fast_gather *gather, uint32_t channel)
{
    const struct fast_program *program = gather->program;
    const struct fast_tile *tile = gather->tile;
    const uint32_t *start = gather->start + (size_t)channel * program->taps;
    uint32_t r, i, j, u;

    for (r = 0u; r < tile->run_count; ++r) {
        const struct fast_run *run = &tile->run[r];
        const struct fast_entry *entry = program->entry + start[run->first];
        const struct fast_entry *end = program->entry + start[run->last];
        if (run->pattern != FAST_IRREGULAR || entry == end)
            continue;
        for (i = run->top; i < run->bottom; ++i)
            for (j = run->left; j < run->right; ++j) {
                float *y = gather->y + channel * gather->y_channel + i * gather->y_row + j * PIXEL;
                vector sum[PIXEL_VECTORS];
                for (u = 0u; u < PIXEL_VECTORS; ++u)
                    sum[u] = vector_load(y + u * SFD_LANES);
                gather_pixel(sum, entry, end, gather->x + i * gather->x_row + j * gather->x_pixel);
                for (u = 0u; u < PIXEL_VECTORS; ++u)
                    vector_store(y + u * SFD_LANES, sum[u]);
            }
    }
}

/* Copies of one loop, for each pattern a tile of this shape can have. */
#define GATHER_CASE(ROWS, COLUMNS, ROW_EDGE, COLUMN_EDGE)                                     \
    case FAST_PATTERN(ROW_EDGE, COLUMN_EDGE):                                                 \
        gather_run(sum, entry, end, x, x_row, x_pixel, COLUMNS, (ROW_EDGE) == FAST_BUT_FIRST, \
                   (ROWS) - ((ROW_EDGE) == FAST_BUT_LAST), (COLUMN_EDGE) == FAST_BUT_FIRST,   \
                   (COLUMNS) - ((COLUMN_EDGE) == FAST_BUT_LAST));                             \
        break;

/* Add the nonzeros of one output channel to the sums. Returns their multiply-adds for one image,
 * with those of irregular runs, which are left out. */
SFD_INLINE uint64_t gather_runs(const struct fast_gather *gather, uint32_t channel, vector *sum,
                                const uint32_t rows, const uint32_t columns, size_t x_pixel)
{
    const struct fast_entry *entries = gather->program->entry;
    const uint32_t *start = gather->start + (size_t)channel * gather->program->taps;
    const struct fast_run *run = gather->tile->run, *last = run + gather->tile->run_count;
    const float *x = gather->x;
    const size_t x_row = gather->x_row;
    uint64_t done = 0u;

    for (; run != last; ++run) {
        const struct fast_entry *entry = entries + start[run->first];
        const struct fast_entry *end = entries + start[run->last];
        done += (uint64_t)(end - entry) * run->pixels;
        switch (run->pattern) {
            GATHER_CASE(rows, columns, FAST_ALL, FAST_ALL)
            GATHER_CASE(rows, columns, FAST_ALL, FAST_BUT_FIRST)
            GATHER_CASE(rows, columns, FAST_ALL, FAST_BUT_LAST)
            GATHER_CASE(rows, columns, FAST_BUT_FIRST, FAST_ALL)
            GATHER_CASE(rows, columns, FAST_BUT_FIRST, FAST_BUT_FIRST)
            GATHER_CASE(rows, columns, FAST_BUT_FIRST, FAST_BUT_LAST)
            GATHER_CASE(rows, columns, FAST_BUT_LAST, FAST_ALL)
            GATHER_CASE(rows, columns, FAST_BUT_LAST, FAST_BUT_FIRST)
            GATHER_CASE(rows, columns, FAST_BUT_LAST, FAST_BUT_LAST)
        }
    }
    return done;
}

/* The sums to where they belong, or added to what is there. */
SFD_INLINE void tile_store(const vector *sum, float *to, const size_t row, const size_t pixel,
                           const uint32_t rows, const uint32_t columns, const int accumulate)
{
    uint32_t i, j, u;

#pragma GCC unroll 4
    for (i = 0; i < rows; ++i)
#pragma GCC unroll 16
        for (j = 0; j < columns; ++j)
#pragma GCC unroll 4
            for (u = 0; u < PIXEL_VECTORS; ++u) {
                float *at = to + i * row + j * pixel + u * SFD_LANES;
                vector value = sum[(i * columns + j) * PIXEL_VECTORS + u];
                vector_store(at, accumulate ? vector_load(at) + value : value);
            }
}

SFD_INLINE uint64_t gather_tile(const struct fast_gather *gather, const uint32_t rows,
                                const uint32_t columns, size_t x_pixel)
{
    const uint32_t last = gather->last_channel;
    uint64_t done = 0u;
    uint32_t channel, u;

    for (channel = gather->first_channel; channel < last; ++channel) {
        float *y = gather->y + channel * gather->y_channel;
        const float first = gather->bias ? gather->bias[channel] : 0.0f;
        vector sum[16 * PIXEL_VECTORS];

#pragma GCC unroll 16
        for (u = 0; u < rows * columns * PIXEL_VECTORS; ++u)
            sum[u] = vector_all(first);
        done += gather_runs(gather, channel, sum, rows, columns, x_pixel);
        if (gather->accumulate)
            tile_store(sum, y, gather->y_row, PIXEL, rows, columns, 1);
        else
            tile_store(sum, y, gather->y_row, PIXEL, rows, columns, 0);
        if (gather->tile->irregular)
            gather_irregular(gather, channel);
    }
    return done;
}

typedef uint64_t (*gather_function)(const struct fast_gather *gather);

#define GATHER_FUNCTIONS(ROWS, COLUMNS)                                               \
    static uint64_t gather_##ROWS##x##COLUMNS(const struct fast_gather *gather)       \
    {                                                                                 \
        return gather_tile(gather, ROWS, COLUMNS, PIXEL);                             \
    }                                                                                 \
    static uint64_t gather_apart_##ROWS##x##COLUMNS(const struct fast_gather *gather) \
    {                                                                                 \
        return gather_tile(gather, ROWS, COLUMNS, gather->x_pixel);                   \
    }
FOR_TILE_SHAPES(GATHER_FUNCTIONS)

#define GATHER_NEIGHBOURS(ROWS, COLUMNS) [TILE_INDEX(ROWS, COLUMNS)] = gather_##ROWS##x##COLUMNS,
#define GATHER_APART(ROWS, COLUMNS) [TILE_INDEX(ROWS, COLUMNS)] = gather_apart_##ROWS##x##COLUMNS,

/* For inputs that lie side by side, and for inputs that lie apart (stride). */
static const gather_function gather_neighbours[TILE_SHAPES] = {FOR_TILE_SHAPES(GATHER_NEIGHBOURS)};
static const gather_function gather_apart[TILE_SHAPES] = {FOR_TILE_SHAPES(GATHER_APART)};

/* Images of one block, and the channels and rows of the output that are wanted. */
struct fast_images {
    uint32_t first_channel, last_channel, first_row, last_row;
    struct fast_map map;
    const float *x; /* begins with row x_first_row */
    uint32_t x_first_row;
    size_t x_row, x_pixel; /* of the input */
    float *y;
    size_t y_channel, y_row;
};

/* Bytes that a tile touches of each channel of the input. */
static size_t gather_window(const struct fast_map *map, uint32_t kernel_h, uint32_t kernel_w)
{
    const uint32_t columns = fast_tile_columns(map->width, 0u, TILE_PIXELS);
    const uint32_t rows = fast_tile_rows(map->height, 0u, columns, TILE_PIXELS);

    const size_t high = (size_t)(rows - 1u) * map->step_y + kernel_h;
    const size_t wide = (size_t)(columns - 1u) * map->step_x + kernel_w;

    return (high < map->in_height ? high : map->in_height) *
           (wide < map->in_width ? wide : map->in_width) * PIXEL * 4u;
}

/* How often a tile changes from run to run: by its rows, and where a short one has
 * both edges of the image. */
static uint32_t gather_changes(const struct fast_map *map)
{
    const uint32_t columns = fast_tile_columns(map->width, 0u, TILE_PIXELS);
    const uint32_t rows = fast_tile_rows(map->height, 0u, columns, TILE_PIXELS);

    return rows == 1u && columns == map->width && columns < PIXEL / 2u ? 2u : rows;
}

static uint64_t gather_images(const struct fast_program *program, const struct fast_images *images,
                              struct fast_run *runs, const float *bias)
{
    const struct fast_map *map = &images->map;
    struct fast_gather gather;
    struct fast_tile tile;
    uint64_t done = 0u;

    gather.program = program;
    gather.tile = &tile;
    gather.x_row = images->x_row * map->step_y;
    gather.x_pixel = images->x_pixel * map->step_x;
    gather.y_channel = images->y_channel;
    gather.y_row = images->y_row;
    gather.first_channel = images->first_channel;
    gather.last_channel = images->last_channel;
    tile.run = runs;
    for (tile.y = images->first_row; tile.y < images->last_row; tile.y += tile.rows) {
        const float *x = images->x + (tile.y * map->step_y - images->x_first_row) * images->x_row;
        tile.columns = fast_tile_columns(map->width, 0u, TILE_PIXELS);
        tile.rows = fast_tile_rows(images->last_row, tile.y, tile.columns, TILE_PIXELS);
        for (tile.x = 0u; tile.x < map->width; tile.x += tile.columns) {
            uint32_t shape, block;
            tile.columns = fast_tile_columns(map->width, tile.x, TILE_PIXELS);
            shape = TILE_INDEX(tile.rows, tile.columns);
            fast_tile_runs(&tile, map, program->tap, 0u, program->taps);
            gather.x = x + tile.x * gather.x_pixel;
            gather.y = images->y + tile.y * gather.y_row + (size_t)tile.x * PIXEL;
            for (block = 0u; block < program->blocks; ++block) {
                gather.start = program->start + (size_t)block * program->channels * program->taps;
                gather.bias = block == 0u ? bias : NULL;
                gather.accumulate = block > 0u;
                done += gather.x_pixel == PIXEL ? gather_neighbours[shape](&gather)
                                                : gather_apart[shape](&gather);
            }
        }
    }
    return done;
}
#endif
