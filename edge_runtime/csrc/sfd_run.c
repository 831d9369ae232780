/* The forward of a batch, and steps of it that the backward repeats. */
#include "sfd_run.h"

void sfd_slot_support(const struct sfd_session *session, const struct sfd_slot *slot,
                      struct sfd_support *support)
{
    const uint32_t *index = sfd_region_data(session, slot->index);

    support->row_pointer = index;
    support->column = index + slot->rows + 1u;
    support->rows = slot->rows;
    support->columns = slot->columns;
    support->count = slot->count;
    support->index_width = slot->index_width;
}

const float *sfd_parameter_data(const struct sfd_session *session, uint32_t parameter)
{
    return parameter == SFD_NONE ? NULL : sfd_region_data(session, session->slots[parameter].value);
}

float *sfd_slot_gradient(const struct sfd_session *session, const struct sfd_slot *slot)
{
    if (slot->gradient == SFD_NONE)
        return NULL;
    return (float *)sfd_region_data(session, slot->gradient) + slot->gradient_start;
}

struct sfd_view sfd_block_view(const struct sfd_session *session, uint32_t tensor, float *data,
                               uint32_t n, uint32_t first)
{
    const struct sfd_value *value = &session->values[tensor];
    uint32_t images = sfd_block_images(n, first);
    struct sfd_view view;

    view.data = data + (size_t)first * value->size;
    view.channels = value->channels;
    view.height = value->height;
    view.width = value->width;
    view.row_stride = value->width * images;
    view.channel_stride = value->height * value->width * images;
    return view;
}

struct sfd_channels sfd_channels_of(const struct sfd_value *value)
{
    struct sfd_channels shape;

    shape.channels = value->channels;
    shape.pixels = value->height * value->width;
    return shape;
}

void *sfd_working_data(const struct sfd_session *session, uint32_t region)
{
    uint32_t *data;

    if (region == SFD_NONE)
        return NULL;
    data = sfd_region_data(session, region);
    data[session->regions[region].bytes / sizeof *data - 1u] = 0u;
    return data;
}

static void pack_input(struct sfd_session *session, const struct sfd_step *step, const float *x,
                       uint32_t n)
{
    const struct sfd_node *node = &session->nodes[step->node];
    const struct sfd_slot *slot = &session->slots[node->operation.weight];
    uint32_t size = session->values[node->operation.input0].size;
    uint32_t histogram[SFD_HISTOGRAM_BINS];

    if (node->saved == SFD_NONE)
        return;
    sfd_begin_part(session, SFD_PART_TOP_K);
    sfd_kernels_of(session)->tensors->pack(x, size, n, sfd_keep_count(slot, (uint64_t)size * n),
                                           histogram, sfd_region_data(session, node->saved),
                                           session->team);
    sfd_begin_part(session,
                   step->action == SFD_ACTION_FORWARD ? SFD_PART_FORWARD : SFD_PART_BACKWARD);
}

struct powerprop_work {
    sfd_powerprop pass;
    const float *v;
    float *working;
    uint32_t count;
    float beta;
};

static void powerprop_share(void *context, uint32_t index, uint32_t count)
{
    const struct powerprop_work *work = context;
    const uint32_t first = sfd_run_share(work->count, index, count);
    const uint32_t last = sfd_run_share(work->count, index + 1u, count);

    work->pass(work->v + first, work->working + first, last - first, work->beta);
}

void sfd_powerprop_slot(struct sfd_session *session, const struct sfd_slot *slot, float *working,
                        sfd_powerprop pass)
{
    struct powerprop_work work = {pass, sfd_region_data(session, slot->value), working, slot->count,
                                  session->beta};

    sfd_team_run(slot->count < SFD_SHARED_LEAST ? NULL : session->team, powerprop_share, &work);
}

/* The working copy of a weight may stay from the forward until the layer's backward. */
static void sparse_forward(struct sfd_session *session, const struct sfd_step *step, uint32_t n,
                           int training)
{
    const struct sfd_node *node = &session->nodes[step->node];
    const struct sfd_slot *slot = &session->slots[node->operation.weight];
    const float *bias = sfd_parameter_data(session, node->operation.bias);
    const float *x = sfd_tensor_data(session, step->input0);
    float *w = sfd_region_data(session, step->working);
    struct sfd_layer layer = sfd_layer_sizes(session, node);
    uint64_t done = 0u;

    sfd_slot_support(session, slot, &layer.support);
    if (step->action == SFD_ACTION_FORWARD || session->working != SFD_WORKING_KEPT)
        sfd_powerprop_slot(session, slot, w, sfd_kernels_of(session)->tensors->powerprop_forward);
    if (!SFD_HAS(BATCH_NORM) || !step->by_channel)
        done = sfd_kernels_of(session)->forward(&layer, w, bias, x,
                                                sfd_tensor_data(session, step->output), n,
                                                sfd_working_data(session, step->scratch));
    if (!training)
        session->counters.evaluation += done;
    else if (step->action == SFD_ACTION_FORWARD)
        session->counters.done.forward += done;
    else
        session->counters.done.recomputed += done;
    if (training && step->keeps)
        pack_input(session, step, x, n);
}

struct sfd_norm sfd_norm_shape(const struct sfd_operation *operation, const struct sfd_value *in)
{
    struct sfd_norm norm;

    if (!SFD_HAS(LAYER_NORM) || operation->kind == SFD_OPERATION_GROUP_NORM) {
        norm.sets = operation->groups;
        norm.elements = in->size / norm.sets;
        norm.span = in->height * in->width;
        norm.affine_step = in->channels / norm.sets;
    } else {
        norm.elements = operation->normalized;
        norm.sets = in->size / norm.elements;
        norm.span = 1u;
        norm.affine_step = 0u;
    }
    return norm;
}

static int is_rectifier(const struct sfd_operation *operation)
{
    return operation->kind == SFD_OPERATION_RELU || operation->kind == SFD_OPERATION_RELU6;
}

static float rectifier_ceiling(const struct sfd_operation *operation)
{
    return operation->kind == SFD_OPERATION_RELU6 ? 6.0f : SFD_INFINITY;
}

struct sfd_batch_norm sfd_batch_norm_of(const struct sfd_session *session,
                                        const struct sfd_node *node)
{
    const struct sfd_operation *operation = &node->operation;
    struct sfd_batch_norm norm;

    norm.shape = sfd_channels_of(&session->values[operation->input0]);
    norm.epsilon = operation->epsilon;
    norm.weight = sfd_parameter_data(session, operation->weight);
    norm.bias = sfd_parameter_data(session, operation->bias);
    norm.mean = norm.variance = NULL;
    norm.moments = sfd_region_data(session, node->moments);
    norm.team = session->team;
    return norm;
}

/* The norm, and the operations that are fused with it. */
static void batch_norm_forward(const struct sfd_session *session, const struct sfd_step *step,
                               uint32_t n, int training)
{
    const struct sfd_node *node = &session->nodes[step->node], *last = node + node->fused;
    const struct sfd_operation *operation = &node->operation;
    struct sfd_batch_norm norm = sfd_batch_norm_of(session, node);
    struct sfd_epilogue after = {NULL, 0.0f, NULL};

    if (!training && operation->mean != SFD_NONE) {
        norm.mean = sfd_parameter_data(session, operation->mean);
        norm.variance = sfd_parameter_data(session, operation->variance);
    } else if (step->action == SFD_ACTION_RESTORE) {
        norm.mean = norm.moments;
        norm.variance = norm.moments + norm.shape.channels;
    }
    if (sfd_second_input(session, step->node) != SFD_NONE)
        after.addend = sfd_tensor_data(session, step->input1);
    if (is_rectifier(&last->operation)) {
        after.ceiling = rectifier_ceiling(&last->operation);
        after.mask = training && step->keeps ? sfd_working_data(session, last->mask) : NULL;
    }
    sfd_kernels_of(session)->tensors->batch_norm_forward(
        &norm, sfd_tensor_data(session, step->input0), n, &after,
        sfd_tensor_data(session, step->output));
}

/* Group and layer norm. */
static void norm_forward(const struct sfd_session *session, const struct sfd_step *step, uint32_t n)
{
    const struct sfd_node *node = &session->nodes[step->node];
    const struct sfd_operation *operation = &node->operation;
    struct sfd_norm norm = sfd_norm_shape(operation, &session->values[operation->input0]);

    sfd_kernels_of(session)->tensors->norm_forward(
        &norm, sfd_tensor_data(session, step->input0), n, operation->epsilon,
        sfd_parameter_data(session, operation->weight),
        sfd_parameter_data(session, operation->bias), sfd_region_data(session, node->moments),
        sfd_tensor_data(session, step->output));
}

/* Winners lie as the output does, one for each of its elements. */
static void pool_forward(const struct sfd_session *session, const struct sfd_step *step, uint32_t n,
                         uint16_t *winner)
{
    const struct sfd_operation *operation = &session->nodes[step->node].operation;
    size_t size = session->values[operation->output].size;
    float *x = sfd_tensor_data(session, step->input0);
    float *y = sfd_tensor_data(session, step->output);
    uint32_t first;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        struct sfd_view in = sfd_block_view(session, operation->input0, x, n, first);
        struct sfd_view out = sfd_block_view(session, operation->output, y, n, first);
        uint32_t images = sfd_block_images(n, first);
        if (SFD_HAS(MAX_POOL) && operation->kind == SFD_OPERATION_MAX_POOL)
            sfd_max_pool_forward(operation, &in, &out, images,
                                 winner ? winner + first * size : NULL);
        else if (SFD_HAS_AVERAGE)
            sfd_average_pool_forward(operation, &in, &out, images);
    }
}

static void run_operation(struct sfd_session *session, const struct sfd_step *step, uint32_t n,
                          int training)
{
    const struct sfd_tensor_kernels *tensors = sfd_kernels_of(session)->tensors;
    const struct sfd_node *node = &session->nodes[step->node];
    const struct sfd_operation *operation = &node->operation;
    const float *x = sfd_tensor_data(session, step->input0);
    float *y = sfd_tensor_data(session, step->output);
    uint32_t count = n * session->values[operation->output].size;
    void *mask = training && step->keeps ? sfd_working_data(session, node->mask) : NULL;

    switch (operation->kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR:
        sparse_forward(session, step, n, training);
        break;
    case SFD_OPERATION_BATCH_NORM:
        if (SFD_HAS(BATCH_NORM))
            batch_norm_forward(session, step, n, training);
        break;
    case SFD_OPERATION_GROUP_NORM:
    case SFD_OPERATION_LAYER_NORM:
        if (SFD_HAS_NORM)
            norm_forward(session, step, n);
        break;
    case SFD_OPERATION_RELU:
    case SFD_OPERATION_RELU6:
        tensors->rectifier_forward(x, count, rectifier_ceiling(operation), mask, y);
        break;
    case SFD_OPERATION_GELU:
    case SFD_OPERATION_SILU:
        tensors->smooth_forward(operation, x, count, y);
        break;
    case SFD_OPERATION_MAX_POOL:
    case SFD_OPERATION_AVERAGE_POOL:
    case SFD_OPERATION_ADAPTIVE_AVERAGE_POOL:
        if (SFD_HAS_AVERAGE || SFD_HAS(MAX_POOL))
            pool_forward(session, step, n, mask);
        break;
    case SFD_OPERATION_ADD:
        tensors->add_forward(x, sfd_tensor_data(session, step->input1), count, y);
        break;
    default: /* a reshape is the same memory */
        break;
    }
}

/* An element of the caller's batch. */
static inline float input_element(const struct sfd_session *session, size_t at)
{
    const struct sfd_input *form = &session->input_form;

    if (SFD_HAS_INPUT(INT8) && form->type == SFD_INPUT_INT8)
        return (float)(((const int8_t *)session->input)[at] - form->zero_point) * form->scale;
    return ((const float *)session->input)[at];
}

void sfd_load_images(const struct sfd_session *session, const struct sfd_step *step, uint32_t n)
{
    const uint32_t size = session->values[0].size;
    uint32_t first, element, image;
    float *y;

    if (!step->loads)
        return;
    y = sfd_region_data(session, session->nodes[step->node].operation.input0 == 0u ? step->input0
                                                                                   : step->input1);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        const uint32_t images = sfd_block_images(n, first);
        const size_t start = (size_t)first * size;
        for (element = 0u; element < size; ++element)
            for (image = 0u; image < images; ++image)
                *y++ = input_element(session, start + (size_t)image * size + element);
    }
}

void sfd_run_step(struct sfd_session *session, const struct sfd_step *step, uint32_t n,
                  int training)
{
    sfd_load_images(session, step, n);
    if (step->action == SFD_ACTION_PACK)
        pack_input(session, step, sfd_tensor_data(session, step->input0), n);
    else
        run_operation(session, step, n, training);
}

void sfd_forward(struct sfd_session *session, const void *x, uint32_t n, int training)
{
    uint32_t i;

    session->input = x;
    for (i = 0u; i < session->forward_steps; ++i)
        sfd_run_step(session, &session->steps[i], n, training);
}
