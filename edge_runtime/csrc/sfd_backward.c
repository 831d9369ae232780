/* The backward of a batch: what was not kept is computed again on the way. */
#include "sfd_run.h"

static float *gradient_data(const struct sfd_session *session, uint32_t tensor)
{
    return sfd_region_data(session, session->values[tensor].gradient);
}

static float *parameter_gradient(const struct sfd_session *session, uint32_t parameter)
{
    return parameter == SFD_NONE ? NULL : sfd_slot_gradient(session, &session->slots[parameter]);
}

/* A layer without entries packs nothing, and reads nothing of x. */
static struct sfd_saved_input saved_input(const struct sfd_session *session,
                                          const struct sfd_node *node, const float *x, uint32_t n)
{
    const struct sfd_slot *slot = &session->slots[node->operation.weight];
    uint64_t elements = (uint64_t)session->values[node->operation.input0].size * n;
    struct sfd_saved_input saved = {x, NULL, NULL, (uint32_t)elements};

    if (node->saved != SFD_NONE) {
        saved.dense = NULL;
        saved.kept = sfd_keep_count(slot, elements);
        saved.values = sfd_region_data(session, node->saved);
        saved.mask = (const uint32_t *)sfd_region_data(session, node->saved) + saved.kept;
    }
    return saved;
}

/* dX needs w; afterwards the same memory takes the gradient. */
static void sparse_backward(struct sfd_session *session, const struct sfd_step *step,
                            const float *dy, float *dx, uint32_t n)
{
    const struct sfd_node *node = &session->nodes[step->node];
    const struct sfd_operation *operation = &node->operation;
    const struct sfd_kernels *kernels = sfd_kernels_of(session);
    const struct sfd_slot *slot = &session->slots[operation->weight];
    const struct sfd_channels out = sfd_channels_of(&session->values[operation->output]);
    struct sfd_saved_input saved =
        saved_input(session, node, sfd_tensor_data(session, step->input0), n);
    struct sfd_layer layer = sfd_layer_sizes(session, node);
    float *working = sfd_region_data(session, step->working);

    sfd_slot_support(session, slot, &layer.support);
    if (operation->bias != SFD_NONE)
        kernels->tensors->bias_backward(&out, dy, n, parameter_gradient(session, operation->bias));
    if (session->working != SFD_WORKING_KEPT && dx != NULL)
        sfd_powerprop_slot(session, slot, working, kernels->tensors->powerprop_forward);
    kernels->backward(&layer, working, &saved, dy, dx, node->delivery0 == SFD_DELIVER_ACCUMULATE,
                      working, n, sfd_working_data(session, step->scratch),
                      &session->counters.done);
    sfd_powerprop_slot(session, slot, working, kernels->tensors->powerprop_backward);
}

/* A layer whose output is computed again one channel at a time. */
struct channel_source {
    struct sfd_session *session;
    const struct sfd_step *step;
    uint32_t n;
};

static void restore_channel(void *context, uint32_t channel)
{
    const struct channel_source *source = context;
    struct sfd_session *session = source->session;
    const struct sfd_step *step = source->step;
    const struct sfd_node *node = &session->nodes[step->node];
    const float *bias = sfd_parameter_data(session, node->operation.bias);
    struct sfd_layer layer = sfd_layer_sizes(session, node);

    sfd_slot_support(session, &session->slots[node->operation.weight], &layer.support);
    layer.support.row_pointer += channel;
    layer.support.rows = 1u;
    layer.support.count = layer.support.row_pointer[1] - layer.support.row_pointer[0];
    session->counters.done.recomputed += sfd_kernels_of(session)->forward(
        &layer, sfd_region_data(session, step->working), bias == NULL ? NULL : bias + channel,
        sfd_tensor_data(session, step->input0), sfd_tensor_data(session, step->output), source->n,
        sfd_working_data(session, step->scratch));
}

/* The operations that are fused with the norm, and the norm. */
static void batch_norm_backward(struct sfd_session *session, const struct sfd_step *step, float *dy,
                                float *dx, uint32_t n)
{
    const struct sfd_node *node = &session->nodes[step->node];
    const struct sfd_operation *operation = &node->operation;
    struct sfd_batch_norm norm = sfd_batch_norm_of(session, node);
    struct channel_source source = {session, step - 1, n};
    struct sfd_norm_gradient gradient = {
        .dy = dy, .dx = dx, .accumulate = node->delivery0 == SFD_DELIVER_ACCUMULATE};

    gradient.d_weight = parameter_gradient(session, operation->weight);
    gradient.d_bias = parameter_gradient(session, operation->bias);
    if (node->fused > 0u && node[node->fused].operation.kind != SFD_OPERATION_ADD)
        gradient.mask = sfd_region_data(session, node[node->fused].mask);
    if (node->delivery1 != SFD_DELIVER_NOTHING)
        gradient.addend = gradient_data(session, sfd_second_input(session, step->node));
    if (source.step->by_channel) {
        gradient.restore = restore_channel;
        gradient.context = &source;
    }
    sfd_kernels_of(session)->tensors->batch_norm_backward(
        &norm, sfd_tensor_data(session, step->input0), n, &gradient);
}

/* Group and layer norm. */
static void norm_backward(const struct sfd_session *session, const struct sfd_step *step,
                          const float *dy, float *dx, uint32_t n)
{
    const struct sfd_node *node = &session->nodes[step->node];
    const struct sfd_operation *operation = &node->operation;
    struct sfd_norm norm = sfd_norm_shape(operation, &session->values[operation->input0]);

    sfd_kernels_of(session)->tensors->norm_backward(
        &norm, sfd_tensor_data(session, step->input0), n, sfd_region_data(session, node->moments),
        sfd_parameter_data(session, operation->weight), dy, dx,
        node->delivery0 == SFD_DELIVER_ACCUMULATE, parameter_gradient(session, operation->weight),
        parameter_gradient(session, operation->bias));
}

/* The pools add to the gradient of their input. */
static void pool_backward(const struct sfd_session *session, const struct sfd_node *node, float *dy,
                          float *dx, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    size_t size = session->values[operation->output].size;
    uint32_t first;

    if (node->delivery0 == SFD_DELIVER_WRITE)
        memset(dx, 0, (size_t)n * session->values[operation->input0].size * sizeof *dx);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        struct sfd_view out = sfd_block_view(session, operation->output, dy, n, first);
        struct sfd_view in = sfd_block_view(session, operation->input0, dx, n, first);
        uint32_t images = sfd_block_images(n, first);
        if (SFD_HAS(MAX_POOL) && operation->kind == SFD_OPERATION_MAX_POOL)
            sfd_max_pool_backward(operation, &out, &in, images,
                                  (const uint16_t *)sfd_region_data(session, node->mask) +
                                      first * size);
        else if (SFD_HAS_AVERAGE)
            sfd_average_pool_backward(operation, &out, &in, images);
    }
}

/* Deliver a gradient that is dy itself: reshape and addition. */
static void pass_gradient(const struct sfd_session *session, uint32_t tensor,
                          enum sfd_delivery delivery, const float *dy, uint32_t count)
{
    if (delivery == SFD_DELIVER_WRITE)
        memcpy(gradient_data(session, tensor), dy, (size_t)count * sizeof *dy);
    else if (delivery == SFD_DELIVER_ACCUMULATE)
        sfd_kernels_of(session)->tensors->add_into(dy, count, gradient_data(session, tensor));
}

/* The kernel works in place, or adds. */
static void rectifier_backward(const struct sfd_session *session, const struct sfd_node *node,
                               const float *dy, float *dx, uint32_t count)
{
    const uint32_t *mask = sfd_region_data(session, node->mask);
    const int accumulate = node->delivery0 == SFD_DELIVER_ACCUMULATE;

    if (node->delivery0 == SFD_DELIVER_WRITE)
        memcpy(dx, dy, (size_t)count * sizeof *dy);
    sfd_kernels_of(session)->tensors->rectifier_backward(mask, accumulate ? dy : dx, count, dx,
                                                         accumulate);
}

static void step_backward(struct sfd_session *session, const struct sfd_step *step, uint32_t n)
{
    const struct sfd_node *node = &session->nodes[step->node];
    const struct sfd_operation *operation = &node->operation;
    float *dy = gradient_data(session, sfd_result(session, step->node));
    float *dx =
        node->delivery0 == SFD_DELIVER_NOTHING ? NULL : gradient_data(session, operation->input0);
    uint32_t count = n * session->values[operation->input0].size;

    switch (operation->kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR:
        sparse_backward(session, step, dy, dx, n);
        break;
    case SFD_OPERATION_BATCH_NORM:
        if (SFD_HAS(BATCH_NORM))
            batch_norm_backward(session, step, dy, dx, n);
        break;
    case SFD_OPERATION_GROUP_NORM:
    case SFD_OPERATION_LAYER_NORM:
        if (SFD_HAS_NORM)
            norm_backward(session, step, dy, dx, n);
        break;
    case SFD_OPERATION_RELU:
    case SFD_OPERATION_RELU6:
        if (SFD_HAS_RECTIFIER)
            rectifier_backward(session, node, dy, dx, count);
        break;
    case SFD_OPERATION_GELU:
    case SFD_OPERATION_SILU:
        if (SFD_HAS_SMOOTH)
            sfd_kernels_of(session)->tensors->smooth_backward(
                operation, sfd_tensor_data(session, step->input0), dy, count, dx,
                node->delivery0 == SFD_DELIVER_ACCUMULATE);
        break;
    case SFD_OPERATION_MAX_POOL:
    case SFD_OPERATION_AVERAGE_POOL:
    case SFD_OPERATION_ADAPTIVE_AVERAGE_POOL:
        if (SFD_HAS_AVERAGE || SFD_HAS(MAX_POOL))
            pool_backward(session, node, dy, dx, n);
        break;
    case SFD_OPERATION_ADD:
        pass_gradient(session, operation->input0, node->delivery0, dy, count);
        if (SFD_HAS(ADD))
            pass_gradient(session, operation->input1, node->delivery1, dy, count);
        break;
    default: /* reshape */
        pass_gradient(session, operation->input0, node->delivery0, dy, count);
        break;
    }
}

int sfd_backward(struct sfd_session *session, uint32_t n, const struct sfd_rates *rates)
{
    int error = SFD_OK;
    uint32_t i;

    for (i = session->forward_steps + 1u; error == SFD_OK && i + 1u < session->step_count; ++i) {
        const struct sfd_step *step = &session->steps[i];
        if (step->action != SFD_ACTION_BACKWARD) {
            sfd_run_step(session, step, n, 1);
            continue;
        }
        sfd_read_input(session, step, n);
        step_backward(session, step, n);
        if (rates == NULL)
            continue;
        sfd_begin_part(session, SFD_PART_UPDATE);
        error = sfd_learn_operation(session, &session->nodes[step->node].operation, rates);
        sfd_begin_part(session, SFD_PART_BACKWARD);
    }
    session->has_failed = error != SFD_OK; /* layers before this one have changed */
    return error;
}
