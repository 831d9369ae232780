/* The plan of a session's memory: the best one that is found, or that of a layout. */
#include "sfd_planning.h"

int sfd_begin_plan(struct sfd_session *session, uint32_t *base)
{
    sfd_lifetimes_persistent(session);
    return sfd_place_persistent(session, base);
}

uint32_t sfd_begin_bytes(const struct sfd_session *session)
{
    return sfd_tables_open_bytes(session) + (uint32_t)sfd_team_bytes(session->threads);
}

/* The tables begin the arena, all else follows them. */
static int insert_tables(struct sfd_session *session, uint32_t *base, uint32_t *end)
{
    const uint32_t bytes = sfd_begin_bytes(session);
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

/* The plan of a layout of a plan that was made before. */
static int take_layout(struct sfd_session *session, const struct sfd_options *options,
                       uint32_t *base, uint32_t *end)
{
    int error = sfd_layout_choose(session, options->layout, options->layout_bytes);

    if (error == SFD_OK)
        error = sfd_begin_plan(session, base);
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
        error = sfd_find_plan(session, options, &base, &end);
    else
        error = take_layout(session, options, &base, &end);
    if (error == SFD_OK)
        error = insert_tables(session, &base, &end);
    if (error == SFD_OK)
        fill_plan(session, base, end, plan);
    return error;
}
