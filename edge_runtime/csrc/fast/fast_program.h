/* What the fast kernels share, whatever the instruction set: the order in which the nonzeros of a
 * layer are visited, and how the pixels of an image are cut into register tiles. */
#ifndef SFD_FAST_PROGRAM_H
#define SFD_FAST_PROGRAM_H

#include "sfd_kernels.h"

/* A strip of rows is so high that what it reads, all channels, fills this much of the second-level
 * cache. */
#define STRIP_BYTES (512u * 1024u)

/* Most phases of a stride: the kernels look at each for each strip. */
#define FAST_PHASE_LIMIT 64u

static inline uint64_t aligned_bytes(uint64_t bytes)
{
    return (bytes + 63u) / 64u * 64u;
}

/* Pixels of one phase along an axis: every stride-th from `phase` on. */
static inline uint32_t phase_length(uint32_t length, uint32_t phase, uint32_t stride)
{
    return phase < length ? (length - phase - 1u) / stride + 1u : 0u;
}

/* One nonzero: where its input lies, in floats from the input of the tile's first pixel, and its
 * value. */
struct fast_entry {
    int32_t offset;
    float value;
};

/* A tap of the kernel: pixel (y, x) of the output reads pixel (y * step + shift_y, x * step +
 * shift_x) of the input, `offset` floats from the input of tap 0 shifts. */
struct fast_tap {
    int32_t shift_y, shift_x;
    int32_t offset;
    uint16_t kernel_y, kernel_x;
};

/* What a column of the weight contributes to the place of its nonzeros. */
struct fast_place {
    int32_t offset;
    uint32_t bucket;
};

/* The nonzeros in buckets: one for each output channel and tap, taps in the order of `tap`. Bucket
 * b is entries [start[b], start[b + 1]). A dense pass takes the channels that it reads in blocks, each
 * of which has all these buckets: what a tile reads of a block stays in the first-level cache. */
struct fast_program {
    struct fast_entry *entry;
    float *gradient; /* one for each entry; backward only */
    uint32_t *start;
    struct fast_place *place;
    struct fast_tap *tap;
    uint16_t phase[FAST_PHASE_LIMIT + 1u]; /* backward: first tap of each phase, and their end */
    uint32_t channels;                     /* of the output */
    uint32_t taps;
    uint32_t blocks; /* of channels that are read */
    uint32_t buckets;
    int32_t row_offset;   /* backward: what one row of the weight adds to the offset */
    int32_t group_offset; /* forward: what one group adds */
    uint32_t row_bucket, group_bucket;
    uint32_t group_rows; /* rows of the weight in a group */
    uint32_t row_blocks; /* backward: blocks of those; forward: 1 */
};

/* How an image is read by a gather: the output has `width` x `height` pixels. */
struct fast_map {
    uint32_t height, width;       /* of the output */
    uint32_t in_height, in_width; /* of the input */
    uint32_t step_y, step_x;
};

/* Consecutive taps that a tile reads in the same way: pixels [top, bottom) x [left, right) of the
 * tile have their input inside the image. */
struct fast_run {
    uint32_t first, last;
    uint8_t pattern;
    uint8_t top, bottom, left, right;
    uint16_t pixels; /* of those */
};

/* Patterns: which rows and columns of the tile a run reads, 3 * rows + columns, each all, all but
 * the first, or all but the last; anything else is done pixel by pixel. */
enum fast_edge { FAST_ALL, FAST_BUT_FIRST, FAST_BUT_LAST };
#define FAST_PATTERN(rows, columns) (3 * (rows) + (columns))
#define FAST_IRREGULAR 9u

struct fast_tile {
    uint32_t y, x;          /* its first pixel */
    uint32_t rows, columns; /* of pixels */
    int irregular;          /* it has runs that are done pixel by pixel */
    uint32_t run_count;
    struct fast_run *run;
};

/* Whether the fast kernels take a layer. One with a kernel, a stride or a padding out of all
 * proportion is left to the portable ones, whose time and memory do not grow with them. */
int fast_is_ordinary(const struct sfd_layer *layer);

/* Bytes that a program over this layer takes at most, whatever the pass. */
uint64_t fast_program_bytes(const struct sfd_layer *layer);

/* Lay the arrays of a program into memory. Returns the end. */
uint8_t *fast_program_lay(struct fast_program *program, const struct sfd_layer *layer,
                          uint8_t *memory);

/* The taps for y = W x, column by column, so that those which read the same columns of a tile are
 * neighbours. */
void fast_taps_forward(struct fast_program *program, const struct sfd_layer *layer);

/* The taps for dx = W^T dy, phase by phase: output pixels of phase (y, x), which is number y *
 * stride_w + x, are those whose row is y and whose column is x modulo the stride. */
void fast_taps_backward(struct fast_program *program, const struct sfd_layer *layer);

/* Where each tap reads, in images with these strides in floats. */
void fast_taps_place(struct fast_program *program, size_t row_stride, size_t pixel_stride);

/* Order the nonzeros by output channel and tap, once the taps have their offsets. channel_stride is
 * that of the images which are read, of each of which a tile touches
 * window_bytes; tile_changes says how often a tile goes from run to run. A backward is told its
 * blocks. */
void fast_program_forward(struct fast_program *program, const struct sfd_layer *layer,
                          size_t channel_stride, size_t window_bytes, uint32_t tile_changes,
                          const float *values);

void fast_program_backward(struct fast_program *program, const struct sfd_layer *layer,
                           size_t channel_stride, uint32_t blocks, const float *values);

/* Blocks of output channels that a backward takes, whose tiles touch window_bytes of each channel of
 * dy, where a block pays from `visit` nonzeros of an input channel on. Follows from the sizes alone. */
uint32_t fast_backward_blocks(const struct sfd_layer *layer, size_t window_bytes, uint32_t visit);

/* The least `visit` of any kernel set. */
#define FAST_LEAST_VISIT 28u

/* The first channel of the share of thread `index` of `count`: as many nonzeros for each, of which
 * before[c * step] are those of the channels before c. What a channel costs beside its nonzeros
 * counts like one of each tap. */
uint32_t fast_share(const uint32_t *before, uint32_t step, uint32_t channels, uint32_t taps,
                    uint32_t index, uint32_t count);

/* The gradients of the entries, back in the order of the support, added to where `later`. Ends the
 * program. */
void fast_program_collect(struct fast_program *program, const struct sfd_layer *layer,
                          float *gradient, int later);

/* Columns of the tile that begins at column x, where a tile has at most `limit` pixels. */
uint32_t fast_tile_columns(uint32_t width, uint32_t x, uint32_t limit);
uint32_t fast_tile_rows(uint32_t height, uint32_t y, uint32_t columns, uint32_t limit);

/* The runs of a tile over taps [first, last). */
void fast_tile_runs(struct fast_tile *tile, const struct fast_map *map, const struct fast_tap *tap,
                    uint32_t first, uint32_t last);

#endif
