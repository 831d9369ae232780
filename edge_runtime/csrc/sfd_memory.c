/* The plan of a session's memory: what its options ask for. */
#include "sfd_planning.h"

/* Without a limit for the arena a fast plan may compute again what takes as long as one part in so
 * many of all results takes to be written, whatever the density; a small plan as much as a forward. */
#define FAST_SHARE 2u

/* By which part of itself the target is lowered at first, and at least. */
#define FIRST_PART 16u
#define LAST_PART 256u

/* How often a plan within a limit is tried, and by which part of itself the target is lowered. */
#define LIMIT_ATTEMPTS 12u
#define LIMIT_PART 64u

/* That the searches of one attempt may look at: a second or two of work. */
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

/* The lowest end that is found for so much work: less and less memory alive, in smaller steps where
 * a search fails, and of the plans on the way the one that is placed best. */
static int place_least(struct sfd_session *session, uint64_t base, uint64_t work_limit,
                       uint64_t *end)
{
    uint64_t target = SFD_ARENA_LIMIT, live = 0u, less = 0u, placed;

    *end = UINT64_MAX;
    session->search_left = SEARCH_STEPS;
    do {
        if (!sfd_search(session, target, work_limit)) {
            less /= 2u;
        } else {
            live = sfd_lifetimes_peak(session);
            if (less == 0u) /* the first time all fits, and everything is kept */
                less = live / FIRST_PART;
            if (sfd_place_transient(session, base, &placed) == SFD_OK && placed < *end) {
                *end = placed;
                remember_choices(session);
            }
        }
        target = live - less;
    } while (less > live / LAST_PART && session->search_left > 0u);
    if (*end == UINT64_MAX)
        return SFD_ERR_LIMIT;
    recall_choices(session);
    return sfd_place_transient(session, base, end);
}

/* The least work whose regions end within the limit. Placed regions may take more than what is
 * alive, and a search may miss what a stricter one finds: then the next one has less memory, by what
 * was missing or by a small part. Returns whether the limit is kept. */
static int place_within(struct sfd_session *session, uint64_t base, uint64_t limit, uint64_t *end)
{
    uint64_t target = limit > base ? limit - base : 0u;
    uint64_t work_limit = sfd_search_forward_work(session);
    uint32_t attempt;

    session->search_left = SEARCH_STEPS;
    for (attempt = 0u; attempt < LIMIT_ATTEMPTS; ++attempt) {
        uint64_t missing = target / LIMIT_PART;
        if (sfd_search(session, target, work_limit) &&
            sfd_place_transient(session, base, end) == SFD_OK) {
            if (*end <= limit)
                return 1;
            if (missing < *end - limit)
                missing = *end - limit;
        }
        target = missing < target ? target - missing : 0u;
    }
    return 0;
}

static int place_as_asked(struct sfd_session *session, uint64_t base,
                          const struct sfd_options *options, uint64_t *end)
{
    if (options->memory == SFD_MEMORY_FAST && options->arena_bytes == 0u)
        return place_least(session, base, sfd_search_element_work(session) / FAST_SHARE, end);
    if (options->memory == SFD_MEMORY_FAST &&
        place_within(session, base, options->arena_bytes, end))
        return SFD_OK;
    return place_least(session, base, sfd_search_forward_work(session), end);
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
    error = place_as_asked(session, base, options, &end);
    if (error == SFD_OK)
        fill_plan(session, base, end, plan);
    return error;
}
