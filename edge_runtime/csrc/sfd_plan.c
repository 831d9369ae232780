/* Planning without opening. */
#include "sfd_planning.h"

#define MAX_BATCH 65535u

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

static int check_options(const struct sfd_options *options, uint32_t batch,
                         struct sfd_problem *problem)
{
    if (!sfd_kernels_available(options->kernels))
        return sfd_fail(problem, SFD_ERR_KERNELS, 0u, (uint32_t)options->kernels, 0u);
    if (options->threads > sfd_threads_limit())
        return sfd_fail(problem, SFD_ERR_THREADS, 0u, options->threads, sfd_threads_limit());
    if (options->memory < SFD_MEMORY_FAST || options->memory > SFD_MEMORY_LAYERWISE)
        return sfd_fail(problem, SFD_ERR_ARGUMENT, 0u, (uint32_t)options->memory, 0u);
    if (!SFD_WITH_SEARCH && options->layout == NULL)
        return sfd_fail(problem, SFD_ERR_ARGUMENT, 0u, 0u, 0u);
    if (batch == 0u || batch > MAX_BATCH)
        return sfd_fail(problem, SFD_ERR_BATCH, 0u, batch, MAX_BATCH);
    return SFD_OK;
}

int sfd_plan(const uint8_t *artifact, size_t artifact_bytes, const uint8_t *state,
             size_t state_bytes, uint32_t batch, const struct sfd_options *options, void *workspace,
             size_t workspace_bytes, struct sfd_plan *plan, struct sfd_problem *problem)
{
    const struct sfd_options defaults = {0};
    const struct sfd_options *chosen = options == NULL ? &defaults : options;
    struct sfd_artifact_view artifact_view;
    struct sfd_container_view state_view;
    struct sfd_session *session;
    uint32_t tables;
    int error;

    if (plan == NULL || !sfd_is_aligned(workspace))
        return sfd_fail(problem, SFD_ERR_ARGUMENT, 0u, 0u, SFD_ALIGNMENT);
    session = workspace;
    if (workspace_bytes >= sizeof *session)
        session->arena_bytes = 0u; /* no older plan may be opened after a failure */
    error = check_options(chosen, batch, problem);
    if (error == SFD_OK)
        error = sfd_artifact_open(artifact, artifact_bytes, &artifact_view, problem);
    if (error == SFD_OK)
        error = sfd_container_open(state, state_bytes, &state_view, problem);
    if (error == SFD_OK)
        error = sfd_state_matches(&artifact_view, &state_view, problem);
    if (error != SFD_OK)
        return error;
    tables = sfd_tables_bytes(&artifact_view);
    if (tables > workspace_bytes)
        return sfd_fail_for_memory(problem, SFD_ERR_ARENA, (uint32_t)workspace_bytes, tables);
    session =
        sfd_tables_build(&artifact_view, &state_view, batch,
                         SFD_PORTABLE_ALONE ? NULL : sfd_kernels_find(chosen->kernels), workspace);
    session->threads = chosen->threads == 0u ? 1u : chosen->threads;
    error = sfd_memory_plan(session, chosen, plan);
    if (error != SFD_OK)
        return sfd_fail(problem, error, 0u, 0u, 0u);
    if (chosen->arena_bytes > 0u && chosen->arena_bytes < plan->arena_bytes)
        return sfd_fail_for_memory(problem, SFD_ERR_ARENA, (uint32_t)chosen->arena_bytes,
                                   (uint32_t)plan->arena_bytes);
    session->arena_bytes = plan->arena_bytes;
    return SFD_OK;
}

int sfd_plan_step(const void *workspace, uint32_t index, struct sfd_planned_step *step)
{
    const struct sfd_session *session = workspace;

    if (!sfd_is_aligned(workspace) || step == NULL || index >= session->step_count)
        return SFD_ERR_ARGUMENT;
    step->action = session->steps[index].action;
    step->operation = session->steps[index].node;
    return SFD_OK;
}

int sfd_plan_buffer(const void *workspace, uint32_t index, struct sfd_buffer *buffer)
{
    const struct sfd_session *session = workspace;
    const struct sfd_lifetime *lifetime;

    if (!sfd_is_aligned(workspace) || buffer == NULL || index >= session->region_count)
        return SFD_ERR_ARGUMENT;
    lifetime = &session->lifetimes[index];
    buffer->offset = session->regions[index].offset;
    buffer->bytes = session->regions[index].bytes;
    buffer->first_step = lifetime->first_step;
    buffer->last_step = lifetime->last_step;
    buffer->kind = lifetime->kind;
    buffer->owner = lifetime->owner;
    return SFD_OK;
}
