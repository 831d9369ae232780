/* Exact Top-K by magnitude in two passes over the data: a small sample brackets the threshold, one
 * pass counts what is above the bracket and collects what is inside, and one takes what the
 * threshold, found among those, leaves. Where the sample misleads, as it does with many equal
 * values, the radix search of sfd_topk.c finds the threshold.
 *
 * Magnitudes are the bits of |x|, compared as signed integers. */
#ifndef SFD_FAST_TOPK_H
#define SFD_FAST_TOPK_H

#include "fast_bits.h"

#define SAMPLE 4096u
#define SAMPLED_FROM 16384u /* elements; of fewer, the radix search is as fast */
#define DEVIATIONS 4.0f     /* by which the rank of the threshold in the sample may be off */

#define INFINITE_MAGNITUDE UINT32_C(0x7f800000)

struct topk_threshold {
    uint32_t magnitude;
    uint32_t ties;  /* entries of this magnitude to take */
    uint32_t equal; /* entries of this magnitude; not counted for 0 */
};

/* The 32 elements of a word; the last word is filled up with zeros in `rest`. */
SFD_INLINE const float *word_elements(const float *x, uint32_t elements, uint32_t at, float *rest)
{
    if (elements - at >= WORD)
        return x + at;
    memset(rest, 0, WORD * sizeof *rest);
    memcpy(rest, x + at, (elements - at) * sizeof *rest);
    return rest;
}

/* The rank-th largest magnitude of the sample but for its last 15 bits. */
static uint32_t sample_rank(const float *sample, uint32_t count, uint32_t rank, uint32_t *histogram)
{
    struct sfd_selection selection;

    sfd_selection_begin(&selection, rank, histogram);
    do {
        sfd_selection_pass(&selection);
        sfd_selection_count(&selection, sample, count);
        (void)sfd_selection_narrow(&selection);
    } while (selection.shift > 7u);
    return selection.prefix;
}

/* A bracket [low, high) that holds the threshold almost surely. Zeros are never inside. One element
 * of each stretch is sampled, at a place that moves with the stretch: what lies a fixed distance
 * apart may be of one image or row. */
static void sample_bracket(const float *x, uint32_t elements, uint32_t keep, uint32_t *histogram,
                           float *sample, uint32_t count, uint32_t *low, uint32_t *high)
{
    const uint32_t stretch = elements / count;
    const float share = (float)keep / (float)elements, rank = share * (float)count;
    const float margin = DEVIATIONS * sqrtf(rank * (1.0f - share)) + 2.0f;
    uint32_t i;

    for (i = 0u; i < count; ++i) {
        uint64_t place = (uint64_t)(i * UINT32_C(0x9e3779b9)) * stretch >> 32;
        sample[i] = x[i * stretch + (uint32_t)place];
    }
    *high = INFINITE_MAGNITUDE;
    if (rank - margin >= 1.0f)
        *high = sample_rank(sample, count, (uint32_t)(rank - margin), histogram) + (1u << 15);
    *low = 1u;
    if (rank + margin < (float)count)
        *low = sample_rank(sample, count, (uint32_t)(rank + margin) + 1u, histogram);
    if (*low == 0u)
        *low = 1u;
}

/* Collect the elements inside the bracket. Returns their number, or more than the room there is. */
static uint32_t collect(const float *x, uint32_t elements, uint32_t low, uint32_t high,
                        float *inside, uint32_t room, uint32_t *above)
{
    const integers under = (integers){0} + (int32_t)(low - 1u);
    const integers last = (integers){0} + (int32_t)(high - 1u);
    integers count = {0};
    float rest[WORD];
    uint32_t taken = 0u, i, j;

    for (i = 0u; i < elements && taken + WORD <= room; i += WORD) {
        const float *in = word_elements(x, elements, i, rest);
        uint32_t bits = 0u;
        for (j = 0u; j < WORD; j += SFD_LANES) {
            const integers m = vector_magnitudes(in + j);
            const lanes over = lanes_over(m, last);
            count = lanes_count(count, over);
            bits |= lanes_to_bits((lanes)(lanes_over(m, under) & ~over)) << j;
        }
        taken += store_chosen(inside + taken, bits, in);
    }
    *above = 0u;
    for (j = 0u; j < SFD_LANES; ++j)
        *above += (uint32_t)count[j];
    return i < elements ? room + 1u : taken;
}

/* What the threads share. The last two are of each of them: its elements inside the bracket, or taken,
 * and those above it. */
struct pack_work {
    const float *x;
    uint32_t elements;
    uint32_t low, high; /* the bracket */
    float *inside;      /* what it holds, in `room` */
    uint32_t room;
    uint32_t magnitude; /* the threshold */
    float *value;
    uint32_t *mask;
    uint32_t taken[SFD_MAX_THREADS], above[SFD_MAX_THREADS];
};

/* The first element of the share of a thread. */
static uint32_t pack_start(const struct pack_work *work, uint32_t index, uint32_t count)
{
    return index == count ? work->elements
                          : sfd_share((work->elements + WORD - 1u) / WORD, index, count) * WORD;
}

static void collect_share(void *context, uint32_t index, uint32_t count)
{
    struct pack_work *work = context;
    const uint32_t first = pack_start(work, index, count);
    const uint32_t from = sfd_share(work->room, index, count);

    work->taken[index] = collect(
        work->x + first, pack_start(work, index + 1u, count) - first, work->low, work->high,
        work->inside + from, sfd_share(work->room, index + 1u, count) - from, &work->above[index]);
}

/* Collect on all threads. Returns the number, or more than the room where one had too little. */
static uint32_t collect_all(struct pack_work *work, struct sfd_team *team, uint32_t *above)
{
    const uint32_t count = sfd_team_count(team);
    uint32_t i, taken = 0u;

    sfd_team_run(team, collect_share, work);
    *above = 0u;
    for (i = 0u; i < count; ++i) {
        const uint32_t from = sfd_share(work->room, i, count);
        if (work->taken[i] > sfd_share(work->room, i + 1u, count) - from)
            return work->room + 1u;
        memmove(work->inside + taken, work->inside + from, work->taken[i] * sizeof *work->inside);
        taken += work->taken[i];
        *above += work->above[i];
    }
    return taken;
}

static uint32_t keep_between(float *x, uint32_t count, uint32_t low, uint32_t high)
{
    uint32_t i, kept = 0u;

    for (i = 0u; i < count; ++i) {
        uint32_t m = sfd_magnitude(x[i]);
        x[kept] = x[i];
        kept += m >= low && m < high;
    }
    return kept;
}

/* The rank-th largest magnitude of elements that are all in [low, high): the bracket becomes one of
 * its up to 256 parts until it is a single value. */
static struct topk_threshold narrow(float *inside, uint32_t count, uint32_t low, uint32_t high,
                                    uint32_t rank, uint32_t *histogram)
{
    struct topk_threshold threshold;

    while (high - low > 1u) {
        uint32_t shift = 0u, bin, i;
        while ((high - low - 1u) >> shift >= SFD_HISTOGRAM_BINS)
            ++shift;
        memset(histogram, 0, SFD_HISTOGRAM_BINS * sizeof *histogram);
        for (i = 0u; i < count; ++i)
            ++histogram[(sfd_magnitude(inside[i]) - low) >> shift];
        bin = (high - low - 1u) >> shift;
        for (; histogram[bin] < rank; --bin)
            rank -= histogram[bin];
        low += bin << shift;
        high = low + (1u << shift);
        count = keep_between(inside, count, low, high);
    }
    threshold.magnitude = low;
    threshold.ties = rank;
    threshold.equal = count;
    return threshold;
}

static struct topk_threshold radix_threshold(const float *x, uint32_t elements, uint32_t keep,
                                             uint32_t *histogram)
{
    struct topk_threshold threshold;
    struct sfd_selection selection;

    sfd_selection_begin(&selection, keep, histogram);
    do {
        sfd_selection_pass(&selection);
        sfd_selection_count(&selection, x, elements);
    } while (sfd_selection_narrow(&selection));
    threshold.magnitude = selection.prefix;
    threshold.ties = selection.remaining;
    threshold.equal = selection.sharing;
    return threshold;
}

/* The threshold of the `keep` largest magnitudes. */
static struct topk_threshold find_threshold(struct pack_work *work, uint32_t keep,
                                            uint32_t *histogram, struct sfd_team *team)
{
    const uint32_t elements = work->elements, sample = work->room < SAMPLE ? work->room : SAMPLE;
    uint32_t above, inside;

    if (elements < SAMPLED_FROM)
        return radix_threshold(work->x, elements, keep, histogram);
    sample_bracket(work->x, elements, keep, histogram, work->inside, sample, &work->low,
                   &work->high);
    inside = collect_all(work, team, &above);
    if (inside > work->room || above >= keep)
        return radix_threshold(work->x, elements, keep, histogram);
    if (above + inside >= keep)
        return narrow(work->inside, inside, work->low, work->high, keep - above, histogram);
    if (work->low == 1u) { /* all that is not zero is taken */
        struct topk_threshold zero = {0u, 0u, 0u};
        zero.ties = keep - above - inside;
        return zero;
    }
    return radix_threshold(work->x, elements, keep, histogram);
}

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

    if (keep == 0u)
        return;
    work.x = x;
    work.elements = size * n;
    work.inside = work.value = packed;
    work.mask = (uint32_t *)packed + keep;
    work.room = keep + (work.elements + WORD - 1u) / WORD;
    threshold = find_threshold(&work, keep, histogram, team);
    work.magnitude = threshold.magnitude;
    if (team == NULL || threshold.magnitude == 0u || threshold.ties < threshold.equal) {
        take_serially(&work, size, n, keep, threshold);
    } else { /* where the values of a thread begin is known once all have counted */
        sfd_team_run(team, mask_share, &work);
        sfd_team_run(team, value_share, &work);
    }
}

#endif
