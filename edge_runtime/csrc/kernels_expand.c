/* Expands a packed input to coordinates. */
#include "kernels_packed.h"

/* What scratch has room for, by the images of a block: little on a board, whose batches are small,
 * and enough that making lists and finding nonzeros costs little beside multiplying them. */
#define LIST_BYTES(images) (1024u + 1024u * (images))
#define LIST_COLUMNS(images) (128u + 32u * (images))
#define NONZEROS(images) (64u + 64u * (images))

/* Nonzeros in a column from which on collecting them pays. */
#define CROWDED 8u

/* Most places of a kernel for which lists are made: each stretch begins with a look at every column
 * of its channels, and a list has room for all entries of a stretch. */
#define LISTED_PLACES 1024u

static int is_crowded(const struct sfd_layer *layer)
{
    const struct sfd_support *support = &layer->support;

    return support->count >= (uint64_t)CROWDED * support->columns * layer->shape.groups;
}

/* Set the sizes of all parts of the scratch; returns the bytes of it. */
static uint64_t set_rooms(struct product *product, const struct sfd_layer *layer, uint32_t n)
{
    uint32_t images = sfd_block_images(n, 0u);
    uint64_t elements = (uint64_t)sfd_in_elements(layer) * images;
    uint64_t area = sfd_kernel_area(layer), listed = area <= LISTED_PLACES ? area : 0u;
    uint64_t entry_bytes = sizeof(struct place) + listed * sizeof(struct factor);
    uint64_t channels = LIST_COLUMNS(images) / (listed > 0u ? listed : 1u) + 1u;

    product->area = (uint32_t)area;
    product->listed = (uint32_t)listed;
    product->entry_room = (uint32_t)sfd_minimum(elements, LIST_BYTES(images) / entry_bytes + 16u);
    product->channel_room = (uint32_t)sfd_minimum(layer->in_channels, channels);
    product->nonzero_room = listed > 0u && is_crowded(layer) ? NONZEROS(images) : 0u;
    return listed * sizeof(struct place) + product->entry_room * entry_bytes +
           product->nonzero_room * sizeof(struct nonzero) +
           listed * product->channel_room * sizeof(struct column) +
           (product->channel_room + 1u) * sizeof(uint32_t);
}

uint64_t sfd_packed_scratch_bytes(const struct sfd_layer *layer, uint32_t n)
{
    struct product product;
    uint64_t bytes = set_rooms(&product, layer, n);

    if (!sfd_is_linear(layer))
        return bytes;
    return sfd_maximum(bytes, ((uint64_t)layer->in_channels * n + 31u) / 32u * sizeof(uint32_t));
}

struct product sfd_product_begin(const struct sfd_layer *layer, const struct sfd_saved_input *x,
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
    product.entry = product.kernel + product.listed;
    product.factor = (struct factor *)(product.entry + product.entry_room);
    product.nonzero =
        (struct nonzero *)(product.factor + (size_t)product.listed * product.entry_room);
    product.column = (struct column *)(product.nonzero + product.nonzero_room);
    product.start = (uint32_t *)(product.column + (size_t)product.listed * product.channel_room);
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

struct place sfd_kernel_place(const struct product *product, uint32_t index)
{
    const struct sfd_convolution *shape = &product->layer->shape;

    return place_at(product, index / shape->kernel_w * shape->dilation_h,
                    index % shape->kernel_w * shape->dilation_w);
}

void sfd_product_block(struct product *product, uint32_t n, uint32_t first)
{
    const struct sfd_layer *layer = product->layer;
    uint32_t place, pixels = layer->in_height * layer->in_width;

    product->images = sfd_block_images(n, first);
    product->block = first * layer->in_channels * pixels;
    product->in_run = pixels * product->images;
    product->out_run = layer->out_height * layer->out_width * product->images;
    for (place = 0u; place < product->listed; ++place)
        product->kernel[place] = sfd_kernel_place(product, place);
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

uint32_t sfd_product_stretch(struct product *product, uint32_t at)
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
    for (i = 0u; i < product->channels * product->listed; ++i) {
        product->column[i].list = NOT_MADE;
        product->column[i].nonzero = NO_NONZERO;
    }
    return at;
}
