/* What runs in which step: the forward, the loss, then for each operation from the last to the first
 * what its backward wants and is not there, and the backward itself, and at last the update. */
#include "sfd_planning.h"

static int step_add(struct sfd_session *session, uint32_t node, enum sfd_action action)
{
    struct sfd_step *step = &session->steps[session->step_count];

    if (session->step_count == session->step_capacity)
        return 0;
    memset(step, 0, sizeof *step);
    step->node = (uint16_t)node;
    step->action = (uint8_t)action;
    ++session->step_count;
    return 1;
}

/* A step that computes the operation's result, or packs its input. */
static int run_add(struct sfd_session *session, uint32_t node, enum sfd_action action)
{
    session->plans[node].last_run = (uint16_t)session->step_count;
    return step_add(session, node, action);
}

/* Returns the number of tensors that are newly wanted. */
static uint32_t want(struct sfd_session *session, uint32_t tensor)
{
    struct sfd_value *value;

    if (tensor == SFD_NONE)
        return 0u;
    value = &session->values[tensor];
    if (value->is_there || value->is_wanted)
        return 0u;
    value->is_wanted = 1u;
    return 1u;
}

/* Mark what has to run again so that `tensor` is there, from its producer on towards the input.
 * Returns the first of these operations; `tensor` if there is none. */
static uint32_t mark_wanted(struct sfd_session *session, uint32_t tensor)
{
    uint32_t i = tensor, missing = want(session, tensor);

    while (missing > 0u) {
        i = sfd_producer(session, i);
        ++session->scanned;
        if (session->values[sfd_result(session, i)].is_wanted) {
            missing += want(session, session->nodes[i].operation.input0);
            missing += want(session, sfd_second_input(session, i));
            --missing;
        }
    }
    return i;
}

static int restore(struct sfd_session *session, uint32_t tensor)
{
    uint32_t i;

    for (i = mark_wanted(session, tensor); i < tensor; i = sfd_result(session, i)) {
        struct sfd_value *value = &session->values[sfd_result(session, i)];
        if (!value->is_wanted)
            continue;
        value->is_wanted = 0u;
        value->is_there = value->retention == SFD_RESTORE_ONCE;
        if (!run_add(session, i, SFD_ACTION_RESTORE))
            return 0;
    }
    return 1;
}

int sfd_can_restore_by_channel(const struct sfd_session *session, uint32_t node)
{
    const struct sfd_node *producer = &session->nodes[node], *next = producer + 1;
    const struct sfd_operation *operation = &producer->operation;

    return SFD_HAS(BATCH_NORM) && sfd_kernels_of(session)->forwards_rows &&
           ((operation->kind == SFD_OPERATION_CONVOLUTION && operation->groups == 1u) ||
            operation->kind == SFD_OPERATION_LINEAR) &&
           node + 1u < session->operation_count &&
           next->operation.kind == SFD_OPERATION_BATCH_NORM && next->operation.input0 == node + 1u;
}

/* Whether the backward wants its input channel by channel: the last step is to restore it. */
static int is_by_channel(const struct sfd_session *session, uint32_t index)
{
    const struct sfd_operation *operation = &session->nodes[index].operation;

    return SFD_HAS(BATCH_NORM) && operation->kind == SFD_OPERATION_BATCH_NORM &&
           session->values[operation->input0].retention == SFD_RESTORE_BY_CHANNEL;
}

static int schedule_backward(struct sfd_session *session, uint32_t index)
{
    struct sfd_node_plan *plan = &session->plans[index];
    int packs = plan->packs_late && plan->last_run < session->forward_steps;

    if ((plan->reads_input || packs) && !restore(session, session->nodes[index].operation.input0))
        return 0;
    if (plan->reads_input && is_by_channel(session, index))
        session->steps[session->step_count - 1u].by_channel = 1u;
    if (packs && !run_add(session, index, SFD_ACTION_PACK))
        return 0;
    session->steps[plan->last_run].keeps = 1u;
    plan->backward = (uint16_t)session->step_count;
    return step_add(session, index, SFD_ACTION_BACKWARD);
}

static int schedule_all(struct sfd_session *session)
{
    uint32_t i, count = session->operation_count;

    for (i = 0u; i < session->tensor_count; ++i) {
        struct sfd_value *value = &session->values[i];
        value->is_there = i == 0u || value->retention == SFD_KEEP;
        value->is_wanted = 0u;
    }
    session->step_count = 0u;
    session->scanned = 0u;
    for (i = 0u; i < count; i = sfd_result(session, i))
        (void)run_add(session, i, SFD_ACTION_FORWARD);
    session->forward_steps = session->step_count;
    (void)step_add(session, SFD_NONE, SFD_ACTION_LOSS);
    while (count > 0u) {
        count = sfd_producer(session, count);
        if (session->nodes[count].has_backward && !schedule_backward(session, count))
            return 0;
    }
    return step_add(session, SFD_NONE, SFD_ACTION_UPDATE);
}

/* The caller's images need not stay for a backward that interleaves them again. */
static void read_tensor(struct sfd_session *session, uint32_t tensor, uint32_t step)
{
    if (tensor == 0u && session->reloads && step > session->forward_steps)
        return;
    if (tensor != SFD_NONE && session->values[tensor].last_read == SFD_NONE)
        session->values[tensor].last_read = (uint16_t)step;
}

/* What a step reads, and until when what it writes is read. Steps come from the last to the first. */
static void find_reads(struct sfd_session *session, uint32_t index)
{
    struct sfd_step *step = &session->steps[index];
    const struct sfd_node *node = &session->nodes[step->node];
    struct sfd_value *result;

    switch (step->action) {
    case SFD_ACTION_FORWARD:
    case SFD_ACTION_RESTORE:
        result = &session->values[sfd_result(session, step->node)];
        step->until = result->last_read == SFD_NONE ? (uint16_t)index : result->last_read;
        result->last_read = SFD_NONE;
        read_tensor(session, node->operation.input0, index + step->by_channel);
        read_tensor(session, sfd_second_input(session, step->node), index);
        break;
    case SFD_ACTION_PACK:
        read_tensor(session, node->operation.input0, index);
        break;
    default:
        if (session->plans[step->node].reads_input)
            read_tensor(session, node->operation.input0, index);
        break;
    }
}

static void find_all_reads(struct sfd_session *session)
{
    uint32_t i;

    for (i = 0u; i < session->tensor_count; ++i)
        session->values[i].last_read = SFD_NONE;
    for (i = session->step_count - 1u; i-- > 0u;) /* the update reads no tensor */
        if (i == session->forward_steps)
            read_tensor(session, session->output, i);
        else
            find_reads(session, i);
}

int sfd_schedule_build(struct sfd_session *session)
{
    if (!schedule_all(session))
        return 0;
    find_all_reads(session);
    sfd_lifetimes_transient(session);
    return 1;
}
