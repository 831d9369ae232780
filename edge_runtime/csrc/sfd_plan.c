/* Planning without opening. */
#include "sfd_planning.h"

static int is_aligned(const void *memory)
{
    return memory != NULL && (uintptr_t)memory % SFD_ALIGNMENT == 0u;
}

int sfd_workspace_bytes(const uint8_t *artifact, size_t artifact_bytes, uint64_t *bytes,
                        struct sfd_problem *problem)
{
    struct sfd_artifact_view view;
    int error;

    if (bytes == NULL)
        return sfd_fail(problem, SFD_ERR_ARGUMENT, 0u, 0u, 0u);
    error = sfd_artifact_open(artifact, artifact_bytes, &view, problem);
    if (error == SFD_OK)
        *bytes = sfd_tables_bytes(&view);
    return error;
}

int sfd_prepare(const uint8_t *artifact, size_t artifact_bytes, const uint8_t *state,
                size_t state_bytes, uint32_t batch, const struct sfd_options *options, void *memory,
                size_t memory_bytes, struct sfd_session **session,
                struct sfd_container_view *state_view, struct sfd_plan *plan,
                struct sfd_problem *problem)
{
    const struct sfd_options defaults = {SFD_KERNELS_AUTOMATIC, 1u, SFD_MEMORY_FAST, 0u};
    const struct sfd_options *chosen = options == NULL ? &defaults : options;
    const struct sfd_kernels *kernels = sfd_kernels_find(chosen->kernels);
    const uint32_t threads = chosen->threads == 0u ? 1u : chosen->threads;
    struct sfd_artifact_view artifact_view;
    uint64_t tables;
    int error;

    if (!is_aligned(memory))
        return sfd_fail(problem, SFD_ERR_ARGUMENT, 0u, 0u, SFD_ALIGNMENT);
    if (kernels == NULL)
        return sfd_fail(problem, SFD_ERR_KERNELS, 0u, (uint32_t)chosen->kernels, 0u);
    if (threads > sfd_threads_limit())
        return sfd_fail(problem, SFD_ERR_THREADS, 0u, threads, sfd_threads_limit());
    if (chosen->memory != SFD_MEMORY_FAST && chosen->memory != SFD_MEMORY_SMALL)
        return sfd_fail(problem, SFD_ERR_ARGUMENT, 0u, (uint32_t)chosen->memory, 0u);
    if (batch == 0u || batch > SFD_MAX_BATCH)
        return sfd_fail(problem, SFD_ERR_BATCH, 0u, batch, SFD_MAX_BATCH);
    error = sfd_artifact_open(artifact, artifact_bytes, &artifact_view, problem);
    if (error == SFD_OK)
        error = sfd_container_open(state, state_bytes, state_view, problem);
    if (error == SFD_OK)
        error = sfd_state_matches(&artifact_view, state_view, problem);
    if (error != SFD_OK)
        return error;
    tables = sfd_tables_bytes(&artifact_view);
    if (tables > memory_bytes)
        return sfd_fail(problem, SFD_ERR_ARENA, 0u, (uint32_t)memory_bytes, (uint32_t)tables);
    *session = sfd_tables_build(&artifact_view, state_view, batch, kernels, memory);
    (*session)->threads = threads;
    error = sfd_memory_plan(*session, tables + sfd_team_bytes(threads), chosen, plan);
    if (error != SFD_OK)
        return sfd_fail(problem, error, 0u, 0u, 0u);
    if (chosen->arena_bytes > 0u && chosen->arena_bytes < plan->arena_bytes)
        return sfd_fail(problem, SFD_ERR_ARENA, 0u, (uint32_t)chosen->arena_bytes,
                        (uint32_t)plan->arena_bytes);
    return SFD_OK;
}

int sfd_plan(const uint8_t *artifact, size_t artifact_bytes, const uint8_t *state,
             size_t state_bytes, uint32_t batch, const struct sfd_options *options, void *workspace,
             size_t workspace_bytes, struct sfd_plan *plan, struct sfd_problem *problem)
{
    struct sfd_session *session;
    struct sfd_container_view state_view;

    if (plan == NULL)
        return sfd_fail(problem, SFD_ERR_ARGUMENT, 0u, 0u, 0u);
    return sfd_prepare(artifact, artifact_bytes, state, state_bytes, batch, options, workspace,
                       workspace_bytes, &session, &state_view, plan, problem);
}

int sfd_plan_step(const void *workspace, uint32_t index, struct sfd_planned_step *step)
{
    const struct sfd_session *session = workspace;

    if (!is_aligned(workspace) || step == NULL || index >= session->step_count)
        return SFD_ERR_ARGUMENT;
    step->action = session->steps[index].action;
    step->operation = session->steps[index].node;
    return SFD_OK;
}

int sfd_plan_buffer(const void *workspace, uint32_t index, struct sfd_buffer *buffer)
{
    const struct sfd_session *session = workspace;
    const struct sfd_region *region;

    if (!is_aligned(workspace) || buffer == NULL || index >= session->region_count)
        return SFD_ERR_ARGUMENT;
    region = &session->regions[index];
    buffer->offset = region->offset;
    buffer->bytes = region->bytes;
    buffer->first_step = region->first_step;
    buffer->last_step = region->last_step;
    buffer->kind = region->kind;
    buffer->owner = region->owner;
    return SFD_OK;
}
