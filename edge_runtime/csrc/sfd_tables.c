/* The tables of a session: nodes, values, slots, regions, filled from an artifact and the sizes of
 * a state. */
#include <string.h>

#include "sfd_session.h"

/* The same on all machines, however long a pointer is: a plan made here is that of a board. */
#define SESSION_BYTES 320u
typedef char session_fits[sizeof(struct sfd_session) <= SESSION_BYTES ? 1 : -1];

/* An artifact has at most SFD_MAX_RECORDS of each: 32 bits hold all sizes here. */
static uint32_t align(size_t bytes)
{
    return (uint32_t)((bytes + SFD_ALIGNMENT - 1u) / SFD_ALIGNMENT * SFD_ALIGNMENT);
}

/* At most one step for the forward of an operation, one for its backward, one more to compute or
 * pack something again, the loss and the update. */
static uint32_t step_limit(const struct sfd_artifact_view *artifact)
{
    return 3u * artifact->operation_count + 2u;
}

/* At most: one region for the tables, one for the input; four a sparse parameter, and scratch for
 * its layer in two steps, or two a dense parameter; for an operation its result, its gradient, and a
 * saved input or a mask or moments; three for a step that computes something again, and one for images
 * that it loads again. */
static uint32_t region_limit(const struct sfd_artifact_view *artifact)
{
    return 2u + 6u * artifact->parameter_count + 7u * artifact->operation_count;
}

/* The tables follow the session. */
uint32_t sfd_tables_open_bytes(const struct sfd_session *session)
{
    return SESSION_BYTES + align(session->operation_count * sizeof *session->nodes) +
           align(session->tensor_count * sizeof *session->values) +
           align(session->parameter_count * sizeof *session->slots) +
           align(session->step_count * sizeof *session->steps) +
           align(session->region_count * sizeof *session->regions);
}

uint32_t sfd_tables_bytes(const struct sfd_artifact_view *artifact)
{
    const size_t each_operation = sizeof(struct sfd_node) + sizeof(struct sfd_node_plan);
    const size_t each_region = sizeof(struct sfd_region) + sizeof(struct sfd_lifetime);

    /* each of the seven may begin at the next multiple of the alignment */
    return align(SESSION_BYTES + artifact->operation_count * each_operation +
                 artifact->tensor_count * sizeof(struct sfd_value) +
                 artifact->parameter_count * sizeof(struct sfd_slot) +
                 step_limit(artifact) * sizeof(struct sfd_step) +
                 region_limit(artifact) * each_region + 7u * SFD_ALIGNMENT);
}

static void *take(uint8_t **cursor, size_t bytes)
{
    void *block = *cursor;

    *cursor += align(bytes);
    return block;
}

/* Returns the end of the tables of an open session, with so many steps and regions. */
static uint8_t *lay_out(struct sfd_session *session, uint32_t steps, uint32_t regions)
{
    uint8_t *cursor = (uint8_t *)session + SESSION_BYTES;

    session->nodes = take(&cursor, (size_t)session->operation_count * sizeof *session->nodes);
    session->values = take(&cursor, (size_t)session->tensor_count * sizeof *session->values);
    session->slots = take(&cursor, (size_t)session->parameter_count * sizeof *session->slots);
    session->steps = take(&cursor, (size_t)steps * sizeof *session->steps);
    session->regions = take(&cursor, (size_t)regions * sizeof *session->regions);
    session->arena = (uint8_t *)session;
    return cursor;
}

static void lay_out_plans(struct sfd_session *session, uint32_t regions, uint8_t *cursor)
{
    session->plans = take(&cursor, (size_t)session->operation_count * sizeof *session->plans);
    session->lifetimes = take(&cursor, (size_t)regions * sizeof *session->lifetimes);
}

/* An operation has the numbers of a convolution in the same order. */
#define SHAPE_AT offsetof(struct sfd_operation, groups)
typedef char shape_fits[SHAPE_AT + sizeof(struct sfd_convolution) ==
                                offsetof(struct sfd_operation, normalized)
                            ? 1
                            : -1];

struct sfd_layer sfd_layer_sizes(const struct sfd_session *session, const struct sfd_node *node)
{
    const struct sfd_operation *operation = &node->operation;
    const struct sfd_value *in = &session->values[operation->input0];
    const struct sfd_value *out = &session->values[operation->output];
    const struct sfd_slot *slot = &session->slots[operation->weight];
    struct sfd_layer layer = {
        .shape = {1u, 1u, 1u, 1u, 1u, 0u, 0u, 1u, 1u},
        .support = {NULL, NULL, slot->rows, slot->columns, slot->count, slot->index_width},
        .in_channels = in->size,
        .in_height = 1u,
        .in_width = 1u,
        .out_height = 1u,
        .out_width = 1u,
        .multiply_adds = node->multiply_adds,
        .threads = session->threads,
        .team = session->team,
    };

    if (operation->kind == SFD_OPERATION_LINEAR)
        return layer;
    memcpy(&layer.shape, (const uint8_t *)operation + SHAPE_AT, sizeof layer.shape);
    layer.in_channels = in->channels;
    layer.in_height = in->height;
    layer.in_width = in->width;
    layer.out_height = out->height;
    layer.out_width = out->width;
    return layer;
}

/* Multiply-adds of one example: each nonzero once for each output pixel that reads inside the
 * image. */
static uint64_t layer_multiply_adds(const struct sfd_layer *layer,
                                    const struct sfd_container_view *state,
                                    const struct sfd_entry *entry)
{
    const struct sfd_convolution *shape = &layer->shape;
    const uint8_t *column = state->bytes + entry->column_offset;
    uint32_t k, area = shape->kernel_h * shape->kernel_w;
    uint64_t total = 0u;

    if (area == 1u && shape->padding_h == 0u && shape->padding_w == 0u)
        return (uint64_t)entry->count * layer->out_height * layer->out_width;
    for (k = 0u; k < entry->count; ++k, column += entry->index_width) {
        uint32_t place =
            (entry->index_width == 2u ? sfd_load_u16(column) : sfd_load_u32(column)) % area;
        uint32_t y_low, y_high, x_low, x_high;
        sfd_valid_range(layer->in_height, layer->out_height, shape->stride_h, shape->padding_h,
                        place / shape->kernel_w * shape->dilation_h, &y_low, &y_high);
        sfd_valid_range(layer->in_width, layer->out_width, shape->stride_w, shape->padding_w,
                        place % shape->kernel_w * shape->dilation_w, &x_low, &x_high);
        total += (uint64_t)(y_high - y_low) * (x_high - x_low);
    }
    return total;
}

static void fill_slots(struct sfd_session *session, const struct sfd_artifact_view *artifact,
                       const struct sfd_container_view *state)
{
    struct sfd_entry entry;
    uint32_t i;

    sfd_container_entry_first(state, &entry);
    for (i = 0u; i < artifact->parameter_count; ++i) {
        struct sfd_slot *slot = &session->slots[i];
        slot->kind = (uint8_t)entry.kind;
        slot->rows = entry.rows;
        slot->columns = entry.columns;
        slot->count = entry.count;
        slot->index_width = (uint8_t)entry.index_width;
        slot->value = slot->index = SFD_NONE;
        if (i + 1u < artifact->parameter_count)
            sfd_container_entry_next(state, i + 1u, &entry);
    }
}

/* Gradients flow to what a trainable parameter has touched. */
static int parameter_is_trainable(const struct sfd_operation *operation)
{
    return operation->weight != SFD_NONE || operation->bias != SFD_NONE;
}

static void fill_nodes(struct sfd_session *session, const struct sfd_artifact_view *artifact)
{
    uint32_t i;

    for (i = 0u; i < artifact->tensor_count; ++i) {
        struct sfd_tensor tensor;
        struct sfd_value *value = &session->values[i];
        sfd_artifact_tensor(artifact, i, &tensor);
        value->channels = tensor.channels;
        value->height = tensor.height;
        value->width = tensor.width;
        value->size = tensor.size;
        value->storage = value->gradient = SFD_NONE;
    }
    for (i = 0u; i < artifact->operation_count; ++i) {
        struct sfd_node *node = &session->nodes[i];
        sfd_artifact_operation(artifact, i, &node->operation);
        node->saved = node->mask = node->moments = SFD_NONE;
        node->has_backward = (uint8_t)parameter_is_trainable(&node->operation);
        if (node->operation.input0 != 0u &&
            session->nodes[node->operation.input0 - 1u].has_backward)
            node->has_backward = 1u;
        if (SFD_HAS(ADD) && node->operation.input1 != SFD_NONE && node->operation.input1 != 0u &&
            session->nodes[node->operation.input1 - 1u].has_backward)
            node->has_backward = 1u;
    }
}

uint32_t sfd_keep_count(const struct sfd_slot *weight, uint64_t input_elements)
{
    uint64_t positions = (uint64_t)weight->rows * weight->columns;

    return (uint32_t)((weight->count * input_elements + positions - 1u) / positions);
}

static void measure_layer(const struct sfd_session *session, uint32_t index)
{
    const struct sfd_node *node = &session->nodes[index];
    struct sfd_node_plan *plan = &session->plans[index];
    struct sfd_layer layer = sfd_layer_sizes(session, node);
    uint32_t elements = sfd_batch_elements(session, node->operation.input0);
    uint32_t keep = sfd_keep_count(&session->slots[node->operation.weight], elements);

    plan->forward_scratch_bytes =
        sfd_kernels_of(session)->forward_scratch_bytes(&layer, session->batch);
    plan->backward_scratch_bytes =
        sfd_kernels_of(session)->backward_scratch_bytes(&layer, session->batch);
    plan->reads_input = keep == elements; /* packing all of it would only add bits */
    if (keep > 0u && keep < elements)
        plan->packed_bytes = sfd_packed_bytes(keep, elements);
}

void sfd_tables_measure(struct sfd_session *session)
{
    uint32_t i;

    for (i = 0u; i < session->operation_count; ++i) {
        const struct sfd_node *node = &session->nodes[i];
        switch (node->operation.kind) {
        case SFD_OPERATION_CONVOLUTION:
        case SFD_OPERATION_LINEAR:
            measure_layer(session, i);
            break;
        case SFD_OPERATION_BATCH_NORM:
        case SFD_OPERATION_GROUP_NORM:
        case SFD_OPERATION_LAYER_NORM:
        case SFD_OPERATION_GELU:
        case SFD_OPERATION_SILU:
            session->plans[i].reads_input = node->has_backward;
            break;
        default:
            break;
        }
    }
}

/* The work of one layer in a step with a full batch. Where its weight gradient skips zeros, only the
 * share of the kept inputs: work * kept / elements, without an overflow on the way. */
static void plan_work(struct sfd_session *session, const struct sfd_operation *operation,
                      const struct sfd_layer *layer, uint64_t work)
{
    uint64_t elements = (uint64_t)session->batch * session->values[operation->input0].size;
    uint64_t kept = elements, quotient;

    if (sfd_kernels_of(session)->skips_zeros(layer))
        kept = sfd_keep_count(&session->slots[operation->weight], elements);
    quotient = work / elements;
    session->planned.forward += work;
    session->planned.d_weight += quotient * kept + (work - quotient * elements) * kept / elements;
    if (operation->input0 != 0u && session->nodes[operation->input0 - 1u].has_backward)
        session->planned.d_input += work;
}

static void count_work(struct sfd_session *session, const struct sfd_container_view *state)
{
    struct sfd_entry entry;
    uint32_t i, j;

    sfd_container_entry_first(state, &entry);
    for (i = 0u; i < session->parameter_count; ++i) {
        if (entry.kind == SFD_PARAMETER_WEIGHT)
            for (j = 0u; j < session->operation_count; ++j) {
                struct sfd_node *node = &session->nodes[j];
                struct sfd_layer layer;
                if (node->operation.weight != i)
                    continue;
                layer = sfd_layer_sizes(session, node);
                node->multiply_adds = layer_multiply_adds(&layer, state, &entry);
                plan_work(session, &node->operation, &layer, node->multiply_adds * session->batch);
            }
        if (i + 1u < session->parameter_count)
            sfd_container_entry_next(state, i + 1u, &entry);
    }
}

struct sfd_session *sfd_tables_build(const struct sfd_artifact_view *artifact,
                                     const struct sfd_container_view *state, uint32_t batch,
                                     const struct sfd_kernels *kernels, void *memory)
{
    struct sfd_session *session = memory;

    memset(memory, 0, (size_t)sfd_tables_bytes(artifact));
    session->operation_count = artifact->operation_count;
    session->tensor_count = artifact->tensor_count;
    session->parameter_count = artifact->parameter_count;
    session->step_capacity = step_limit(artifact);
    lay_out_plans(session, region_limit(artifact),
                  lay_out(session, session->step_capacity, region_limit(artifact)));
    session->loss = artifact->loss;
    session->output = artifact->output;
    session->beta = artifact->beta;
    session->batch = batch;
    if (SFD_HAS_INPUT(INT8))
        sfd_artifact_input(artifact, &session->input_form);
    session->round = state->round;
    session->positions = state->positions;
    memcpy(session->support_id, state->support_id, sizeof session->support_id);
    session->kernels = kernels;
    fill_slots(session, artifact, state);
    fill_nodes(session, artifact);
    count_work(session, state);
    return session;
}

int sfd_tables_match(const struct sfd_session *session, const struct sfd_container_view *state)
{
    struct sfd_entry entry;
    uint32_t i;

    if (state->content != SFD_CONTENT_STATE || state->tensors != session->parameter_count ||
        !sfd_same_support(state->support_id, session->support_id))
        return 0;
    sfd_container_entry_first(state, &entry);
    for (i = 0u; i < session->parameter_count; ++i) {
        const struct sfd_slot *slot = &session->slots[i];
        if (entry.kind != slot->kind || entry.rows != slot->rows ||
            entry.columns != slot->columns || entry.count != slot->count)
            return 0;
        if (i + 1u < session->parameter_count)
            sfd_container_entry_next(state, i + 1u, &entry);
    }
    return 1;
}

/* A table moves towards the beginning, if at all: bytes in their order are safe. */
static void move_down(void *to, const void *from, size_t bytes)
{
    uint8_t *out = to;
    const uint8_t *in = from;
    size_t i;

    for (i = 0u; i < bytes; ++i)
        out[i] = in[i];
}

/* The room for more steps and regions, and what only planning needs, stay behind. */
struct sfd_session *sfd_tables_move(const struct sfd_session *planned, void *arena)
{
    const struct sfd_session from = *planned;
    struct sfd_session *session = arena;

    move_down(session, planned, sizeof *session);
    (void)lay_out(session, from.step_count, from.region_count);
    move_down(session->nodes, from.nodes, from.operation_count * sizeof *from.nodes);
    move_down(session->values, from.values, from.tensor_count * sizeof *from.values);
    move_down(session->slots, from.slots, from.parameter_count * sizeof *from.slots);
    move_down(session->steps, from.steps, from.step_count * sizeof *from.steps);
    move_down(session->regions, from.regions, from.region_count * sizeof *from.regions);
    session->plans = NULL;
    session->lifetimes = NULL;
    return session;
}
