/* The plan of a session's memory: what its options ask for. */
#include "sfd_planning.h"

/* Without a limit for the arena a fast plan may compute again what takes as long as this share of all
 * results takes to be written, whatever the density; a small plan as much as a forward. */
#define FAST_PARTS 4u
#define FAST_WHOLE 7u

/* By which part of itself the target is lowered at first, and at least. */
#define FIRST_PART 32u
#define LAST_PART 256u

/* That the searches of one descent may look at: a second or two of work. */
#define SEARCH_STEPS (UINT64_C(1) << 25)

static void remember_choices(struct sfd_session *session)
{
    uint32_t i;

    for (i = 0u; i < session->tensor_count; ++i)
        session->values[i].chosen = session->values[i].retention;
    for (i = 0u; i < session->operation_count; ++i)
        session->nodes[i].chosen = session->nodes[i].packs_late;
}

static void recall_choices(struct sfd_session *session)
{
    uint32_t i;

    for (i = 0u; i < session->tensor_count; ++i)
        session->values[i].retention = session->values[i].chosen;
    for (i = 0u; i < session->operation_count; ++i)
        session->nodes[i].packs_late = session->nodes[i].chosen;
    (void)sfd_search_build(session);
}

/* The best plan so far: where it ends, and the work of what it computes again. */
struct best {
    uint64_t limit, end, work;
};

/* Of two plans within the limit the one with less work is better, otherwise the lower one. */
static int is_better(const struct best *best, uint64_t end, uint64_t work)
{
    if (end <= best->limit && best->end <= best->limit)
        return work < best->work || (work == best->work && end < best->end);
    return end < best->end;
}

/* Less and less memory alive, in smaller steps where a search fails. The plans on the way do not
 * depend on the limit: so a higher limit never leads to more work, and the least limit that can be
 * kept is where the lowest plan ends. */
static void descend(struct sfd_session *session, uint64_t base, uint64_t work_limit,
                    struct best *best)
{
    uint64_t target = SFD_ARENA_LIMIT, live = 0u, less = 0u, end, work;

    session->search_left = SEARCH_STEPS;
    do {
        if (!sfd_search(session, target, work_limit, &work)) {
            less /= 2u;
        } else {
            live = sfd_lifetimes_peak(session);
            if (less == 0u) /* the first time all fits, and everything is kept */
                less = live / FIRST_PART;
            if (sfd_place_transient(session, base, &end) == SFD_OK && is_better(best, end, work)) {
                best->end = end;
                best->work = work;
                remember_choices(session);
            }
        }
        target = live - less;
    } while (less > live / LAST_PART && session->search_left > 0u &&
             (best->end > best->limit || best->work > 0u));
}

/* The lowest plan, or with a limit the one with the least work that keeps it. */
static int place_best(struct sfd_session *session, uint64_t base, const struct sfd_options *options,
                      uint64_t *end)
{
    const int is_fast = options->memory == SFD_MEMORY_FAST;
    struct best best = {is_fast ? options->arena_bytes : 0u, UINT64_MAX, 0u};

    descend(session, base, sfd_search_element_work(session) / FAST_WHOLE * FAST_PARTS, &best);
    if (!is_fast || (options->arena_bytes > 0u && (best.end > best.limit || best.work > 0u)))
        descend(session, base, sfd_search_forward_work(session), &best);
    if (best.end == UINT64_MAX)
        return SFD_ERR_LIMIT;
    recall_choices(session);
    return sfd_place_transient(session, base, end);
}

static void fill_plan(struct sfd_session *session, uint64_t base, uint64_t end,
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

int sfd_memory_plan(struct sfd_session *session, uint64_t tables_bytes,
                    const struct sfd_options *options, struct sfd_plan *plan)
{
    uint64_t base, end;
    uint32_t i;
    int error;

    memset(plan, 0, sizeof *plan);
    for (i = 0u; i < session->tensor_count; ++i)
        if (sfd_batch_elements(session, i) * 4u > SFD_ARENA_LIMIT)
            return SFD_ERR_LIMIT;
    sfd_tables_measure(session);
    sfd_fusion_plan(session);
    sfd_lifetimes_persistent(session, tables_bytes);
    base = sfd_place_persistent(session);
    if (base > SFD_ARENA_LIMIT)
        return SFD_ERR_LIMIT;
    error = place_best(session, base, options, &end);
    if (error == SFD_OK)
        fill_plan(session, base, end, plan);
    return error;
}
