/* Orders the nonzeros of a layer for the fast kernels. */
#include "fast_program.h"

/* Most blocks of channels that are read, and what a block of the first-level cache may hold of them. */
#define BLOCK_LIMIT 32u
#define BLOCK_BYTES (24u * 1024u)

/* Each block reads and writes the sums of a tile again: it pays from so many nonzeros on, times
 * the changes of a tile. */
#define BLOCK_NONZEROS 10u

/* As many blocks of `channels` as the nonzeros of a channel that is written allow at most, where each
 * pays from `visit` of them on. */
static uint32_t block_limit(uint32_t nonzeros, uint32_t channels, uint32_t visit)
{
    const uint32_t allowed = nonzeros / visit;

    return allowed > 0u ? (uint32_t)sfd_minimum(sfd_minimum(allowed, channels), BLOCK_LIMIT) : 1u;
}

static uint32_t forward_limit(const struct sfd_layer *layer, uint32_t tile_changes)
{
    return block_limit(layer->support.count / layer->support.rows,
                       layer->in_channels / layer->shape.groups, BLOCK_NONZEROS * tile_changes);
}

static uint32_t backward_limit(const struct sfd_layer *layer, uint32_t visit)
{
    const uint32_t phases = layer->shape.stride_h * layer->shape.stride_w;

    return block_limit(layer->support.count / layer->in_channels / phases,
                       layer->support.rows / layer->shape.groups, visit);
}

/* Blocks of `channels` that fit the first-level cache. */
static uint64_t cache_blocks(uint32_t channels, size_t window_bytes)
{
    return ((uint64_t)channels * window_bytes + BLOCK_BYTES - 1u) / BLOCK_BYTES;
}

/* Blocks of input channels that a forward takes. Blocks of twice the size still save more loads from
 * the second level than they cost. */
static uint32_t forward_blocks(const struct sfd_layer *layer, size_t window_bytes,
                               uint32_t tile_changes)
{
    const uint64_t blocks = cache_blocks(layer->in_channels / layer->shape.groups, window_bytes);
    const uint32_t limit = forward_limit(layer, tile_changes);

    if (blocks > 2u * limit)
        return 1u;
    return blocks < limit ? (uint32_t)blocks : limit;
}

uint32_t fast_backward_blocks(const struct sfd_layer *layer, size_t window_bytes, uint32_t visit)
{
    const uint64_t blocks = sfd_minimum(
        cache_blocks(layer->support.rows / layer->shape.groups, window_bytes), BLOCK_LIMIT);

    return blocks <= backward_limit(layer, visit) ? (uint32_t)blocks : 1u;
}

static uint32_t bucket_limit(const struct sfd_layer *layer)
{
    const uint32_t forward = layer->support.rows * forward_limit(layer, 1u);
    const uint32_t backward = layer->in_channels * backward_limit(layer, FAST_LEAST_VISIT);

    return (forward > backward ? forward : backward) * sfd_kernel_area(layer);
}

/* The kernels look at every tap for each tile, and keep places as 32-bit offsets. */
#define TAP_LIMIT 256u
#define PLACE_LIMIT (UINT64_C(1) << 31)

/* Whether an axis reaches beyond the image by no more than the image's own length or so; *length is
 * then that of any copy of it. */
static int is_ordinary_axis(uint32_t in, uint32_t out, uint32_t kernel, uint32_t dilation,
                            uint32_t padding, uint32_t stride, uint64_t *length)
{
    const uint64_t reach = (uint64_t)(kernel - 1u) * dilation + padding;
    const uint64_t image = sfd_maximum(in, (uint64_t)out * stride);

    *length = image + 2u * reach + stride;
    return reach <= 2u * image + 64u;
}

int fast_is_ordinary(const struct sfd_layer *layer)
{
    const struct sfd_convolution *shape = &layer->shape;
    const uint64_t taps = (uint64_t)shape->kernel_h * shape->kernel_w;
    const uint64_t channels = sfd_maximum(layer->in_channels, layer->support.rows);
    uint64_t height, width;

    return taps <= TAP_LIMIT && (uint64_t)shape->stride_h * shape->stride_w <= FAST_PHASE_LIMIT &&
           is_ordinary_axis(layer->in_height, layer->out_height, shape->kernel_h, shape->dilation_h,
                            shape->padding_h, shape->stride_h, &height) &&
           is_ordinary_axis(layer->in_width, layer->out_width, shape->kernel_w, shape->dilation_w,
                            shape->padding_w, shape->stride_w, &width) &&
           height * width < PLACE_LIMIT / SFD_BLOCK &&
           channels * height * width < PLACE_LIMIT / SFD_BLOCK;
}

uint64_t fast_program_bytes(const struct sfd_layer *layer)
{
    return aligned_bytes((uint64_t)layer->support.count * sizeof(struct fast_entry)) +
           aligned_bytes((uint64_t)layer->support.count * sizeof(float)) +
           aligned_bytes(((uint64_t)bucket_limit(layer) + 1u) * sizeof(uint32_t)) +
           aligned_bytes((uint64_t)layer->support.columns * sizeof(struct fast_place)) +
           aligned_bytes((uint64_t)sfd_kernel_area(layer) * sizeof(struct fast_tap));
}

uint8_t *fast_program_lay(struct fast_program *program, const struct sfd_layer *layer,
                          uint8_t *memory)
{
    program->taps = sfd_kernel_area(layer);
    program->entry = (void *)memory;
    memory += aligned_bytes((uint64_t)layer->support.count * sizeof *program->entry);
    program->gradient = (void *)memory;
    memory += aligned_bytes((uint64_t)layer->support.count * sizeof *program->gradient);
    program->start = (void *)memory;
    memory += aligned_bytes(((uint64_t)bucket_limit(layer) + 1u) * sizeof *program->start);
    program->place = (void *)memory;
    memory += aligned_bytes((uint64_t)layer->support.columns * sizeof *program->place);
    program->tap = (void *)memory;
    return memory + aligned_bytes((uint64_t)program->taps * sizeof *program->tap);
}

/* Where the buckets of a row of the weight begin. */
static uint32_t row_bucket(const struct fast_program *program, uint32_t row)
{
    const uint32_t group = row / program->group_rows, at = row - group * program->group_rows;

    return row * program->row_bucket + group * program->group_bucket +
           (uint32_t)((uint64_t)at * program->row_blocks / program->group_rows) *
               program->channels * program->taps;
}

/* The nonzeros of one thread: no other has any in the same buckets. */
struct part {
    uint32_t first_row, last_row, first_column, last_column;
};

static struct part thread_part(const struct fast_program *program, const struct sfd_layer *layer,
                               uint32_t index, uint32_t count)
{
    const struct sfd_support *support = &layer->support;
    struct part part = {0u, support->rows, 0u, support->columns};

    if (program->row_bucket > 0u) { /* forward: a row has its own */
        part.first_row = sfd_share(support->rows, index, count);
        part.last_row = sfd_share(support->rows, index + 1u, count);
    } else if (layer->shape.groups > 1u) {
        part.first_row = sfd_share(layer->shape.groups, index, count) * program->group_rows;
        part.last_row = sfd_share(layer->shape.groups, index + 1u, count) * program->group_rows;
    } else {
        part.first_column = sfd_share(support->columns, index, count);
        part.last_column = sfd_share(support->columns, index + 1u, count);
    }
    return part;
}

/* The nonzeros of a row in a part. */
static inline void part_range(const struct sfd_support *support, const struct part *part,
                              uint32_t row, uint32_t *first, uint32_t *last)
{
    *first = support->row_pointer[row];
    *last = support->row_pointer[row + 1u];
    if (part->last_column < support->columns)
        *last = sfd_column_search(support, *first, *last, part->last_column);
    if (part->first_column > 0u)
        *first = sfd_column_search(support, *first, *last, part->first_column);
}

/* What the threads share while they sort, or bring back what is sorted. */
struct sort_work {
    const struct fast_program *program;
    const struct sfd_layer *layer;
    const float *values;
    float *gradient;
    int later;
};

/* What one thread does of a pass, with indices of a constant width. */
#define SORT_SHARE(PASS)                                                                \
    static void PASS##_share(void *context, uint32_t index, uint32_t count)             \
    {                                                                                   \
        const struct sort_work *work = context;                                         \
        const struct part part = thread_part(work->program, work->layer, index, count); \
                                                                                        \
        if (work->layer->support.index_width == 2u)                                     \
            PASS##_entries(work, &part, 2u);                                            \
        else                                                                            \
            PASS##_entries(work, &part, 4u);                                            \
    }

static inline void count_entries(const struct sort_work *work, const struct part *part,
                                 const uint32_t index_width)
{
    const struct fast_program *program = work->program;
    const struct sfd_support *support = &work->layer->support;
    const struct fast_place *place = program->place;
    const void *column = support->column;
    uint32_t row;

    for (row = part->first_row; row < part->last_row; ++row) {
        uint32_t *start = program->start + row_bucket(program, row);
        uint32_t k, end;
        part_range(support, part, row, &k, &end);
        for (; k < end; ++k)
            ++start[place[sfd_column_at(column, k, index_width)].bucket];
    }
}

SORT_SHARE(count)

static inline void place_entries(const struct sort_work *work, const struct part *part,
                                 const uint32_t index_width)
{
    const struct fast_program *program = work->program;
    const struct sfd_support *support = &work->layer->support;
    const struct fast_place *place = program->place;
    const void *column = support->column;
    const float *values = work->values;
    struct fast_entry *entries = program->entry;
    uint32_t row;

    for (row = part->first_row; row < part->last_row; ++row) {
        uint32_t *start = program->start + row_bucket(program, row);
        int32_t before = (int32_t)row * program->row_offset +
                         (int32_t)(row / program->group_rows) * program->group_offset;
        uint32_t k, end;
        part_range(support, part, row, &k, &end);
        for (; k < end; ++k) {
            const struct fast_place at = place[sfd_column_at(column, k, index_width)];
            struct fast_entry *entry = &entries[start[at.bucket]++];
            entry->offset = before + at.offset;
            entry->value = values[k];
        }
    }
}

SORT_SHARE(place)

/* Sort by buckets, stable: count, add up, place. */
static void sort_entries(struct fast_program *program, const struct sfd_layer *layer,
                         const float *values)
{
    struct sort_work work = {program, layer, values, NULL, 0};
    uint32_t b, total = 0u, *start = program->start;

    program->group_rows = layer->support.rows / layer->shape.groups;
    memset(start, 0, ((size_t)program->buckets + 1u) * sizeof *start);
    sfd_team_run(layer->team, count_share, &work);
    for (b = 0u; b < program->buckets; ++b) {
        uint32_t count = start[b];
        start[b] = total;
        total += count;
    }
    sfd_team_run(layer->team, place_share, &work);
    /* Each bucket's cursor stands at its end now, which is where the next one begins. */
    memmove(start + 1, start, (size_t)program->buckets * sizeof *start);
    start[0] = 0u;
}

static inline void collect_entries(const struct sort_work *work, const struct part *part,
                                   const uint32_t index_width)
{
    const struct fast_program *program = work->program;
    const struct sfd_support *support = &work->layer->support;
    const struct fast_place *place = program->place;
    const float *from = program->gradient;
    const void *column = support->column;
    float *gradient = work->gradient;
    const int later = work->later;
    uint32_t row;

    for (row = part->first_row; row < part->last_row; ++row) {
        uint32_t *cursor = program->start + row_bucket(program, row);
        uint32_t k, end;
        part_range(support, part, row, &k, &end);
        for (; k < end; ++k) {
            const float value = from[cursor[place[sfd_column_at(column, k, index_width)].bucket]++];
            gradient[k] = later ? gradient[k] + value : value;
        }
    }
}

SORT_SHARE(collect)

void fast_program_collect(struct fast_program *program, const struct sfd_layer *layer,
                          float *gradient, int later)
{
    struct sort_work work = {program, layer, NULL, gradient, later};

    sfd_team_run(layer->team, collect_share, &work);
}

/* The places of all columns. Those of later channels follow from channel 0's. */
static void place_columns(struct fast_program *program, const struct sfd_layer *layer,
                          int32_t channel_offset, uint32_t channel_bucket)
{
    uint32_t channels = layer->in_channels / layer->shape.groups, c, t;

    for (t = 0u; t < program->taps; ++t) {
        const struct fast_tap *tap = &program->tap[t];
        struct fast_place *place =
            &program->place[tap->kernel_y * layer->shape.kernel_w + tap->kernel_x];
        place->offset = tap->offset;
        place->bucket = t;
    }
    for (c = 1u; c < channels; ++c)
        for (t = 0u; t < program->taps; ++t) {
            struct fast_place *place = &program->place[c * program->taps + t];
            place->offset = program->place[t].offset + (int32_t)c * channel_offset;
            place->bucket = program->place[t].bucket + c * channel_bucket;
        }
}

void fast_program_forward(struct fast_program *program, const struct sfd_layer *layer,
                          size_t channel_stride, size_t window_bytes, uint32_t tile_changes,
                          const float *values)
{
    const uint32_t channels = layer->in_channels / layer->shape.groups;
    const uint32_t blocks = forward_blocks(layer, window_bytes, tile_changes);
    uint32_t i;

    program->channels = layer->support.rows;
    program->blocks = blocks;
    program->buckets = blocks * program->channels * program->taps;
    place_columns(program, layer, (int32_t)channel_stride, 0u);
    for (i = 0u; blocks > 1u && i < channels * program->taps; ++i)
        program->place[i].bucket += (uint32_t)((uint64_t)(i / program->taps) * blocks / channels) *
                                    program->channels * program->taps;
    program->row_offset = 0;
    program->group_offset = (int32_t)(channels * channel_stride);
    program->row_bucket = program->taps;
    program->group_bucket = 0u;
    program->row_blocks = 1u;
    sort_entries(program, layer, values);
}

void fast_program_backward(struct fast_program *program, const struct sfd_layer *layer,
                           size_t channel_stride, uint32_t blocks, const float *values)
{
    place_columns(program, layer, 0, program->taps);
    program->channels = layer->in_channels;
    program->blocks = program->row_blocks = blocks;
    program->buckets = blocks * program->channels * program->taps;
    program->row_offset = (int32_t)channel_stride;
    program->group_offset = 0;
    program->row_bucket = 0u;
    program->group_bucket = layer->in_channels / layer->shape.groups * program->taps;
    sort_entries(program, layer, values);
}

static uint64_t work_before(const uint32_t *before, uint32_t step, uint32_t channel, uint32_t taps)
{
    return (uint64_t)before[(size_t)channel * step] + (uint64_t)channel * taps;
}

uint32_t fast_share(const uint32_t *before, uint32_t step, uint32_t channels, uint32_t taps,
                    uint32_t index, uint32_t count)
{
    const uint64_t wanted = work_before(before, step, channels, taps) * index;
    uint32_t channel = 0u;

    while (channel < channels && work_before(before, step, channel, taps) * count < wanted)
        ++channel;
    return channel;
}
