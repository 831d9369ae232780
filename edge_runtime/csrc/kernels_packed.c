/* The weight gradient of a packed input, portable: sparse times sparse.
 *
 * For each column of the weight, a list of what its nonzeros multiply: the kept inputs of its channel
 * whose output pixel, at the column's place of the kernel, lies inside the image. Each nonzero runs
 * over the list of its column. The lists are made for as many kept inputs at a time as scratch holds.
 */
#include "sfd_internal.h"

/* Scratch for the lists, for each image of a block: short enough for a board, and long enough that
 * finding the nonzeros of a few columns costs little beside multiplying them. */
#define LIST_BYTES 2048u
#define LIST_CHANNELS 32u

/* A kept input, or a place of the kernel. Input pixel y (the padding included) meets kernel row i in
 * output row (y - i * dilation) / stride, if that divides and lies inside; columns likewise. Both
 * sides are divided once, beforehand: a coordinate t becomes t % stride * span + t / stride, with a
 * span longer than any quotient. The difference of two such codes is the output row where the
 * remainders are equal, and out of range where they are not. */
struct place {
    uint32_t row, column; /* codes */
    uint32_t offset;      /* of the quotients, in floats of the output's channel */
};

/* What one column multiplies: an input, and the offset of its output in any channel. */
struct factor {
    uint32_t offset;
    float value;
};

struct product {
    const struct sfd_layer *layer;
    const struct sfd_saved_input *x;
    uint32_t area, group_rows, group_channels, row_span, column_span, capacity;
    uint32_t images, block, in_run, out_run; /* of the block; `block` is its first element */
    struct place *kernel;
    struct place *entry; /* up to `capacity` kept inputs */
    struct factor *factor;
    uint32_t *start; /* the list of column area * first_channel + c is [start[c], start[c + 1]) */
    uint32_t first_channel, channels, taken;
};

static uint32_t smaller(uint64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

static uint32_t kernel_area(const struct sfd_layer *layer)
{
    return layer->shape.kernel_h * layer->shape.kernel_w;
}

static uint32_t list_capacity(const struct sfd_layer *layer, uint32_t n)
{
    uint64_t size = (uint64_t)layer->in_channels * layer->in_height * layer->in_width;
    uint32_t images = sfd_block_images(n, 0u);
    uint64_t bytes = sizeof(struct place) + (uint64_t)kernel_area(layer) * sizeof(struct factor);

    return smaller(size * images, (uint32_t)(LIST_BYTES * images / bytes) + 16u);
}

uint64_t sfd_packed_scratch_bytes(const struct sfd_layer *layer, uint32_t n)
{
    uint64_t area = kernel_area(layer), capacity = list_capacity(layer, n);

    return (area + capacity) * sizeof(struct place) + area * capacity * sizeof(struct factor) +
           (area * smaller(layer->in_channels, LIST_CHANNELS) + 1u) * sizeof(uint32_t);
}

static uint32_t coordinate_code(uint32_t at, uint32_t stride, uint32_t span)
{
    return stride == 1u ? at : at % stride * span + at / stride;
}

static struct place place_at(const struct product *product, uint32_t y, uint32_t x)
{
    const struct sfd_convolution *shape = &product->layer->shape;
    struct place place;

    place.row = coordinate_code(y, shape->stride_h, product->row_span);
    place.column = coordinate_code(x, shape->stride_w, product->column_span);
    place.offset =
        (y / shape->stride_h * product->layer->out_width + x / shape->stride_w) * product->images;
    return place;
}

static struct product product_begin(const struct sfd_layer *layer, const struct sfd_saved_input *x,
                                    uint32_t n, void *scratch)
{
    const struct sfd_convolution *shape = &layer->shape;
    struct product product;

    memset(&product, 0, sizeof product);
    product.layer = layer;
    product.x = x;
    product.area = kernel_area(layer);
    product.group_rows = layer->support.rows / shape->groups;
    product.group_channels = layer->in_channels / shape->groups;
    product.row_span = (layer->in_height + 2u * shape->padding_h) / shape->stride_h + 2u;
    product.column_span = (layer->in_width + 2u * shape->padding_w) / shape->stride_w + 2u;
    product.capacity = list_capacity(layer, n);
    product.kernel = scratch;
    product.entry = product.kernel + product.area;
    product.factor = (struct factor *)(product.entry + product.capacity);
    product.start = (uint32_t *)(product.factor + (size_t)product.area * product.capacity);
    return product;
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

static struct place entry_at(const struct product *product, uint32_t in_channel)
{
    const struct sfd_layer *layer = product->layer;
    uint32_t pixel = in_channel / product->images;
    struct place entry = place_at(product, pixel / layer->in_width + layer->shape.padding_h,
                                  pixel % layer->in_width + layer->shape.padding_w);

    entry.offset += in_channel % product->images;
    return entry;
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

/* Expand the entries in [at, end), a part of the channel that begins at `channel`, until there are
 * `room`. Returns where it stopped. */
static uint32_t expand(const struct product *product, uint32_t channel, uint32_t at, uint32_t end,
                       uint32_t room, uint32_t *count)
{
    *count = 0u;
    while (at < end) {
        uint32_t word = at / 32u * 32u, next, bits = mask_bits(product->x->mask, at, end, &next);
        for (; bits != 0u; bits &= bits - 1u) {
            at = word + sfd_lowest_bit(bits);
            if (*count == room)
                return at;
            product->entry[(*count)++] = entry_at(product, at - channel);
        }
        at = next;
    }
    return end;
}

/* Append to `at` what one place of the kernel multiplies of the expanded entries. Returns the end. */
static uint32_t list_place(const struct product *product, const struct place *place,
                           const float *value, uint32_t count, uint32_t at)
{
    const uint32_t height = product->layer->out_height, width = product->layer->out_width;
    const struct place *entry = product->entry;
    uint32_t i;

    for (i = 0u; i < count; ++i) {
        int inside = entry[i].row - place->row < height && entry[i].column - place->column < width;
        product->factor[at].offset = entry[i].offset - place->offset;
        product->factor[at].value = value[i];
        at += (uint32_t)inside;
    }
    return at;
}

/* Make the lists of the channels from element `at` of the block on, as many as there is room for; of
 * the last one perhaps a part. Returns where it stopped. */
static uint32_t make_lists(struct product *product, uint32_t at)
{
    uint32_t channel = (at - product->block) / product->in_run, room = product->capacity;
    uint32_t end, place, count, column = 0u, factors = 0u;

    product->first_channel = channel;
    product->channels = 0u;
    do {
        uint32_t begin = product->block + channel * product->in_run;
        end = begin + product->in_run;
        at = expand(product, begin, at, end, room, &count);
        for (place = 0u; place < product->area; ++place) {
            product->start[column++] = factors;
            factors = list_place(product, &product->kernel[place],
                                 product->x->values + product->taken, count, factors);
        }
        product->taken += count;
        room -= count;
        ++product->channels;
    } while (at == end && room > 0u && ++channel < product->layer->in_channels &&
             product->channels < LIST_CHANNELS);
    product->start[column] = factors;
    return at;
}

/* Four partial sums: fixed, so that the order of additions is the same everywhere. */
static float list_dot(const struct factor *factor, uint32_t count, const float *dy)
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
    return (a + c) + (b + d);
}

/* First nonzero of [low, high) in a row whose column is not below `column`. */
static uint32_t row_search(const struct sfd_support *support, uint32_t low, uint32_t high,
                           uint32_t column)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2u;
        if (sfd_column(support, middle) < column)
            low = middle + 1u;
        else
            high = middle;
    }
    return low;
}

/* Add the products of one row's nonzeros with the lists. */
static uint64_t row_multiply(const struct product *product, uint32_t row, const float *dy,
                             float *gradient)
{
    const struct sfd_support *support = &product->layer->support;
    uint32_t group = row / product->group_rows * product->group_channels;
    uint32_t first = product->first_channel, last = first + product->channels;
    uint32_t low = (first > group ? first - group : 0u) * product->area;
    uint32_t high = smaller(last - group, product->group_channels) * product->area;
    const uint32_t *start = product->start;
    uint32_t k, end = support->row_pointer[row + 1u], before = (first - group) * product->area;
    uint64_t done = 0u;

    for (k = row_search(support, support->row_pointer[row], end, low); k < end; ++k) {
        uint32_t column = sfd_column(support, k), list, count;
        if (column >= high)
            break;
        list = start[column - before];
        count = start[column - before + 1u] - list;
        if (count > 0u)
            gradient[k] += list_dot(product->factor + list, count, dy);
        done += count;
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
            at = make_lists(&product, at);
            last_group = (product.first_channel + product.channels - 1u) / product.group_channels;
            for (row = product.first_channel / product.group_channels * product.group_rows;
                 row < (last_group + 1u) * product.group_rows; ++row)
                done += row_multiply(&product, row, dy + (size_t)row * product.out_run, gradient);
        }
        dy += (size_t)layer->support.rows * product.out_run;
    }
    return done;
}
