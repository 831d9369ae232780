/* The plan of a session's memory: what its options ask for. */
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

/* That the searches of one descent may look at: a second or two of work. */
#define SEARCH_STEPS (UINT32_C(1) << 25)

/* The best plan so far: where it ends, the work of what it computes again, and where it has its
 * working copies. */
struct best {
    uint64_t work;
    uint32_t limit;
    uint32_t end; /* UINT32_MAX: there is none */
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
        session->values[i].chosen = session->values[i].retention;
    for (i = 0u; i < session->operation_count; ++i)
        session->plans[i].chosen = session->plans[i].packs_late;
}

/* *base: where the transient regions may begin. */
static int place_persistent(struct sfd_session *session, uint32_t *base)
{
    sfd_lifetimes_persistent(session);
    return sfd_place_persistent(session, base);
}

static void recall_choices(struct sfd_session *session, const struct best *best)
{
    uint32_t i;

    session->working = best->working;
    session->reloads = best->reloads;
    for (i = 0u; i < session->tensor_count; ++i)
        session->values[i].retention = session->values[i].chosen;
    for (i = 0u; i < session->operation_count; ++i)
        session->plans[i].packs_late = session->plans[i].chosen;
}

/* Of two plans within the limit the one with less work is better, otherwise the lower one. */
static int is_better(const struct best *best, uint32_t end, uint64_t work)
{
    if (end <= best->limit && best->end <= best->limit)
        return work < best->work || (work == best->work && end < best->end);
    return end < best->end;
}

/* The tables, and the team of a session with threads. */
static uint32_t tables_bytes(const struct sfd_session *session)
{
    return sfd_tables_open_bytes(session) + (uint32_t)sfd_team_bytes(session->threads);
}

/* Place the regions of the choices as they are; *end counts the tables, too. */
static int place(struct sfd_session *session, uint32_t base, uint32_t *end)
{
    const uint32_t tables = tables_bytes(session);
    const int error = sfd_place_transient(session, base, end);

    if (error != SFD_OK || tables > SFD_ARENA_LIMIT - *end)
        return SFD_ERR_LIMIT;
    *end += tables;
    return SFD_OK;
}

static int is_settled(const struct best *best)
{
    return best->end <= best->limit && best->work == 0u;
}

/* Less and less memory alive, in smaller steps where a search fails. The plans on the way do not
 * depend on the limit: so a higher limit never leads to more work, and the least limit that can be
 * kept is where the lowest plan ends. */
static void descend(struct sfd_session *session, const struct descent *descent, struct best *best)
{
    /* the memory alive and its target in units of SFD_ALIGNMENT, the difference in bytes */
    uint32_t target = SFD_ARENA_LIMIT / SFD_ALIGNMENT, live = 0u, less = 0u;
    uint32_t base, end;
    uint64_t work;

    session->working = descent->working;
    session->reloads = descent->reloads;
    if (is_settled(best) || place_persistent(session, &base) != SFD_OK)
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
            work += descent->working == SFD_WORKING_RESTORED ? WEIGHTS_WORK : 0u;
            if (place(session, base, &end) == SFD_OK && is_better(best, end, work)) {
                best->end = end;
                best->work = work;
                remember_choices(session, best);
            }
        }
        target = live - (less + SFD_ALIGNMENT - 1u) / SFD_ALIGNMENT;
    } while (less > live / (LAST_PART / SFD_ALIGNMENT) &&
             less <= live * (SFD_ALIGNMENT / MOST_PART) && session->search_left > 0u &&
             !is_settled(best));
}

/* With channels on its own: more choices do not lead to a lower plan everywhere. */
static void descend_by_channel(struct sfd_session *session, struct descent descent,
                               struct best *best)
{
    descent.tries_channels = 1u;
    if (SFD_HAS(BATCH_NORM) && sfd_kernels_of(session)->forwards_rows)
        descend(session, &descent, best);
}

/* Whatever is computed again. */
static void descend_deep(struct sfd_session *session, uint8_t working, uint64_t forward_work,
                         struct best *best)
{
    const struct descent descent = {forward_work, working, 1u, 0u};

    descend(session, &descent, best);
    if (working != SFD_WORKING_KEPT)
        descend_by_channel(session, descent, best);
}

/* The tables begin the arena, all else follows them. */
static int insert_tables(struct sfd_session *session, uint32_t *base, uint32_t *end)
{
    const uint32_t bytes = tables_bytes(session);
    uint32_t i;

    if (bytes > SFD_ARENA_LIMIT - *end)
        return SFD_ERR_LIMIT;
    session->regions[0].bytes = bytes;
    for (i = 1u; i < session->region_count; ++i)
        session->regions[i].offset += bytes;
    *base += bytes;
    *end += bytes;
    return SFD_OK;
}

/* The lowest plan, or with a limit the one with the least work that keeps it. */
static int place_best(struct sfd_session *session, const struct sfd_options *options,
                      uint32_t *base, uint32_t *end)
{
    const int is_small = options->memory == SFD_MEMORY_SMALL;
    const uint64_t element_work = sfd_search_element_work(session) / FAST_WHOLE * FAST_PARTS;
    const uint64_t forward_work = sfd_search_forward_work(session);
    const uint64_t limit = is_small ? 0u : options->arena_bytes;
    const int is_layerwise = options->memory == SFD_MEMORY_LAYERWISE;
    const struct descent fast = {element_work,
                                 is_layerwise ? SFD_WORKING_LAYERWISE : SFD_WORKING_KEPT, 0u, 0u};
    struct best best = {UINT64_MAX, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX, UINT32_MAX,
                        0u, 0u};
    int error;

    descend(session, &fast, &best);
    if (is_layerwise)
        descend_deep(session, SFD_WORKING_LAYERWISE, 2u * forward_work, &best);
    if (is_layerwise || is_small || options->arena_bytes > 0u) {
        descend_deep(session, SFD_WORKING_KEPT, forward_work, &best);
        descend_deep(session, SFD_WORKING_RESTORED, forward_work, &best);
    }
    if (best.end == UINT32_MAX)
        return SFD_ERR_LIMIT;
    recall_choices(session, &best);
    error = place_persistent(session, base);
    if (error != SFD_OK)
        return error;
    (void)sfd_schedule_build(session);
    return sfd_place_transient(session, *base, end);
}

/* The same from the layout of a plan that was made before. */
static int take_layout(struct sfd_session *session, const struct sfd_options *options,
                       uint32_t *base, uint32_t *end)
{
    int error = sfd_layout_choose(session, options->layout, options->layout_bytes);

    if (error == SFD_OK)
        error = place_persistent(session, base);
    if (error != SFD_OK)
        return error;
    if (!sfd_schedule_build(session))
        return SFD_ERR_STRUCTURE;
    return sfd_layout_place(session, options->layout, options->layout_bytes, *base, end);
}

static void fill_plan(struct sfd_session *session, uint32_t base, uint32_t end,
                      struct sfd_plan *plan)
{
    uint32_t i;

    plan->arena_bytes = end;
    plan->transient_bytes = end - base;
    plan->buffer_count = session->region_count;
    plan->step_count = session->step_count;
    plan->step = session->planned;
    sfd_lifetimes_sum(session, 1u); /* no sum is more than the arena */
    for (i = 0u; i < session->step_count; ++i) {
        const struct sfd_step *step = &session->steps[i];
        if (step->live > plan->live_peak_bytes) {
            plan->live_peak_bytes = step->live;
            plan->live_peak_step = i;
        }
        if (step->action == SFD_ACTION_RESTORE)
            plan->step.recomputed += session->nodes[step->node].multiply_adds * session->batch;
    }
}

int sfd_memory_plan(struct sfd_session *session, const struct sfd_options *options,
                    struct sfd_plan *plan)
{
    uint32_t base, end, i;
    int error;

    memset(plan, 0, sizeof *plan);
    for (i = 0u; i < session->tensor_count; ++i)
        if ((uint64_t)session->batch * session->values[i].size * 4u > SFD_ARENA_LIMIT)
            return SFD_ERR_LIMIT;
    sfd_tables_measure(session);
    sfd_fusion_plan(session);
    if (SFD_WITH_SEARCH && options->layout == NULL)
        error = place_best(session, options, &base, &end);
    else
        error = take_layout(session, options, &base, &end);
    if (error == SFD_OK)
        error = insert_tables(session, &base, &end);
    if (error == SFD_OK)
        fill_plan(session, base, end, plan);
    return error;
}
