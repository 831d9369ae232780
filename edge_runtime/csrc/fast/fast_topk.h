/* Exact Top-K by magnitude: a pass over the data takes what reaches the threshold. */
#ifndef SFD_FAST_TOPK_H
#define SFD_FAST_TOPK_H

#include "fast_threshold.h"

/* Of the bits of a word's ties those that are taken: all are, or those before `end` in the order
 * image, element. */
static uint32_t take_ties(uint32_t equal, uint32_t *ties, uint32_t at, uint32_t size, uint32_t n,
                          uint32_t end)
{
    uint32_t bits = 0u;

    for (; equal != 0u && *ties > 0u; equal &= equal - 1u)
        if (end == size * n ||
            sfd_image_order(size, n, at + (uint32_t)__builtin_ctz(equal)) < end) {
            bits |= equal & (0u - equal);
            --*ties;
        }
    return bits;
}

static void word_bits(const float *in, integers threshold, uint32_t *above, uint32_t *equal)
{
    uint32_t j;

    *above = *equal = 0u;
    for (j = 0u; j < WORD; j += SFD_LANES) {
        const integers m = vector_magnitudes(in + j);
        *above |= lanes_to_bits(lanes_over(m, threshold)) << j;
        *equal |= lanes_to_bits(lanes_equal(m, threshold)) << j;
    }
}

/* Write those of a word's elements whose bit is set, and nothing from `end` on. */
SFD_INLINE float *take_word(float *value, const float *end, uint32_t bits, const float *in)
{
    if (end - value >= (ptrdiff_t)WORD)
        return value + store_chosen(value, bits, in);
    for (; bits != 0u; bits &= bits - 1u)
        *value++ = in[__builtin_ctz(bits)];
    return value;
}

/* Mask and values in one pass. Ties are taken as long as there are any left to take. */
static void take_serially(const struct pack_work *work, uint32_t size, uint32_t n, uint32_t keep,
                          struct topk_threshold threshold)
{
    const integers level = (integers){0} + (int32_t)threshold.magnitude;
    const uint32_t elements = work->elements;
    float *value = work->value, rest[WORD];
    uint32_t end = elements, i;

    if (threshold.magnitude != 0u && threshold.ties < threshold.equal)
        end = sfd_tie_end(work->x, size, n, threshold.magnitude, threshold.ties);
    for (i = 0u; i < elements; i += WORD) {
        const float *in = word_elements(work->x, elements, i, rest);
        uint32_t bits, equal;
        word_bits(in, level, &bits, &equal);
        if (elements - i < WORD)
            equal &= (1u << (elements - i)) - 1u;
        if (equal != 0u && threshold.ties > 0u)
            bits |= take_ties(equal, &threshold.ties, i, size, n, end);
        work->mask[i / WORD] = bits;
        value = take_word(value, work->value + keep, bits, in); /* the mask follows */
    }
}

/* The mask of all elements that reach the threshold, which is not 0. */
static void mask_share(void *context, uint32_t index, uint32_t count)
{
    struct pack_work *work = context;
    const integers level = (integers){0} + (int32_t)work->magnitude;
    const uint32_t last = pack_start(work, index + 1u, count);
    uint32_t i, taken = 0u;
    float rest[WORD];

    for (i = pack_start(work, index, count); i < last; i += WORD) {
        uint32_t bits, equal;
        word_bits(word_elements(work->x, work->elements, i, rest), level, &bits, &equal);
        work->mask[i / WORD] = bits | equal;
        taken += count_bits(bits | equal);
    }
    work->taken[index] = taken;
}

/* The values whose bit is set; those of the threads before come first. */
static void value_share(void *context, uint32_t index, uint32_t count)
{
    const struct pack_work *work = context;
    const uint32_t last = pack_start(work, index + 1u, count);
    float *value = work->value, *end, rest[WORD];
    uint32_t i;

    for (i = 0u; i < index; ++i)
        value += work->taken[i];
    end = value + work->taken[index];
    for (i = pack_start(work, index, count); i < last; i += WORD)
        value = take_word(value, end, work->mask[i / WORD],
                          word_elements(work->x, work->elements, i, rest));
}

static void fast_pack(const float *x, uint32_t size, uint32_t n, uint32_t keep, uint32_t *histogram,
                      void *packed, struct sfd_team *team)
{
    struct topk_threshold threshold;
    struct pack_work work;

    (void)histogram; /* each thread has its own */
    if (keep == 0u)
        return;
    work.x = x;
    work.elements = size * n;
    work.inside = work.value = packed;
    work.mask = (uint32_t *)packed + keep;
    work.room = keep + (work.elements + WORD - 1u) / WORD;
    threshold = find_threshold(&work, keep, team);
    work.magnitude = threshold.magnitude;
    if (team == NULL || threshold.magnitude == 0u || threshold.ties < threshold.equal) {
        take_serially(&work, size, n, keep, threshold);
    } else { /* where the values of a thread begin is known once all have counted */
        sfd_team_run(team, mask_share, &work);
        sfd_team_run(team, value_share, &work);
    }
}

#endif
