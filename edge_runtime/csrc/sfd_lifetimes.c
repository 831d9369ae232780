/* Which regions there are, and from which step to which step each is alive.
 *
 * A rectifier, a reshape and an addition work in place where nothing else needs their input. The
 * gradient of an operation's input takes the place of its output's gradient where the kernel allows
 * it. A convolution or linear layer with a sparse weight keeps its input packed, so that the
 * input's own region ends with its last forward reader. */
#include "sfd_internal.h"

static uint32_t backward_step(const struct sfd_session *session, uint32_t node)
{
    return 2u * session->operation_count - node;
}

static uint16_t region_add(struct sfd_session *session, enum sfd_buffer_kind kind, uint32_t owner,
                           uint64_t bytes, uint32_t first_step, uint32_t last)
{
    struct sfd_region *region = &session->regions[session->region_count];

    region->bytes = bytes > SFD_ARENA_LIMIT ? SFD_ARENA_LIMIT + 1u : (uint32_t)bytes;
    region->kind = (uint8_t)kind;
    region->owner = (uint16_t)owner;
    region->first_step = (uint16_t)first_step;
    region->last_step = (uint16_t)last;
    return (uint16_t)session->region_count++;
}

static void touch(struct sfd_session *session, uint32_t region, uint32_t step)
{
    if (region != SFD_NONE && session->regions[region].last_step < step)
        session->regions[region].last_step = (uint16_t)step;
}

uint32_t sfd_keep_count(const struct sfd_slot *weight, uint64_t input_elements)
{
    uint64_t positions = (uint64_t)weight->rows * weight->columns;

    return (uint32_t)((weight->count * input_elements + positions - 1u) / positions);
}

uint64_t sfd_batch_elements(const struct sfd_session *session, uint32_t tensor)
{
    return (uint64_t)session->batch * session->values[tensor].size;
}

static int is_sparse_layer(const struct sfd_node *node)
{
    return node->operation.kind == SFD_OPERATION_CONVOLUTION ||
           node->operation.kind == SFD_OPERATION_LINEAR;
}

/* Whether the backward of this operation reads its dense input. */
static int keeps_input(const struct sfd_session *session, const struct sfd_node *node)
{
    if (!node->has_backward)
        return 0;
    switch (node->operation.kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR: {
        uint64_t elements = sfd_batch_elements(session, node->operation.input0);
        return sfd_keep_count(&session->slots[node->operation.weight], elements) == elements;
    }
    case SFD_OPERATION_BATCH_NORM:
    case SFD_OPERATION_GROUP_NORM:
    case SFD_OPERATION_LAYER_NORM:
    case SFD_OPERATION_GELU:
    case SFD_OPERATION_SILU:
        return 1;
    default:
        return 0;
    }
}

/* Whether operation `node` may overwrite the storage of its input tensor. */
static int may_overwrite(const struct sfd_session *session, uint32_t node, uint32_t tensor)
{
    uint32_t region = session->values[tensor].storage, i;

    if (region == SFD_NONE || session->values[session->output].storage == region)
        return 0;
    for (i = 0u; i < session->operation_count; ++i) {
        const struct sfd_node *other = &session->nodes[i];
        if (session->values[other->operation.input0].storage == region &&
            (i > node || keeps_input(session, other)))
            return 0;
        if (other->operation.input1 != SFD_NONE && i > node &&
            session->values[other->operation.input1].storage == region)
            return 0;
    }
    return 1;
}

static void plan_persistent(struct sfd_session *session, uint64_t tables_bytes)
{
    uint32_t i, end = sfd_last_step(session);

    region_add(session, SFD_BUFFER_TABLES, SFD_NONE, tables_bytes, 0u, end);
    for (i = 0u; i < session->parameter_count; ++i) {
        struct sfd_slot *slot = &session->slots[i];
        uint64_t bytes = (uint64_t)slot->count * 4u;
        if (slot->kind == SFD_PARAMETER_WEIGHT) {
            uint64_t columns = ((uint64_t)slot->count * slot->index_width + 3u) / 4u * 4u;
            slot->index = region_add(session, SFD_BUFFER_INDEX, i,
                                     ((uint64_t)slot->rows + 1u) * 4u + columns, 0u, end);
            slot->value = region_add(session, SFD_BUFFER_WEIGHT, i, bytes, 0u, end);
            slot->working = region_add(session, SFD_BUFFER_WORKING_WEIGHT, i, bytes, 0u, end);
        } else { /* a trainable tensor is followed by its gradient */
            slot->value =
                region_add(session, SFD_BUFFER_DENSE, i,
                           slot->kind == SFD_PARAMETER_DENSE ? 2u * bytes : bytes, 0u, end);
        }
    }
}

/* A sparse layer: its packed input, and scratch for its kernels in each of its two steps. */
static void plan_layer(struct sfd_session *session, uint32_t index)
{
    struct sfd_node *node = &session->nodes[index];
    const struct sfd_operation *operation = &node->operation;
    struct sfd_layer layer = sfd_layer_sizes(session, node);
    uint64_t elements = sfd_batch_elements(session, operation->input0);
    uint64_t forward = session->kernels->forward_scratch_bytes(&layer, session->batch);
    uint64_t backward = session->kernels->backward_scratch_bytes(&layer, session->batch);
    uint32_t keep = sfd_keep_count(&session->slots[operation->weight], elements);
    uint32_t end = backward_step(session, index);

    if (keep > 0u && keep < elements)
        node->saved = region_add(session, SFD_BUFFER_SAVED_INPUT, index,
                                 sfd_packed_bytes(keep, elements), index, end);
    if (forward > 0u)
        node->forward_scratch =
            region_add(session, SFD_BUFFER_SCRATCH, index, forward, index, index);
    if (backward > 0u)
        node->backward_scratch = region_add(session, SFD_BUFFER_SCRATCH, index, backward, end, end);
}

/* What an operation keeps between its forward and its backward, beside its input. */
static void plan_kept(struct sfd_session *session, uint32_t index)
{
    struct sfd_node *node = &session->nodes[index];
    const struct sfd_operation *operation = &node->operation;
    uint64_t in = sfd_batch_elements(session, operation->input0),
             out = sfd_batch_elements(session, operation->output);
    uint32_t end = node->has_backward ? backward_step(session, index) : index;

    switch (operation->kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR:
        plan_layer(session, index);
        break;
    case SFD_OPERATION_BATCH_NORM: /* the running statistics move with the parameter update */
        node->moments = region_add(session, SFD_BUFFER_STATISTICS, index,
                                   (uint64_t)session->values[operation->input0].channels * 8u,
                                   index, sfd_last_step(session));
        break;
    case SFD_OPERATION_GROUP_NORM:
        node->moments = region_add(session, SFD_BUFFER_STATISTICS, index,
                                   (uint64_t)session->batch * operation->groups * 8u, index, end);
        break;
    case SFD_OPERATION_LAYER_NORM:
        node->moments = region_add(session, SFD_BUFFER_STATISTICS, index,
                                   in / operation->normalized * 8u, index, end);
        break;
    case SFD_OPERATION_RELU:
    case SFD_OPERATION_RELU6:
        if (node->has_backward)
            node->mask =
                region_add(session, SFD_BUFFER_MASK, index, (out + 31u) / 32u * 4u, index, end);
        break;
    case SFD_OPERATION_MAX_POOL:
        if (node->has_backward)
            node->mask =
                region_add(session, SFD_BUFFER_MASK, index, (out + 1u) / 2u * 4u, index, end);
        break;
    default:
        break;
    }
}

static void plan_forward(struct sfd_session *session)
{
    uint32_t i;

    if (session->batch > 1u) /* the caller's images, interleaved; one image is read where it is */
        session->values[0].storage = region_add(session, SFD_BUFFER_ACTIVATION, SFD_NONE,
                                                sfd_batch_elements(session, 0u) * 4u, 0u, 0u);
    for (i = 0u; i < session->operation_count; ++i) {
        struct sfd_node *node = &session->nodes[i];
        const struct sfd_operation *operation = &node->operation;
        struct sfd_value *out = &session->values[operation->output];
        uint32_t kind = operation->kind;

        if (kind == SFD_OPERATION_RESHAPE)
            out->storage = session->values[operation->input0].storage;
        else if ((kind == SFD_OPERATION_RELU || kind == SFD_OPERATION_RELU6 ||
                  kind == SFD_OPERATION_ADD) &&
                 may_overwrite(session, i, operation->input0))
            out->storage = session->values[operation->input0].storage;
        else if (kind == SFD_OPERATION_ADD && may_overwrite(session, i, operation->input1))
            out->storage = session->values[operation->input1].storage;
        else
            out->storage = region_add(session, SFD_BUFFER_ACTIVATION, i,
                                      sfd_batch_elements(session, operation->output) * 4u, i, i);
        touch(session, out->storage, i);
        touch(session, session->values[operation->input0].storage, i);
        if (operation->input1 != SFD_NONE)
            touch(session, session->values[operation->input1].storage, i);
        if (keeps_input(session, node))
            touch(session, session->values[operation->input0].storage, backward_step(session, i));
        plan_kept(session, i);
    }
    touch(session, session->values[session->output].storage, session->operation_count);
}

static enum sfd_delivery plan_delivery(struct sfd_session *session, uint32_t index, uint32_t tensor,
                                       int in_place)
{
    struct sfd_value *value = &session->values[tensor];

    if (tensor == 0u || !session->nodes[tensor - 1u].has_backward)
        return SFD_DELIVER_NOTHING;
    if (value->gradient != SFD_NONE) {
        touch(session, value->gradient, backward_step(session, index));
        return SFD_DELIVER_ACCUMULATE;
    }
    if (in_place) {
        value->gradient = session->values[session->nodes[index].operation.output].gradient;
        return SFD_DELIVER_IN_PLACE;
    }
    value->gradient = region_add(session, SFD_BUFFER_GRADIENT, tensor - 1u,
                                 sfd_batch_elements(session, tensor) * 4u,
                                 backward_step(session, index), backward_step(session, index));
    return SFD_DELIVER_WRITE;
}

static void plan_backward(struct sfd_session *session)
{
    uint32_t i, loss = session->operation_count;

    if (session->output != 0u && session->nodes[session->output - 1u].has_backward)
        session->values[session->output].gradient =
            region_add(session, SFD_BUFFER_GRADIENT, session->output - 1u,
                       sfd_batch_elements(session, session->output) * 4u, loss, loss);
    for (i = session->operation_count; i-- > 0u;) {
        struct sfd_node *node = &session->nodes[i];
        const struct sfd_operation *operation = &node->operation;
        uint32_t kind = operation->kind;
        int in_place = !is_sparse_layer(node) && kind != SFD_OPERATION_MAX_POOL &&
                       kind != SFD_OPERATION_AVERAGE_POOL &&
                       kind != SFD_OPERATION_ADAPTIVE_AVERAGE_POOL;

        if (!node->has_backward)
            continue;
        touch(session, session->values[operation->output].gradient, backward_step(session, i));
        node->delivery0 = (uint8_t)plan_delivery(session, i, operation->input0, in_place);
        if (operation->input1 != SFD_NONE)
            node->delivery1 = (uint8_t)plan_delivery(session, i, operation->input1,
                                                     node->delivery0 != SFD_DELIVER_IN_PLACE);
    }
}

void sfd_lifetimes_plan(struct sfd_session *session, uint64_t tables_bytes)
{
    plan_persistent(session, tables_bytes);
    plan_forward(session);
    plan_backward(session);
}
