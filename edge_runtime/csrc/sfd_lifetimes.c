/* Which regions there are, and from which step to which step each is alive.
 *
 * An elementwise operation works in place where nothing else needs its input any more. The gradient
 * of its input takes the place of its output's gradient, or of the input itself, where nothing else
 * needs those. */
#include "sfd_planning.h"

static uint16_t region_add(struct sfd_session *session, enum sfd_buffer_kind kind, uint32_t owner,
                           uint64_t bytes, uint32_t first_step, uint32_t last_step)
{
    struct sfd_lifetime *lifetime = &session->lifetimes[session->region_count];

    session->regions[session->region_count].bytes =
        bytes > SFD_ARENA_LIMIT ? SFD_ARENA_LIMIT + 1u : (uint32_t)bytes;
    lifetime->kind = (uint8_t)kind;
    lifetime->owner = (uint16_t)owner;
    lifetime->first_step = (uint16_t)first_step;
    lifetime->last_step = (uint16_t)last_step;
    return (uint16_t)session->region_count++;
}

static uint16_t scratch_add(struct sfd_session *session, const struct sfd_step *step,
                            uint64_t bytes)
{
    uint32_t index = (uint32_t)(step - session->steps);

    if (bytes == 0u)
        return SFD_NONE;
    return region_add(session, SFD_BUFFER_SCRATCH, step->node, bytes, index, index);
}

static uint16_t tensor_add(struct sfd_session *session, enum sfd_buffer_kind kind, uint32_t tensor,
                           uint32_t step)
{
    return region_add(session, kind, tensor - 1u, sfd_batch_elements(session, tensor) * 4u, step,
                      step);
}

/* Room for one channel of what a step computes. */
static uint16_t channel_add(struct sfd_session *session, const struct sfd_step *step)
{
    const uint32_t tensor = step->node + 1u;

    return scratch_add(session, step,
                       sfd_batch_elements(session, tensor) / session->values[tensor].channels * 4u);
}

static void touch(struct sfd_session *session, uint32_t region, uint32_t step)
{
    if (region != SFD_NONE && session->lifetimes[region].last_step < step)
        session->lifetimes[region].last_step = (uint16_t)step;
}

/* Whether what lies in the region is not needed after this step. */
static int ends_at(const struct sfd_session *session, uint32_t region, uint32_t step)
{
    return region != SFD_NONE && session->lifetimes[region].last_step == step;
}

uint32_t sfd_batch_elements(const struct sfd_session *session, uint32_t tensor)
{
    return session->batch * session->values[tensor].size;
}

/* Whether the two inputs of an addition can have one gradient in one place. The producer that comes
 * first in the backward must find it unchanged: it must not write there itself, and no other reader
 * of the inputs may have added to it. */
static int can_share_gradient(const struct sfd_session *session, uint32_t index)
{
    const struct sfd_operation *add = &session->nodes[index].operation, *other;
    uint32_t a = add->input0, b = add->input1, later = a > b ? a : b, i;

    if (a == b || !sfd_wants_gradient(session, a) || !sfd_wants_gradient(session, b) ||
        session->nodes[sfd_producer(session, later)].fused > 0u)
        return 0;
    for (i = sfd_producer(session, later); i < session->operation_count; ++i) {
        other = &session->nodes[i].operation;
        if (i != index &&
            (other->input0 == a || other->input0 == b || other->input1 == a || other->input1 == b))
            return 0;
    }
    return 1;
}

static void plan_sharing(struct sfd_session *session)
{
    uint32_t i;

    for (i = 0u; SFD_HAS(ADD) && i < session->operation_count; ++i)
        if (session->nodes[i].operation.kind == SFD_OPERATION_ADD)
            session->plans[i].shares_gradient = (uint8_t)can_share_gradient(session, i);
}

static void plan_sparse(struct sfd_session *session, uint32_t index)
{
    struct sfd_slot *slot = &session->slots[index];
    uint64_t bytes = (uint64_t)slot->count * 4u;
    uint64_t columns = ((uint64_t)slot->count * slot->index_width + 3u) / 4u * 4u;

    slot->index = region_add(session, SFD_BUFFER_INDEX, index,
                             ((uint64_t)slot->rows + 1u) * 4u + columns, 0u, 0u);
    slot->value = region_add(session, SFD_BUFFER_WEIGHT, index, bytes, 0u, 0u);
    if (session->working == SFD_WORKING_KEPT)
        slot->gradient = region_add(session, SFD_BUFFER_WORKING_WEIGHT, index, bytes, 0u, 0u);
}

/* A trainable tensor is followed by its gradient, unless layers are updated one by one. */
static void plan_dense(struct sfd_session *session, uint32_t index)
{
    struct sfd_slot *slot = &session->slots[index];
    const int is_followed =
        slot->kind == SFD_PARAMETER_DENSE && session->working != SFD_WORKING_LAYERWISE;

    slot->value = region_add(session, SFD_BUFFER_DENSE, index,
                             (uint64_t)slot->count * (is_followed ? 8u : 4u), 0u, 0u);
    if (is_followed) {
        slot->gradient = slot->value;
        slot->gradient_start = slot->count;
    }
}

void sfd_lifetimes_persistent(struct sfd_session *session)
{
    uint32_t i;

    session->region_count = 0u;
    (void)region_add(session, SFD_BUFFER_TABLES, SFD_NONE, 0u, 0u, 0u);
    for (i = 0u; i < session->parameter_count; ++i) {
        session->slots[i].gradient = SFD_NONE;
        session->slots[i].gradient_start = 0u;
        if (session->slots[i].kind == SFD_PARAMETER_WEIGHT)
            plan_sparse(session, i);
        else
            plan_dense(session, i);
    }
    session->persistent_count = session->region_count;
    plan_sharing(session);
}

/* What the backward of one operation needs, beside its input. */
static void plan_kept(struct sfd_session *session, uint32_t index, uint32_t step, uint32_t end)
{
    struct sfd_node *node = &session->nodes[index];
    uint64_t packed = session->plans[index].packed_bytes;
    uint32_t out = sfd_batch_elements(session, node->operation.output);

    switch (node->operation.kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR:
        if (packed > 0u)
            node->saved = region_add(session, SFD_BUFFER_SAVED_INPUT, index, packed, step, end);
        break;
    case SFD_OPERATION_RELU:
    case SFD_OPERATION_RELU6:
        node->mask = region_add(session, SFD_BUFFER_MASK, index, (out + 31u) / 32u * 4u, step, end);
        break;
    case SFD_OPERATION_MAX_POOL:
        node->mask = region_add(session, SFD_BUFFER_MASK, index, (out + 1u) / 2u * 4u, step, end);
        break;
    default:
        break;
    }
}

static void plan_moments(struct sfd_session *session, uint32_t index, uint32_t step)
{
    struct sfd_node *node = &session->nodes[index];
    const struct sfd_operation *operation = &node->operation;
    uint64_t moments;
    uint32_t end = node->has_backward ? session->plans[index].backward : step;

    if (SFD_HAS(BATCH_NORM) && operation->kind == SFD_OPERATION_BATCH_NORM) {
        moments = session->values[operation->input0].channels;
        if (!sfd_learns_early(session, index))
            end = session->step_count - 1u; /* the running statistics move with the update */
    } else if (SFD_HAS(GROUP_NORM) && operation->kind == SFD_OPERATION_GROUP_NORM) {
        moments = (uint64_t)session->batch * operation->groups;
    } else if (SFD_HAS(LAYER_NORM) && operation->kind == SFD_OPERATION_LAYER_NORM) {
        moments = sfd_batch_elements(session, operation->input0) / operation->normalized;
    } else {
        return;
    }
    node->moments = region_add(session, SFD_BUFFER_STATISTICS, index, moments * 8u, step, end);
}

static int works_in_place(const struct sfd_node *node)
{
    switch (node->operation.kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR:
    case SFD_OPERATION_MAX_POOL:
    case SFD_OPERATION_AVERAGE_POOL:
    case SFD_OPERATION_ADAPTIVE_AVERAGE_POOL:
        return 0;
    default:
        return 1;
    }
}

/* Where a step finds a tensor that it reads. The images of a batch are interleaved before the first
 * step that reads them, and again where they are wanted later than they stay. */
static uint16_t find_tensor(struct sfd_session *session, struct sfd_step *step, uint32_t tensor)
{
    const uint32_t index = (uint32_t)(step - session->steps);
    uint32_t last = index + step->by_channel;
    struct sfd_value *value = &session->values[tensor];

    if (tensor == SFD_NONE)
        return SFD_NONE;
    if (tensor == 0u && !sfd_reads_caller(session) &&
        (value->storage == SFD_NONE || value->last_read < index)) {
        step->loads = 1u;
        if (last < value->last_read)
            last = value->last_read;
        value->storage = region_add(session, SFD_BUFFER_ACTIVATION, SFD_NONE,
                                    sfd_batch_elements(session, 0u) * 4u, index, last);
    }
    return value->storage;
}

/* Where the result of a step goes. */
static uint16_t place_result(struct sfd_session *session, const struct sfd_step *step)
{
    const struct sfd_node *node = &session->nodes[step->node];
    uint32_t index = (uint32_t)(step - session->steps);

    if (node->operation.kind == SFD_OPERATION_RESHAPE)
        return step->input0;
    if (SFD_HAS(BATCH_NORM) && step->by_channel)
        return channel_add(session, step);
    if (works_in_place(node) && ends_at(session, step->input0, index))
        return step->input0;
    if (works_in_place(node) && ends_at(session, step->input1, index))
        return step->input1;
    return tensor_add(session, SFD_BUFFER_ACTIVATION, sfd_result(session, step->node), index);
}

static int is_sparse(const struct sfd_operation *operation)
{
    return operation->kind == SFD_OPERATION_CONVOLUTION || operation->kind == SFD_OPERATION_LINEAR;
}

/* Where a step that computes the result of a layer has w. */
static uint16_t plan_weight(struct sfd_session *session, const struct sfd_operation *operation,
                            uint32_t index)
{
    const struct sfd_slot *slot = &session->slots[operation->weight];

    if (session->working == SFD_WORKING_KEPT)
        return slot->gradient;
    return region_add(session, SFD_BUFFER_WORKING_WEIGHT, operation->weight,
                      (uint64_t)slot->count * 4u, index, index);
}

/* A step that computes the result of an operation, for the first time or again. */
static void plan_run(struct sfd_session *session, uint32_t index)
{
    struct sfd_step *step = &session->steps[index];
    const struct sfd_node *node = &session->nodes[step->node];
    const struct sfd_node_plan *plan = &session->plans[step->node];
    uint32_t second = sfd_second_input(session, step->node);

    step->input0 = find_tensor(session, step, node->operation.input0);
    step->input1 =
        second == node->operation.input0 ? step->input0 : find_tensor(session, step, second);
    step->output = place_result(session, step);
    touch(session, step->output, step->until);
    session->values[sfd_result(session, step->node)].storage = step->output;
    step->scratch = scratch_add(session, step, plan->forward_scratch_bytes);
    if (is_sparse(&node->operation))
        step->working = plan_weight(session, &node->operation, index);
    if (SFD_HAS(BATCH_NORM) && step->by_channel) {
        touch(session, step->scratch, step->until);
        touch(session, step->working, step->until);
    }
    if (step->action == SFD_ACTION_FORWARD)
        plan_moments(session, step->node, index);
    if (step->keeps)
        plan_kept(session, step->node + node->fused, index, plan->backward);
}

static enum sfd_delivery deliver(struct sfd_session *session, uint32_t tensor, uint32_t step,
                                 uint32_t in_place)
{
    struct sfd_value *value = &session->values[tensor];
    enum sfd_delivery delivery = SFD_DELIVER_IN_PLACE;

    if (!sfd_wants_gradient(session, tensor))
        return SFD_DELIVER_NOTHING;
    if (value->gradient != SFD_NONE)
        return SFD_DELIVER_ACCUMULATE;
    value->gradient = (uint16_t)in_place;
    if (in_place == SFD_NONE) {
        value->gradient = tensor_add(session, SFD_BUFFER_GRADIENT, tensor, step);
        delivery = SFD_DELIVER_WRITE;
    }
    touch(session, value->gradient, session->plans[sfd_producer(session, tensor)].backward);
    return delivery;
}

static void plan_addition_backward(struct sfd_session *session, uint32_t index, uint32_t step,
                                   uint32_t dy)
{
    struct sfd_node *node = &session->nodes[index];

    node->delivery0 = (uint8_t)deliver(session, node->operation.input0, step, dy);
    if (node->delivery0 == SFD_DELIVER_IN_PLACE && !session->plans[index].shares_gradient)
        dy = SFD_NONE;
    node->delivery1 = (uint8_t)deliver(session, node->operation.input1, step, dy);
}

/* An operation of one input, perhaps with an addition fused to it: the gradient of its other operand
 * is dy, as the rectifier leaves it. */
static void plan_single_backward(struct sfd_session *session, const struct sfd_step *step,
                                 uint32_t dy)
{
    struct sfd_node *node = &session->nodes[step->node];
    uint32_t index = (uint32_t)(step - session->steps);
    uint32_t second = sfd_second_input(session, step->node), place = SFD_NONE;

    node->delivery1 = SFD_DELIVER_NOTHING;
    if (second != SFD_NONE)
        node->delivery1 = (uint8_t)deliver(session, second, index, dy);
    if (works_in_place(node) && node->delivery1 == SFD_DELIVER_NOTHING)
        place = dy;
    if (place == SFD_NONE && session->plans[step->node].reads_input && works_in_place(node) &&
        !step[-1].by_channel && ends_at(session, step->input0, index))
        place = step->input0;
    node->delivery0 = (uint8_t)deliver(session, node->operation.input0, index, place);
}

/* Where the gradients of an operation's parameters go. A layer has w there before. */
static void plan_gradients(struct sfd_session *session, uint32_t index)
{
    struct sfd_step *step = &session->steps[index];
    const struct sfd_operation *operation = &session->nodes[step->node].operation;
    const uint32_t parameters[2] = {operation->weight, operation->bias};
    const int is_layerwise = session->working == SFD_WORKING_LAYERWISE;
    uint32_t i, count = 0u, owner = SFD_NONE;

    for (i = 0u; i < 2u; ++i) {
        struct sfd_slot *slot;
        if (parameters[i] == SFD_NONE)
            continue;
        slot = &session->slots[parameters[i]];
        if (!is_layerwise && slot->kind != SFD_PARAMETER_WEIGHT)
            continue;
        slot->gradient = (uint16_t)session->region_count;
        slot->gradient_start = count;
        count += slot->count;
        if (owner == SFD_NONE)
            owner = parameters[i];
    }
    if (owner != SFD_NONE)
        step->working = region_add(session, SFD_BUFFER_WORKING_WEIGHT, owner, (uint64_t)count * 4u,
                                   index, is_layerwise ? index : session->step_count - 1u);
}

static void plan_backward(struct sfd_session *session, uint32_t index)
{
    struct sfd_step *step = &session->steps[index];
    const struct sfd_node *node = &session->nodes[step->node];
    const struct sfd_node_plan *plan = &session->plans[step->node];
    uint32_t dy = session->values[sfd_result(session, step->node)].gradient;

    if (plan->reads_input)
        step->input0 = find_tensor(session, step, node->operation.input0);
    step->scratch = scratch_add(session, step, plan->backward_scratch_bytes);
    if (session->working != SFD_WORKING_KEPT)
        plan_gradients(session, index);
    else if (is_sparse(&node->operation))
        step->working = session->slots[node->operation.weight].gradient;
    if (!ends_at(session, dy, index))
        dy = SFD_NONE;
    if (SFD_HAS(ADD) && node->operation.kind == SFD_OPERATION_ADD)
        plan_addition_backward(session, step->node, index, dy);
    else
        plan_single_backward(session, step, dy);
}

static void plan_loss(struct sfd_session *session, uint32_t index)
{
    session->steps[index].input0 = session->values[session->output].storage;
    (void)deliver(session, session->output, index, SFD_NONE);
}

static void forget(struct sfd_session *session)
{
    uint32_t i;

    session->region_count = session->persistent_count;
    for (i = 0u; i < session->persistent_count; ++i)
        session->lifetimes[i].last_step = (uint16_t)(session->step_count - 1u);
    for (i = 0u; i < session->tensor_count; ++i)
        session->values[i].storage = session->values[i].gradient = SFD_NONE;
}

void sfd_lifetimes_transient(struct sfd_session *session)
{
    uint32_t i;

    forget(session);
    for (i = 0u; i < session->step_count; ++i) {
        struct sfd_step *step = &session->steps[i];
        step->input0 = step->input1 = step->output = step->scratch = step->working = SFD_NONE;
        switch (step->action) {
        case SFD_ACTION_FORWARD:
        case SFD_ACTION_RESTORE:
            plan_run(session, i);
            break;
        case SFD_ACTION_PACK:
            step->input0 = find_tensor(session, step, session->nodes[step->node].operation.input0);
            plan_kept(session, step->node, i, session->plans[step->node].backward);
            break;
        case SFD_ACTION_LOSS:
            plan_loss(session, i);
            break;
        case SFD_ACTION_BACKWARD:
            plan_backward(session, i);
            break;
        default:
            break;
        }
    }
}

void sfd_lifetimes_sum(struct sfd_session *session, uint32_t unit)
{
    uint32_t i, live = 0u;

    for (i = 0u; i < session->step_count; ++i)
        session->steps[i].live = 0u;
    for (i = session->persistent_count; i < session->region_count; ++i) {
        const struct sfd_lifetime *lifetime = &session->lifetimes[i];
        uint32_t bytes = session->regions[i].bytes, units = bytes / unit + (bytes % unit != 0u);
        session->steps[lifetime->first_step].live += units;
        if (lifetime->last_step + 1u < session->step_count)
            session->steps[lifetime->last_step + 1u].live -= units;
    }
    for (i = 0u; i < session->step_count; ++i)
        live = session->steps[i].live += live;
}

uint32_t sfd_lifetimes_peak(struct sfd_session *session)
{
    uint32_t i, peak = 0u;

    sfd_lifetimes_sum(session, SFD_ALIGNMENT);
    for (i = 0u; i < session->step_count; ++i)
        if (session->steps[i].live > peak)
            peak = session->steps[i].live;
    return peak;
}
