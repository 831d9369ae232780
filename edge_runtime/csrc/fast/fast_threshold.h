/* The threshold of an exact Top-K by magnitude in one pass over the data: a small sample brackets it,
 * and the pass counts what is above the bracket and collects what is inside, among which it is found.
 * Where the sample misleads, as it does with many equal values, the radix search of sfd_topk.c finds
 * it.
 *
 * Magnitudes are the bits of |x|, compared as signed integers. */
#ifndef SFD_FAST_THRESHOLD_H
#define SFD_FAST_THRESHOLD_H

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

/* What the threads share. What has SFD_MAX_THREADS entries is of each of them: its elements inside the
 * bracket, or taken, those above it, and a histogram. */
struct pack_work {
    const float *x;
    uint32_t elements;
    uint32_t sampled;   /* elements of the sample */
    uint32_t rank[2];   /* in the sample, of the ends of the bracket; 0: beyond it */
    uint32_t found[2];  /* the magnitudes there */
    uint32_t low, high; /* the bracket */
    float *inside;      /* the sample, then what the bracket holds, in `room` */
    uint32_t room;
    uint32_t magnitude; /* the threshold */
    float *value;
    uint32_t *mask;
    uint32_t taken[SFD_MAX_THREADS], above[SFD_MAX_THREADS];
    uint32_t histogram[SFD_MAX_THREADS][SFD_HISTOGRAM_BINS];
};

/* One element of each stretch, at a place that moves with the stretch: what lies a fixed distance
 * apart may be of one image or row. */
static void sample_share(void *context, uint32_t index, uint32_t count)
{
    const struct pack_work *work = context;
    const uint32_t stretch = work->elements / work->sampled;
    const uint32_t last = sfd_share(work->sampled, index + 1u, count);
    uint32_t i;

    for (i = sfd_share(work->sampled, index, count); i < last; ++i) {
        const uint64_t place = (uint64_t)(i * UINT32_C(0x9e3779b9)) * stretch >> 32;
        work->inside[i] = work->x[i * stretch + (uint32_t)place];
    }
}

static void rank_part(void *context, uint32_t part, uint32_t index)
{
    struct pack_work *work = context;

    if (work->rank[part] > 0u)
        work->found[part] =
            sample_rank(work->inside, work->sampled, work->rank[part], work->histogram[index]);
}

/* A bracket [low, high) that holds the threshold almost surely. Zeros are never inside. */
static void sample_bracket(struct pack_work *work, uint32_t keep, struct sfd_team *team)
{
    const float share = (float)keep / (float)work->elements;
    const float rank = share * (float)work->sampled;
    const float margin = DEVIATIONS * sqrtf(rank * (1.0f - share)) + 2.0f;

    work->rank[0] = rank - margin >= 1.0f ? (uint32_t)(rank - margin) : 0u;
    work->rank[1] = rank + margin < (float)work->sampled ? (uint32_t)(rank + margin) + 1u : 0u;
    work->found[0] = INFINITE_MAGNITUDE - (1u << 15);
    work->found[1] = 1u;
    sfd_team_run(team, sample_share, work);
    sfd_team_parts(team, rank_part, work, 2u);
    work->high = work->found[0] + (1u << 15);
    work->low = work->found[1] > 0u ? work->found[1] : 1u;
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

/* The first element of the share of a thread. */
static uint32_t pack_start(const struct pack_work *work, uint32_t index, uint32_t count)
{
    return index == count ? work->elements
                          : sfd_share((work->elements + WORD - 1u) / WORD, index, count) * WORD;
}

/* The bits by which the magnitudes of a bracket are shifted to be a histogram's bins. */
static uint32_t bin_shift(uint32_t low, uint32_t high)
{
    uint32_t shift = 0u;

    while ((high - low - 1u) >> shift >= SFD_HISTOGRAM_BINS)
        ++shift;
    return shift;
}

static void count_bins(const float *inside, uint32_t count, uint32_t low, uint32_t high,
                       uint32_t *histogram)
{
    const uint32_t shift = bin_shift(low, high);
    uint32_t i;

    memset(histogram, 0, SFD_HISTOGRAM_BINS * sizeof *histogram);
    for (i = 0u; i < count; ++i)
        ++histogram[(sfd_magnitude(inside[i]) - low) >> shift];
}

/* The bracket becomes the bin that holds the rank-th largest magnitude; returns its rank there. */
static uint32_t choose_bin(const uint32_t *histogram, uint32_t rank, uint32_t *low, uint32_t *high)
{
    const uint32_t shift = bin_shift(*low, *high);
    uint32_t bin = (*high - *low - 1u) >> shift;

    for (; histogram[bin] < rank; --bin)
        rank -= histogram[bin];
    *low += bin << shift;
    *high = *low + (1u << shift);
    return rank;
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

static void collect_share(void *context, uint32_t index, uint32_t count)
{
    struct pack_work *work = context;
    const uint32_t first = pack_start(work, index, count);
    const uint32_t from = sfd_share(work->room, index, count);
    const uint32_t room = sfd_share(work->room, index + 1u, count) - from;
    float *inside = work->inside + from;

    work->taken[index] = collect(work->x + first, pack_start(work, index + 1u, count) - first,
                                 work->low, work->high, inside, room, &work->above[index]);
    if (work->taken[index] <= room)
        count_bins(inside, work->taken[index], work->low, work->high, work->histogram[index]);
}

/* Collect on all threads, with a histogram of all. Returns the number, or more than the room where one
 * had too little. */
static uint32_t collect_all(struct pack_work *work, struct sfd_team *team, uint32_t *above)
{
    const uint32_t count = sfd_team_count(team);
    uint32_t i, bin, taken = 0u;

    sfd_team_run(team, collect_share, work);
    *above = 0u;
    for (i = 0u; i < count; ++i) {
        if (work->taken[i] > sfd_share(work->room, i + 1u, count) - sfd_share(work->room, i, count))
            return work->room + 1u;
        taken += work->taken[i];
        *above += work->above[i];
        for (bin = 0u; i > 0u && bin < SFD_HISTOGRAM_BINS; ++bin)
            work->histogram[0][bin] += work->histogram[i][bin];
    }
    return taken;
}

static void keep_share(void *context, uint32_t index, uint32_t count)
{
    struct pack_work *work = context;

    work->taken[index] = keep_between(work->inside + sfd_share(work->room, index, count),
                                      work->taken[index], work->low, work->high);
}

/* The rank-th largest magnitude of what was collected: the bracket becomes one of its up to 256 parts
 * until it is a single value. All threads have counted the first ones, and leave few elements. */
static struct topk_threshold narrow(struct pack_work *work, uint32_t rank, struct sfd_team *team)
{
    const uint32_t threads = sfd_team_count(team);
    uint32_t *histogram = work->histogram[0];
    float *inside = work->inside;
    struct topk_threshold threshold;
    uint32_t i, count = 0u;

    rank = choose_bin(histogram, rank, &work->low, &work->high);
    sfd_team_run(team, keep_share, work);
    for (i = 0u; i < threads; ++i) {
        memmove(inside + count, inside + sfd_share(work->room, i, threads),
                work->taken[i] * sizeof *inside);
        count += work->taken[i];
    }
    while (work->high - work->low > 1u) {
        count_bins(inside, count, work->low, work->high, histogram);
        rank = choose_bin(histogram, rank, &work->low, &work->high);
        count = keep_between(inside, count, work->low, work->high);
    }
    threshold.magnitude = work->low;
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
                                            struct sfd_team *team)
{
    uint32_t above, inside;

    if (work->elements < SAMPLED_FROM)
        return radix_threshold(work->x, work->elements, keep, work->histogram[0]);
    work->sampled = work->room < SAMPLE ? work->room : SAMPLE;
    sample_bracket(work, keep, team);
    inside = collect_all(work, team, &above);
    if (inside > work->room || above >= keep)
        return radix_threshold(work->x, work->elements, keep, work->histogram[0]);
    if (above + inside >= keep)
        return narrow(work, keep - above, team);
    if (work->low == 1u) { /* all that is not zero is taken */
        struct topk_threshold zero = {0u, 0u, 0u};
        zero.ties = keep - above - inside;
        return zero;
    }
    return radix_threshold(work->x, work->elements, keep, work->histogram[0]);
}

#endif
