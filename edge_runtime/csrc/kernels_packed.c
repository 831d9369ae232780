/* The weight gradient of a packed input, portable: sparse times sparse.
 *
 * A stretch of kept inputs is expanded to coordinates, as many as scratch has room for. For each
 * column of the weight that has a nonzero, a list is made of what it multiplies: the inputs of its
 * channel whose output pixel, at the column's place of the kernel, lies inside the image. Each
 * nonzero runs over the list of its column; where columns have many nonzeros, those of four rows do
 * so together, and load the list once. */
#include "sfd_internal.h"

/* What scratch has room for, by the images of a block: little on a board, whose batches are small,
 * and enough that making lists and finding nonzeros costs little beside multiplying them. */
#define LIST_BYTES(images) (2048u * (images))
#define LIST_COLUMNS(images) (128u + 32u * (images))
#define NONZEROS(images) (64u + 64u * (images))

/* Nonzeros in a column from which on collecting them pays. */
#define CROWDED 8u

/* A kept input, or a place of the kernel. Input pixel y (the padding included) meets kernel row i in
 * output row (y - i * dilation) / stride, if that divides and lies inside; columns likewise. Both
 * sides are divided once, beforehand: a coordinate t becomes t % stride * span + t / stride, with a
 * span longer than any quotient. The difference of two such codes is the output row where the
 * remainders are equal, and out of range where they are not. */
struct place {
    uint32_t row, column; /* codes */
    uint32_t offset;      /* of the quotients, in floats of the output's channel */
};

/* What one column multiplies: an input, and the offset of its output in any row's channel. */
struct factor {
    uint32_t offset;
    float value;
};

/* A nonzero of the weight: its place in the support, and the next one of its column. */
struct nonzero {
    uint32_t row, k, next;
};

#define NOT_MADE UINT32_MAX
#define NO_NONZERO UINT32_MAX

/* A column of a channel in the stretch: its list, and the first of its collected nonzeros. */
struct column {
    uint32_t list, count, nonzero;
};

struct product {
    const struct sfd_layer *layer;
    const struct sfd_saved_input *x;
    uint32_t area, group_rows, group_channels, row_span, column_span;
    struct place *kernel;
    /* the block: its images, its first element, the floats of a channel of input and output */
    uint32_t images, block, in_run, out_run;
    /* the stretch: its channels, and where the entries of each begin; the values of all of them */
    struct place *entry;
    uint32_t *start;
    const float *value;
    uint32_t entry_room, channel_room, first_channel, channels;
    /* lists and collected nonzeros, by column */
    struct column *column;
    struct factor *factor;
    struct nonzero *nonzero;
    uint32_t factors, nonzero_room, nonzeros; /* no room: nonzeros are not collected */
};

static int is_crowded(const struct sfd_layer *layer)
{
    const struct sfd_support *support = &layer->support;

    return support->count >= (uint64_t)CROWDED * support->columns * layer->shape.groups;
}

/* Set the sizes of all parts of the scratch; returns the bytes of it. */
static uint64_t set_rooms(struct product *product, const struct sfd_layer *layer, uint32_t n)
{
    uint32_t images = sfd_block_images(n, 0u);
    uint64_t elements = (uint64_t)layer->in_channels * layer->in_height * layer->in_width * images;
    uint64_t area = sfd_kernel_area(layer);
    uint64_t entry_bytes = sizeof(struct place) + area * sizeof(struct factor);

    product->area = (uint32_t)area;
    product->entry_room = (uint32_t)sfd_minimum(elements, LIST_BYTES(images) / entry_bytes + 16u);
    product->channel_room =
        (uint32_t)sfd_minimum(layer->in_channels, LIST_COLUMNS(images) / area + 1u);
    product->nonzero_room = is_crowded(layer) ? NONZEROS(images) : 0u;
    return area * sizeof(struct place) + product->entry_room * entry_bytes +
           product->nonzero_room * sizeof(struct nonzero) +
           area * product->channel_room * sizeof(struct column) +
           (product->channel_room + 1u) * sizeof(uint32_t);
}

uint64_t sfd_packed_scratch_bytes(const struct sfd_layer *layer, uint32_t n)
{
    struct product product;

    return set_rooms(&product, layer, n);
}

static struct product product_begin(const struct sfd_layer *layer, const struct sfd_saved_input *x,
                                    uint32_t n, void *scratch)
{
    const struct sfd_convolution *shape = &layer->shape;
    struct product product;

    memset(&product, 0, sizeof product);
    set_rooms(&product, layer, n);
    product.layer = layer;
    product.x = x;
    product.group_rows = layer->support.rows / shape->groups;
    product.group_channels = layer->in_channels / shape->groups;
    product.row_span = (layer->in_height + 2u * shape->padding_h) / shape->stride_h + 2u;
    product.column_span = (layer->in_width + 2u * shape->padding_w) / shape->stride_w + 2u;
    product.value = x->values;
    product.kernel = scratch;
    product.entry = product.kernel + product.area;
    product.factor = (struct factor *)(product.entry + product.entry_room);
    product.nonzero =
        (struct nonzero *)(product.factor + (size_t)product.area * product.entry_room);
    product.column = (struct column *)(product.nonzero + product.nonzero_room);
    product.start = (uint32_t *)(product.column + (size_t)product.area * product.channel_room);
    return product;
}

static uint32_t coordinate_code(uint32_t at, uint32_t stride, uint32_t span)
{
    return stride == 1u ? at : at % stride * span + at / stride;
}

static uint32_t quotient(uint32_t at, uint32_t stride)
{
    return stride == 1u ? at : at / stride;
}

static struct place place_at(const struct product *product, uint32_t y, uint32_t x)
{
    const struct sfd_layer *layer = product->layer;
    const uint32_t stride_h = layer->shape.stride_h, stride_w = layer->shape.stride_w;
    struct place place;

    place.row = coordinate_code(y, stride_h, product->row_span);
    place.column = coordinate_code(x, stride_w, product->column_span);
    place.offset =
        (quotient(y, stride_h) * layer->out_width + quotient(x, stride_w)) * product->images;
    return place;
}

static void product_block(struct product *product, uint32_t n, uint32_t first)
{
    const struct sfd_layer *layer = product->layer;
    const struct sfd_convolution *shape = &layer->shape;
    uint32_t place, pixels = layer->in_height * layer->in_width;

    product->images = sfd_block_images(n, first);
    product->block = first * layer->in_channels * pixels;
    product->in_run = pixels * product->images;
    product->out_run = layer->out_height * layer->out_width * product->images;
    for (place = 0u; place < product->area; ++place)
        product->kernel[place] = place_at(product, place / shape->kernel_w * shape->dilation_h,
                                          place % shape->kernel_w * shape->dilation_w);
}

/* The bits of a mask word that are in [at, end), and where the word ends. */
static uint32_t mask_bits(const uint32_t *mask, uint32_t at, uint32_t end, uint32_t *next)
{
    uint32_t bits = mask[at / 32u] & (~0u << at % 32u);

    *next = at / 32u * 32u + 32u;
    if (*next > end) {
        bits &= ~(~0u << end % 32u);
        *next = end;
    }
    return bits;
}

/* Append what is kept in [at, end), a part of the channel that begins at `channel`, to the `count`
 * entries, until there is no room. Returns where it stopped. */
static uint32_t expand(const struct product *product, uint32_t channel, uint32_t at, uint32_t end,
                       uint32_t *count)
{
    const struct sfd_layer *layer = product->layer;
    const uint32_t line = layer->in_width * product->images;
    uint32_t y = (at - channel) / line, start = channel + y * line; /* of the line of pixels */

    while (at < end) {
        uint32_t word = at / 32u * 32u, next, bits = mask_bits(product->x->mask, at, end, &next);
        for (; bits != 0u; bits &= bits - 1u) {
            struct place *entry = &product->entry[*count];
            at = word + sfd_lowest_bit(bits);
            if (*count == product->entry_room)
                return at;
            for (; at - start >= line; start += line)
                ++y;
            *entry = place_at(product, y + layer->shape.padding_h,
                              (at - start) / product->images + layer->shape.padding_w);
            entry->offset += (at - start) % product->images;
            ++*count;
        }
        at = next;
    }
    return end;
}

/* Expand the channels from element `at` on, as many as there is room for; of the last one perhaps a
 * part. Returns where it stopped. */
static uint32_t stretch_begin(struct product *product, uint32_t at)
{
    uint32_t channel = (at - product->block) / product->in_run, count = 0u, end, i;

    product->first_channel = channel;
    product->channels = 0u;
    do {
        uint32_t begin = product->block + channel * product->in_run;
        end = begin + product->in_run;
        product->start[product->channels++] = count;
        at = expand(product, begin, at, end, &count);
    } while (at == end && ++channel < product->layer->in_channels &&
             product->channels < product->channel_room);
    product->start[product->channels] = count;
    product->factors = 0u;
    for (i = 0u; i < product->channels * product->area; ++i) {
        product->column[i].list = NOT_MADE;
        product->column[i].nonzero = NO_NONZERO;
    }
    return at;
}

static void list_make(struct product *product, uint32_t index)
{
    const uint32_t height = product->layer->out_height, width = product->layer->out_width;
    const struct place place = product->kernel[index % product->area], *entry = product->entry;
    uint32_t channel = index / product->area, i;
    struct factor *factor = product->factor + product->factors;

    product->column[index].list = product->factors;
    for (i = product->start[channel]; i < product->start[channel + 1u]; ++i) {
        factor->offset = entry[i].offset - place.offset;
        factor->value = product->value[i];
        factor += (entry[i].row - place.row < height) & (entry[i].column - place.column < width);
    }
    product->factors = (uint32_t)(factor - product->factor);
    product->column[index].count = product->factors - product->column[index].list;
}

static const struct factor *list_find(struct product *product, uint32_t index, uint32_t *count)
{
    if (product->column[index].list == NOT_MADE)
        list_make(product, index);
    *count = product->column[index].count;
    return product->factor + product->column[index].list;
}

/* The sums of one, two or four rows over a list: four partial sums in all, fixed, so that the order
 * of additions is the same everywhere. */
static void dot_one(const struct factor *factor, uint32_t count, const float *dy, float *sum)
{
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;

    for (; count >= 4u; count -= 4u, factor += 4) {
        a += factor[0].value * dy[factor[0].offset];
        b += factor[1].value * dy[factor[1].offset];
        c += factor[2].value * dy[factor[2].offset];
        d += factor[3].value * dy[factor[3].offset];
    }
    for (; count > 0u; --count, ++factor)
        a += factor->value * dy[factor->offset];
    *sum = (a + c) + (b + d);
}

static void dot_two(const struct factor *factor, uint32_t count, const float *const *dy, float *sum)
{
    const float *first = dy[0], *second = dy[1];
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;

    for (; count >= 2u; count -= 2u, factor += 2) {
        a += factor[0].value * first[factor[0].offset];
        b += factor[0].value * second[factor[0].offset];
        c += factor[1].value * first[factor[1].offset];
        d += factor[1].value * second[factor[1].offset];
    }
    if (count > 0u) {
        a += factor->value * first[factor->offset];
        b += factor->value * second[factor->offset];
    }
    sum[0] = a + c;
    sum[1] = b + d;
}

static void dot_four(const struct factor *factor, uint32_t count, const float *const *dy,
                     float *sum)
{
    const float *first = dy[0], *second = dy[1], *third = dy[2], *fourth = dy[3];
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;

    for (; count > 0u; --count, ++factor) {
        a += factor->value * first[factor->offset];
        b += factor->value * second[factor->offset];
        c += factor->value * third[factor->offset];
        d += factor->value * fourth[factor->offset];
    }
    sum[0] = a;
    sum[1] = b;
    sum[2] = c;
    sum[3] = d;
}

/* Multiply one nonzero with the list of its column. */
static uint32_t nonzero_multiply(struct product *product, uint32_t index, const float *dy,
                                 float *gradient)
{
    uint32_t count;
    const struct factor *factor = list_find(product, index, &count);
    float sum;

    if (count > 0u) {
        dot_one(factor, count, dy, &sum);
        *gradient += sum;
    }
    return count;
}

/* Multiply the nonzeros collected in one column with its list. */
static uint64_t column_multiply(struct product *product, uint32_t index, const float *dy,
                                float *gradient)
{
    uint32_t next = product->column[index].nonzero, count;
    const struct factor *factor = list_find(product, index, &count);
    uint64_t done = 0u;

    while (count > 0u && next != NO_NONZERO) {
        const float *row[4];
        float sum[4];
        uint32_t place[4], found = 0u, i;
        for (; found < 4u && next != NO_NONZERO; next = product->nonzero[next].next) {
            row[found] = dy + (size_t)product->nonzero[next].row * product->out_run;
            place[found++] = product->nonzero[next].k;
        }
        if (found == 4u)
            dot_four(factor, count, row, sum);
        else if (found >= 2u)
            dot_two(factor, count, row, sum);
        if (found % 2u == 1u)
            dot_one(factor, count, row[found - 1u], &sum[found - 1u]);
        for (i = 0u; i < found; ++i)
            gradient[place[i]] += sum[i];
        done += (uint64_t)count * found;
    }
    return done;
}

/* Multiply what is collected, and begin to collect anew. */
static uint64_t collected_multiply(struct product *product, const float *dy, float *gradient)
{
    uint32_t i, columns = product->channels * product->area;
    uint64_t done = 0u;

    for (i = 0u; product->nonzeros > 0u && i < columns; ++i)
        if (product->column[i].nonzero != NO_NONZERO) {
            done += column_multiply(product, i, dy, gradient);
            product->column[i].nonzero = NO_NONZERO;
        }
    product->nonzeros = 0u;
    return done;
}

static void collect(struct product *product, uint32_t row, uint32_t k, uint32_t index)
{
    struct nonzero *nonzero = &product->nonzero[product->nonzeros];

    nonzero->row = row;
    nonzero->k = k;
    nonzero->next = product->column[index].nonzero;
    product->column[index].nonzero = product->nonzeros++;
}

/* Multiply or collect the nonzeros of one row in the channels of the stretch. */
static uint64_t row_multiply(struct product *product, uint32_t row, const float *dy,
                             float *gradient)
{
    const struct sfd_support *support = &product->layer->support;
    const float *row_dy = dy + (size_t)row * product->out_run;
    uint32_t group = row / product->group_rows * product->group_channels;
    uint32_t first = product->first_channel, last = first + product->channels;
    uint32_t low = (first > group ? first - group : 0u) * product->area;
    uint32_t high = (uint32_t)sfd_minimum(last - group, product->group_channels) * product->area;
    uint32_t k, end = support->row_pointer[row + 1u], before = (first - group) * product->area;
    uint64_t done = 0u;

    for (k = sfd_column_search(support, support->row_pointer[row], end, low); k < end; ++k) {
        uint32_t column = sfd_column(support, k);
        if (column >= high)
            break;
        column -= before;
        if (product->nonzero_room > 0u) {
            if (product->nonzeros == product->nonzero_room)
                done += collected_multiply(product, dy, gradient);
            collect(product, row, k, column);
        } else {
            done += nonzero_multiply(product, column, row_dy, &gradient[k]);
        }
    }
    return done;
}

uint64_t sfd_packed_d_weight(const struct sfd_layer *layer, const struct sfd_saved_input *x,
                             const float *dy, float *gradient, uint32_t n, void *scratch)
{
    struct product product = product_begin(layer, x, n, scratch);
    uint64_t done = 0u;
    uint32_t first, row;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        uint32_t at, end;
        product_block(&product, n, first);
        end = product.block + layer->in_channels * product.in_run;
        for (at = product.block; at < end;) {
            uint32_t last_group;
            at = stretch_begin(&product, at);
            last_group = (product.first_channel + product.channels - 1u) / product.group_channels;
            for (row = product.first_channel / product.group_channels * product.group_rows;
                 row < (last_group + 1u) * product.group_rows; ++row)
                done += row_multiply(&product, row, dy, gradient);
            done += collected_multiply(&product, dy, gradient);
            product.value += product.start[product.channels];
        }
        dy += (size_t)layer->support.rows * product.out_run;
    }
    return done;
}
