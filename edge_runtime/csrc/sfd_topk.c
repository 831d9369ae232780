/* Exact Top-K by magnitude: a radix search for the threshold, then one pass that takes what is
 * above it and, of what equals it, the lowest positions. */
#include <string.h>

#include "sfd_kernels.h"

const uint32_t sfd_mask_bit[32] = {
    1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
    1u << 8,  1u << 9,  1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
    1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
    1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31,
};

const uint8_t sfd_bit_place[32] = {0,  1,  28, 2,  29, 14, 24, 3, 30, 22, 20, 15, 25, 17, 4,  8,
                                   31, 27, 13, 23, 21, 19, 16, 7, 26, 12, 18, 6,  11, 5,  10, 9};

/* A magnitude has 31 bits: passes over 8, 8, 8 and 7 of them, the exponent first. */
#define FIRST_SHIFT 23u

static uint32_t pass_bins(uint32_t shift)
{
    return shift == 0u ? SFD_HISTOGRAM_BINS / 2u : SFD_HISTOGRAM_BINS;
}

/* Bits of a magnitude above those of the pass. */
static uint32_t known_bits(uint32_t shift)
{
    return 0x80000000u - pass_bins(shift) * (1u << shift);
}

/* Which of one to 32 elements have these bits in their magnitude. */
static inline uint32_t matches(const float *x, uint32_t count, uint32_t mask, uint32_t wanted)
{
    uint32_t bits = 0u, j = 0u;

    do
        bits |= (sfd_float_bits(x[j]) & mask) == wanted ? sfd_mask_bit[j] : 0u;
    while (++j < count);
    return bits;
}

/* Which have a larger magnitude; all, above a threshold of -1. */
static inline uint32_t above(const float *x, uint32_t count, int32_t threshold)
{
    uint32_t bits = 0u, j = 0u;

    do
        bits |= (int32_t)sfd_magnitude(x[j]) > threshold ? sfd_mask_bit[j] : 0u;
    while (++j < count);
    return bits;
}

/* The same for a word of 32, so that the compiler can count on it, or for what is left. */
static uint32_t word_matches(const float *x, uint32_t count, uint32_t mask, uint32_t wanted)
{
    return count >= 32u ? matches(x, 32u, mask, wanted) : matches(x, count, mask, wanted);
}

static uint32_t word_above(const float *x, uint32_t count, uint32_t threshold)
{
    return count >= 32u ? above(x, 32u, (int32_t)threshold) : above(x, count, (int32_t)threshold);
}

void sfd_selection_begin(struct sfd_selection *selection, uint32_t keep, uint32_t *histogram)
{
    selection->prefix = 0u;
    selection->remaining = keep;
    selection->shift = FIRST_SHIFT;
    selection->histogram = histogram;
}

void sfd_selection_pass(struct sfd_selection *selection)
{
    memset(selection->histogram, 0, SFD_HISTOGRAM_BINS * sizeof *selection->histogram);
}

void sfd_selection_count(struct sfd_selection *selection, const float *x, uint32_t elements)
{
    uint32_t shift = selection->shift, bins = pass_bins(shift) - 1u, known = known_bits(shift);
    uint32_t *const histogram = selection->histogram;
    uint32_t i = 0u;

    for (; known == 0u && i < elements; ++i)
        ++histogram[sfd_magnitude(x[i]) >> FIRST_SHIFT];
    for (; i < elements; i += 32u) {
        uint32_t bits = word_matches(x + i, elements - i, known, selection->prefix);
        for (; bits != 0u; bits &= bits - 1u)
            ++histogram[(sfd_magnitude(x[i + sfd_lowest_bit(bits)]) >> shift) & bins];
    }
}

/* Fix the bits of this pass. Returns 0 once all are known, or those that are not make no difference. */
int sfd_selection_narrow(struct sfd_selection *selection)
{
    const uint32_t *first = selection->histogram;
    const uint32_t *bin = first + pass_bins(selection->shift) - 1u;
    uint32_t remaining = selection->remaining, sharing = *bin;

    while (sharing < remaining) {
        remaining -= sharing;
        sharing = *--bin;
    }
    selection->remaining = remaining;
    selection->sharing = sharing;
    selection->prefix |= (uint32_t)(bin - first) << selection->shift;
    if (selection->shift == 0u)
        return 0;
    selection->shift -= selection->shift == 7u ? 7u : 8u;
    return remaining != sharing;
}

uint64_t sfd_packed_bytes(uint32_t keep, uint64_t elements)
{
    return keep == 0u ? 0u : 4u * ((uint64_t)keep + (elements + 31u) / 32u);
}

uint32_t sfd_image_order(uint32_t size, uint32_t n, uint32_t at)
{
    uint32_t first = at / (SFD_BLOCK * size) * SFD_BLOCK, images = sfd_block_images(n, first);
    uint32_t rest = at - first * size;

    return (first + rest % images) * size + rest / images;
}

uint32_t sfd_tie_end(const float *x, uint32_t size, uint32_t n, uint32_t threshold, uint32_t ties)
{
    uint32_t image, element;

    for (image = 0u; image < n; ++image) {
        uint32_t first = image / SFD_BLOCK * SFD_BLOCK, images = sfd_block_images(n, first);
        const float *value = x + (size_t)first * size + (image - first);
        for (element = 0u; element < size; ++element)
            if (sfd_magnitude(value[(size_t)element * images]) == threshold && --ties == 0u)
                return image * size + element + 1u;
    }
    return n * size;
}

/* On the calling thread alone. */
void sfd_pack(const float *x, uint32_t size, uint32_t n, uint32_t keep, uint32_t *histogram,
              void *packed, struct sfd_team *team)
{
    float *value = packed;
    uint32_t *mask = (uint32_t *)packed + keep;
    struct sfd_selection selection;
    uint32_t i, taken = 0u, end = size * n, threshold, ties;

    (void)team;
    if (keep == 0u)
        return;
    sfd_selection_begin(&selection, keep, histogram);
    do {
        sfd_selection_pass(&selection);
        sfd_selection_count(&selection, x, size * n);
    } while (sfd_selection_narrow(&selection));
    threshold = selection.prefix;
    ties = selection.remaining;
    if (ties == selection.sharing) { /* all from the prefix on: above what is just below it */
        --threshold;
        ties = 0u;
    } else if (threshold != 0u) {
        end = sfd_tie_end(x, size, n, threshold, ties); /* which zeros makes no difference */
    }

    for (i = 0u; i < size * n; i += 32u) {
        uint32_t bits = word_above(x + i, size * n - i, threshold), equal = 0u;
        if (ties > 0u)
            equal = word_matches(x + i, size * n - i, 0x7fffffffu, threshold);
        for (; equal != 0u && ties > 0u; equal &= equal - 1u) {
            uint32_t at = i + sfd_lowest_bit(equal);
            if (sfd_image_order(size, n, at) < end) {
                bits |= equal & (0u - equal);
                --ties;
            }
        }
        mask[i / 32u] = bits;
        for (; bits != 0u; bits &= bits - 1u)
            value[taken++] = x[i + sfd_lowest_bit(bits)];
    }
}
