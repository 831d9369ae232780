/* Packed inputs, unpacked some rows at a time. */
#ifndef SFD_FAST_UNPACK_H
#define SFD_FAST_UNPACK_H

#include "fast_bits.h"
#include "fast_gather.h"

/* A packed input, read some rows of all channels at a time: from top to bottom, or in strips of rows
 * that threads take in any order, each from top to bottom. */
struct fast_unpacking {
    const float *values;
    const uint32_t *mask;
    uint32_t channels, height, width;
    uint32_t strip_rows; /* of the block */
    uint32_t images;     /* of the block */
    uint32_t first;      /* element of the batch with which the block begins */
    uint32_t next;       /* element with which the next block begins */
    uint32_t taken;      /* values before the next block */
    uint32_t *rank;      /* for each channel of each strip the values before the next rows */
};

/* In blocks of so many strips at most. */
static uint64_t unpacking_bytes(const struct sfd_layer *layer, uint32_t strips)
{
    return aligned_bytes((uint64_t)layer->in_channels * strips * sizeof(uint32_t));
}

/* At the beginning of a batch. */
static struct fast_unpacking unpacking_of(const struct sfd_layer *layer,
                                          const struct sfd_saved_input *x, void *memory)
{
    struct fast_unpacking unpacking = {.mask = x->mask, .values = x->values, .rank = memory};

    unpacking.channels = layer->in_channels;
    unpacking.height = layer->in_height;
    unpacking.width = layer->in_width;
    return unpacking;
}

/* `count` < 32 bits of the mask, from `element` on. */
static inline uint32_t mask_bits(const uint32_t *mask, uint32_t element, uint32_t count)
{
    const uint32_t shift = element % 32u;
    uint32_t bits = mask[element / 32u] >> shift;

    if (shift + count > 32u)
        bits |= mask[element / 32u + 1u] << (32u - shift);
    return bits & ((1u << count) - 1u);
}

/* Bits set among `count` of the mask, from `element` on. */
static uint32_t count_run(const uint32_t *mask, uint32_t element, uint32_t count)
{
    uint32_t total = 0u;

    for (; count >= PIXEL; count -= PIXEL, element += PIXEL)
        total += count_bits(mask_bits(mask, element, PIXEL));
    return count > 0u ? total + count_bits(mask_bits(mask, element, count)) : total;
}

/* Rows of a strip that begins at row `top`, inside the image. */
static uint32_t unpacking_rows(const struct fast_unpacking *unpacking, uint32_t top, uint32_t rows)
{
    return unpacking->height - top < rows ? unpacking->height - top : rows;
}

/* Where the values before a channel of the strip that row `top` is in are noted. */
static uint32_t *unpacking_rank(const struct fast_unpacking *unpacking, uint32_t channel,
                                uint32_t top)
{
    return &unpacking->rank[top / unpacking->strip_rows * unpacking->channels + channel];
}

static void unpacking_count(void *context, uint32_t index, uint32_t count)
{
    const struct fast_unpacking *unpacking = context;
    const uint32_t row = unpacking->width * unpacking->images, rows = unpacking->strip_rows;
    const uint32_t last = sfd_share(unpacking->channels, index + 1u, count);
    uint32_t c, top;

    for (c = sfd_share(unpacking->channels, index, count); c < last; ++c)
        for (top = 0u; top < unpacking->height; top += rows)
            *unpacking_rank(unpacking, c, top) =
                count_run(unpacking->mask, unpacking->first + (c * unpacking->height + top) * row,
                          unpacking_rows(unpacking, top, rows) * row);
}

/* Start the next block: the values before each channel of each of its strips. */
static void unpacking_begin(struct fast_unpacking *unpacking, struct sfd_team *team,
                            uint32_t images, uint32_t strip_rows)
{
    uint32_t c, top;

    unpacking->first = unpacking->next;
    unpacking->next += unpacking->channels * unpacking->height * unpacking->width * images;
    unpacking->images = images;
    unpacking->strip_rows = strip_rows;
    sfd_team_run(team, unpacking_count, unpacking);
    for (c = 0u; c < unpacking->channels; ++c)
        for (top = 0u; top < unpacking->height; top += strip_rows) {
            uint32_t *rank = unpacking_rank(unpacking, c, top);
            const uint32_t count = *rank;
            *rank = unpacking->taken;
            unpacking->taken += count;
        }
}

/* Up to 16 elements, zeros between the values. Returns the values that follow. */
SFD_INLINE const float *unpack_some(uint32_t bits, uint32_t count, const float *values, float *to)
{
    uint32_t i;

#if SFD_LANES == 16 && defined(__AVX512F__)
    if (count == PIXEL) {
        _mm512_storeu_ps(to, _mm512_maskz_expandloadu_ps((__mmask16)bits, values));
        return values + count_bits(bits);
    }
#endif
    for (i = 0u; i < count; ++i)
        to[i] = 0.0f;
    for (; bits != 0u; bits &= bits - 1u)
        to[__builtin_ctz(bits)] = *values++;
    return values;
}

static const float *unpack_run(const uint32_t *mask, uint32_t element, uint32_t count,
                               const float *values, float *to)
{
    for (; count >= PIXEL; count -= PIXEL, element += PIXEL, to += PIXEL)
        values = unpack_some(mask_bits(mask, element, PIXEL), PIXEL, values, to);
    if (count > 0u)
        values = unpack_some(mask_bits(mask, element, count), count, values, to);
    return values;
}

/* Unpack the next images as they lie in memory, `count` elements in all. */
static void unpack_images(struct fast_unpacking *unpacking, uint32_t count, float *to)
{
    const float *values = unpacking->values + unpacking->taken;

    values = unpack_run(unpacking->mask, unpacking->next, count, values, to);
    unpacking->next += count;
    unpacking->taken = (uint32_t)(values - unpacking->values);
}

/* Unpack rows [top, top + rows) of one channel, all of one strip; rows below the image are left as
 * they are. The next call for the channel goes on where this one ends. */
static void unpack_rows(struct fast_unpacking *unpacking, uint32_t channel, uint32_t top,
                        uint32_t rows, float *to)
{
    const uint32_t row = unpacking->width * unpacking->images;
    const uint32_t left = unpacking_rows(unpacking, top, rows);
    const uint32_t element = unpacking->first + (channel * unpacking->height + top) * row;
    uint32_t *rank = unpacking_rank(unpacking, channel, top);
    const float *values = unpacking->values + *rank;

    values = unpack_run(unpacking->mask, element, left * row, values, to);
    *rank = (uint32_t)(values - unpacking->values);
}
#endif
