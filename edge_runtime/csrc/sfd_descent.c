/* The search for a plan: less and less memory, in several ways, and the best of what was found. */
#include "sfd_planning.h"

/* Without a limit for the arena a fast plan may compute again what takes as long as this share of all
 * results takes to be written, whatever the density; a small plan as much as a forward. */
#define FAST_PARTS 4u
#define FAST_WHOLE 7u

/* By which part of itself the target is lowered at first, at least, and at most. */
#define FIRST_PART 32u
#define LAST_PART 256u
#define MOST_PART 4u

/* What it counts to compute w from v wherever it is wanted: more than nothing, and less than to
 * compute any tensor again, which grows with the batch. */
#define WEIGHTS_WORK 1u

/* What layers that are updated one by one may compute again, in forwards. */
#define LAYERWISE_FORWARDS 2u

/* That the searches of one descent may look at: a second or two of work. */
#define SEARCH_STEPS (UINT32_C(1) << 25)

/* Where choices are remembered. */
enum place_of_choices { BEST_WHOLE, BEST_LAYERWISE, LOWEST };

/* The best plan so far, of those that are remembered in one place. */
struct best {
    uint64_t work;  /* of what it computes again */
    uint32_t limit; /* bytes */
    uint32_t end;   /* UINT32_MAX: there is none */
    uint8_t place;  /* enum place_of_choices */
    uint8_t working, reloads;
};

/* What one search after another may choose. */
struct descent {
    uint64_t work_limit;
    uint8_t working;        /* enum sfd_working_copies */
    uint8_t reloads;        /* images may be interleaved again */
    uint8_t tries_channels; /* what a batch norm wants may be computed again channel by channel */
};

static void remember_choices(struct sfd_session *session, struct best *best)
{
    uint32_t i;

    best->working = session->working;
    best->reloads = session->reloads;
    for (i = 0u; i < session->tensor_count; ++i)
        session->values[i].chosen[best->place] = session->values[i].retention;
    for (i = 0u; i < session->operation_count; ++i)
        session->plans[i].chosen[best->place] = session->plans[i].packs_late;
}

/* Returns whether there is a plan. *base: where its transient regions may begin. */
static int recall_choices(struct sfd_session *session, const struct best *best, uint32_t *base)
{
    uint32_t i;

    session->working = best->working;
    session->reloads = best->reloads;
    for (i = 0u; i < session->tensor_count; ++i)
        session->values[i].retention = session->values[i].chosen[best->place];
    for (i = 0u; i < session->operation_count; ++i)
        session->plans[i].packs_late = session->plans[i].chosen[best->place];
    return best->end != UINT32_MAX && sfd_begin_plan(session, base) == SFD_OK &&
           sfd_schedule_build(session);
}

/* Of two plans within the limit the one with less work is better, otherwise the lower one. */
static int is_better(const struct best *best, uint32_t end, uint64_t work)
{
    if (end <= best->limit && best->end <= best->limit)
        return work < best->work || (work == best->work && end < best->end);
    return end < best->end;
}

static int is_settled(const struct best *best)
{
    return best->end <= best->limit && best->work == 0u;
}

/* The best plan within the limit, and the lowest one, which does not depend on it. */
struct finds {
    struct best best, lowest;
};

static void take_if_better(struct sfd_session *session, uint32_t end, uint64_t work,
                           struct best *best)
{
    if (!is_better(best, end, work))
        return;
    best->end = end;
    best->work = work;
    remember_choices(session, best);
}

/* Place the regions of the choices as they are, and remember them if that is better. */
static void consider(struct sfd_session *session, uint32_t base, uint64_t work, struct finds *finds)
{
    const uint32_t tables = sfd_begin_bytes(session);
    uint32_t end;

    if (session->working == SFD_WORKING_RESTORED)
        work += WEIGHTS_WORK;
    if (sfd_place_transient(session, base, &end) != SFD_OK || tables > SFD_ARENA_LIMIT - end)
        return;
    take_if_better(session, end + tables, work, &finds->best);
    take_if_better(session, end + tables, work, &finds->lowest);
}

/* Less and less memory alive, in smaller steps where a search fails. The plans on the way do not
 * depend on the limit: so a higher limit never leads to more work, and the least limit that can be
 * kept is where the lowest plan ends. */
static void descend(struct sfd_session *session, const struct descent *descent, struct finds *finds)
{
    /* the memory alive and its target in units of SFD_ALIGNMENT, the difference in bytes */
    uint32_t target = SFD_ARENA_LIMIT / SFD_ALIGNMENT, live = 0u, less = 0u, base;
    uint64_t work;

    session->working = descent->working;
    session->reloads = descent->reloads;
    if (is_settled(&finds->best) || sfd_begin_plan(session, &base) != SFD_OK)
        return;
    session->tries_channels = descent->tries_channels;
    session->search_left = SEARCH_STEPS;
    do {
        if (!sfd_search(session, target, descent->work_limit, &work)) {
            less = session->tries_channels ? less + live * (SFD_ALIGNMENT / FIRST_PART) : less / 2u;
        } else {
            live = sfd_lifetimes_peak(session);
            if (less == 0u || session->tries_channels) /* the first time everything is kept */
                less = live * (SFD_ALIGNMENT / FIRST_PART);
            consider(session, base, work, finds);
        }
        target = live - (less + SFD_ALIGNMENT - 1u) / SFD_ALIGNMENT;
    } while (less > live / (LAST_PART / SFD_ALIGNMENT) &&
             less <= live * (SFD_ALIGNMENT / MOST_PART) && session->search_left > 0u &&
             !is_settled(&finds->best));
}

/* Whatever is computed again. With channels on its own: more choices do not lead to a lower plan
 * everywhere. */
static void descend_deep(struct sfd_session *session, uint8_t working, uint64_t work_limit,
                         struct finds *finds)
{
    struct descent descent = {work_limit, working, 1u, 0u};

    descend(session, &descent, finds);
    descent.tries_channels = SFD_HAS(BATCH_NORM) && sfd_kernels_of(session)->forwards_rows;
    if (descent.tries_channels && working != SFD_WORKING_KEPT)
        descend(session, &descent, finds);
}

/* By chance, from the lowest plan, whatever the limit is. */
static void wander(struct sfd_session *session, uint64_t work_limit, struct finds *finds)
{
    struct sfd_walk walk;
    uint32_t base;

    if (is_settled(&finds->best) || !recall_choices(session, &finds->lowest, &base))
        return;
    session->tries_channels = 1u;
    sfd_walk_begin(&walk, session, work_limit);
    while (sfd_walk_on(&walk))
        consider(session, base, walk.now.work, finds);
}

/* Plans that change the model at once. */
static void find_whole(struct sfd_session *session, const struct sfd_options *options,
                       uint64_t forward_work, struct finds *finds)
{
    const uint64_t element_work = sfd_search_element_work(session) / FAST_WHOLE * FAST_PARTS;
    const struct descent fast = {element_work, SFD_WORKING_KEPT, 0u, 0u};

    descend(session, &fast, finds);
    if (options->memory == SFD_MEMORY_FAST && options->arena_bytes == 0u)
        return;
    descend_deep(session, SFD_WORKING_KEPT, forward_work, finds);
    descend_deep(session, SFD_WORKING_RESTORED, forward_work, finds);
    wander(session, forward_work, finds);
}

/* Plans that change it layer by layer. */
static void find_layerwise(struct sfd_session *session, uint64_t work_limit, struct finds *finds)
{
    descend_deep(session, SFD_WORKING_LAYERWISE, work_limit, finds);
    wander(session, work_limit, finds);
}

/* The lowest plan, or with a limit the one with the least work that keeps it. Where layers may be updated
 * one by one, one that changes the model at once may still be the better one. */
int sfd_find_plan(struct sfd_session *session, const struct sfd_options *options, uint32_t *base,
                  uint32_t *end)
{
    const uint64_t forward_work = sfd_search_forward_work(session);
    const uint64_t limit = options->memory == SFD_MEMORY_SMALL ? 0u : options->arena_bytes;
    const struct best none = {UINT64_MAX, 0u, UINT32_MAX, LOWEST, 0u, 0u};
    struct finds whole = {none, none}, layerwise;
    struct best *best = &whole.best;

    whole.best.place = BEST_WHOLE;
    whole.best.limit = limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX;
    layerwise = whole;
    layerwise.best.place = BEST_LAYERWISE;
    find_whole(session, options, forward_work, &whole);
    if (options->memory == SFD_MEMORY_LAYERWISE) {
        find_layerwise(session, LAYERWISE_FORWARDS * forward_work, &layerwise);
        if (is_better(best, layerwise.best.end, layerwise.best.work))
            best = &layerwise.best;
    }
    if (!recall_choices(session, best, base))
        return SFD_ERR_LIMIT;
    return sfd_place_transient(session, *base, end);
}
