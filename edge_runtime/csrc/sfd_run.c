/* One forward and one backward over the nodes. */
#include "sfd_internal.h"

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

float *sfd_tensor_data(const struct sfd_session *session, uint32_t tensor)
{
    uint32_t storage = session->values[tensor].storage;

    return storage == SFD_NONE ? (float *)(uintptr_t)session->input
                               : sfd_region_data(session, storage);
}

static float *gradient_data(const struct sfd_session *session, uint32_t tensor)
{
    return sfd_region_data(session, session->values[tensor].gradient);
}

static const float *parameter_data(const struct sfd_session *session, uint32_t parameter)
{
    return parameter == SFD_NONE ? NULL : sfd_region_data(session, session->slots[parameter].value);
}

float *sfd_slot_gradient(const struct sfd_session *session, const struct sfd_slot *slot)
{
    if (slot->kind == SFD_PARAMETER_WEIGHT)
        return sfd_region_data(session, slot->working);
    if (slot->kind == SFD_PARAMETER_DENSE) /* it follows the value */
        return (float *)sfd_region_data(session, slot->value) + slot->count;
    return NULL;
}

static float *dense_gradient(const struct sfd_session *session, uint32_t parameter)
{
    return parameter == SFD_NONE ? NULL : sfd_slot_gradient(session, &session->slots[parameter]);
}

static struct sfd_view tensor_view(const struct sfd_session *session, uint32_t tensor, float *data,
                                   uint32_t n)
{
    const struct sfd_value *value = &session->values[tensor];
    struct sfd_view view;

    view.data = data;
    view.channels = value->channels;
    view.height = value->height;
    view.width = value->width;
    view.row_stride = value->width * n;
    view.channel_stride = value->height * value->width * n;
    return view;
}

static struct sfd_convolution convolution_shape(const struct sfd_operation *operation)
{
    struct sfd_convolution shape;

    shape.groups = operation->groups;
    shape.kernel_h = operation->kernel_h;
    shape.kernel_w = operation->kernel_w;
    shape.stride_h = operation->stride_h;
    shape.stride_w = operation->stride_w;
    shape.padding_h = operation->padding_h;
    shape.padding_w = operation->padding_w;
    shape.dilation_h = operation->dilation_h;
    shape.dilation_w = operation->dilation_w;
    return shape;
}

static void sparse_forward(struct sfd_session *session, const struct sfd_node *node,
                           const struct sfd_view *x, const struct sfd_view *y, uint32_t n,
                           int training)
{
    const struct sfd_operation *operation = &node->operation;
    const struct sfd_slot *slot = &session->slots[operation->weight];
    const float *bias = parameter_data(session, operation->bias);
    float *w = sfd_region_data(session, slot->working);
    uint64_t *done = training ? &session->counters.done.forward : &session->counters.evaluation;
    struct sfd_support support;

    sfd_slot_support(session, slot, &support);
    sfd_powerprop_forward(sfd_region_data(session, slot->value), w, slot->count, session->beta);
    if (operation->kind == SFD_OPERATION_LINEAR) {
        *done += session->kernels->linear_forward(&support, w, bias, x->data, y->data, n);
    } else {
        struct sfd_convolution shape = convolution_shape(operation);
        *done += session->kernels->convolution_forward(&shape, &support, w, bias, x, y, n);
    }
    if (training && node->saved != SFD_NONE) {
        uint32_t size = session->values[operation->input0].size;
        sfd_pack(x->data, size, n, sfd_keep_count(slot, (uint64_t)size * n), session->histogram,
                 sfd_region_data(session, node->saved));
    }
}

static struct sfd_norm norm_shape(const struct sfd_operation *operation, const struct sfd_value *in)
{
    struct sfd_norm norm;

    if (operation->kind == SFD_OPERATION_GROUP_NORM) {
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

static void norm_forward(struct sfd_session *session, const struct sfd_node *node,
                         const struct sfd_view *x, float *y, uint32_t n, int training)
{
    const struct sfd_operation *operation = &node->operation;
    const float *weight = parameter_data(session, operation->weight);
    const float *bias = parameter_data(session, operation->bias);
    float *moments = sfd_region_data(session, node->moments);

    if (operation->kind != SFD_OPERATION_BATCH_NORM) {
        struct sfd_norm norm = norm_shape(operation, &session->values[operation->input0]);
        sfd_norm_forward(&norm, x->data, n, operation->epsilon, weight, bias, moments, y);
    } else if (training || operation->mean == SFD_NONE) {
        sfd_batch_norm_moments(x, n, moments);
        sfd_batch_norm_forward(x, n, moments, moments + x->channels, operation->epsilon, weight,
                               bias, y);
    } else {
        sfd_batch_norm_forward(x, n, parameter_data(session, operation->mean),
                               parameter_data(session, operation->variance), operation->epsilon,
                               weight, bias, y);
    }
}

static void node_forward(struct sfd_session *session, const struct sfd_node *node, uint32_t n,
                         int training)
{
    const struct sfd_operation *operation = &node->operation;
    struct sfd_view x =
        tensor_view(session, operation->input0, sfd_tensor_data(session, operation->input0), n);
    struct sfd_view y =
        tensor_view(session, operation->output, sfd_tensor_data(session, operation->output), n);
    uint32_t count = n * session->values[operation->output].size;
    void *mask = training && node->mask != SFD_NONE ? sfd_region_data(session, node->mask) : NULL;

    switch (operation->kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR:
        sparse_forward(session, node, &x, &y, n, training);
        break;
    case SFD_OPERATION_BATCH_NORM:
    case SFD_OPERATION_GROUP_NORM:
    case SFD_OPERATION_LAYER_NORM:
        norm_forward(session, node, &x, y.data, n, training);
        break;
    case SFD_OPERATION_RELU:
        sfd_rectifier_forward(x.data, count, SFD_INFINITY, mask, y.data);
        break;
    case SFD_OPERATION_RELU6:
        sfd_rectifier_forward(x.data, count, 6.0f, mask, y.data);
        break;
    case SFD_OPERATION_GELU:
    case SFD_OPERATION_SILU:
        sfd_smooth_forward(operation, x.data, count, y.data);
        break;
    case SFD_OPERATION_MAX_POOL:
        sfd_max_pool_forward(operation, &x, &y, n, mask);
        break;
    case SFD_OPERATION_AVERAGE_POOL:
    case SFD_OPERATION_ADAPTIVE_AVERAGE_POOL:
        sfd_average_pool_forward(operation, &x, &y, n);
        break;
    case SFD_OPERATION_ADD:
        sfd_add_forward(x.data, sfd_tensor_data(session, operation->input1), count, y.data);
        break;
    default: /* a reshape is the same memory */
        break;
    }
}

/* Images in a row become interleaved. */
static void interleave(const float *x, uint32_t size, uint32_t n, float *y)
{
    uint32_t element, image;

    for (element = 0u; element < size; ++element)
        for (image = 0u; image < n; ++image)
            y[(size_t)element * n + image] = x[(size_t)image * size + element];
}

void sfd_forward(struct sfd_session *session, const float *x, uint32_t n, int training)
{
    uint32_t i;

    session->input = x;
    if (session->values[0].storage != SFD_NONE)
        interleave(x, session->values[0].size, n, sfd_tensor_data(session, 0u));
    for (i = 0u; i < session->operation_count; ++i)
        node_forward(session, &session->nodes[i], n, training);
}

/* The weight gradient of a layer whose input was packed: unpack a block of channels, multiply, go
 * on to the next. */
static void packed_d_weight(struct sfd_session *session, const struct sfd_node *node,
                            const struct sfd_support *support, const struct sfd_view *x,
                            const struct sfd_view *dy, float *gradient, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    const struct sfd_value *in = &session->values[operation->input0];
    const void *packed = sfd_region_data(session, node->saved);
    const int linear = operation->kind == SFD_OPERATION_LINEAR;
    uint32_t keep = sfd_keep_count(&session->slots[operation->weight], (uint64_t)in->size * n);
    uint32_t channels = linear ? in->size : in->channels, run = in->size / channels * n;
    uint32_t block = sfd_block_channels(session, operation), first, taken = 0u;
    uint64_t *done = &session->counters.done.d_weight;
    struct sfd_convolution shape = convolution_shape(operation);
    struct sfd_view part = *x;

    part.data = sfd_region_data(session, node->scratch);
    for (first = 0u; first < channels; first += block) {
        uint32_t last = channels - first < block ? channels : first + block;
        taken = sfd_unpack(packed, keep, first * run, (last - first) * run, taken, part.data);
        *done += linear ? session->kernels->linear_d_weight(support, part.data, first, last,
                                                            dy->data, gradient, n)
                        : session->kernels->convolution_d_weight(&shape, support, &part, first,
                                                                 last, dy, gradient, n);
    }
}

/* dX needs w; afterwards the same memory takes the gradient. */
static void sparse_backward(struct sfd_session *session, const struct sfd_node *node,
                            const struct sfd_view *x, const struct sfd_view *dy,
                            const struct sfd_view *dx, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    const struct sfd_sparse_kernels *kernels = session->kernels;
    const struct sfd_slot *slot = &session->slots[operation->weight];
    const int linear = operation->kind == SFD_OPERATION_LINEAR;
    struct sfd_multiply_adds *done = &session->counters.done;
    struct sfd_convolution shape = convolution_shape(operation);
    float *working = sfd_region_data(session, slot->working);
    struct sfd_support support;

    sfd_slot_support(session, slot, &support);
    if (dx)
        done->d_input += linear
                             ? kernels->linear_d_input(&support, working, dy->data, dx->data, n)
                             : kernels->convolution_d_input(&shape, &support, working, dy, dx, n);
    if (operation->bias != SFD_NONE)
        sfd_bias_backward(dy->data, dy->channels, dy->channel_stride,
                          dense_gradient(session, operation->bias));
    if (node->saved != SFD_NONE)
        packed_d_weight(session, node, &support, x, dy, working, n);
    else if (linear)
        done->d_weight +=
            kernels->linear_d_weight(&support, x->data, 0u, slot->columns, dy->data, working, n);
    else
        done->d_weight +=
            kernels->convolution_d_weight(&shape, &support, x, 0u, x->channels, dy, working, n);
    sfd_powerprop_backward(sfd_region_data(session, slot->value), working, slot->count,
                           session->beta);
}

static void norm_backward(struct sfd_session *session, const struct sfd_node *node,
                          const struct sfd_view *x, const float *dy, float *dx, int accumulate,
                          uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    const float *weight = parameter_data(session, operation->weight);
    const float *moments = sfd_region_data(session, node->moments);
    float *d_weight = dense_gradient(session, operation->weight);
    float *d_bias = dense_gradient(session, operation->bias);

    if (operation->kind == SFD_OPERATION_BATCH_NORM) {
        sfd_batch_norm_backward(x, n, moments, operation->epsilon, weight, dy, dx, accumulate,
                                d_weight, d_bias);
    } else {
        struct sfd_norm norm = norm_shape(operation, &session->values[operation->input0]);
        sfd_norm_backward(&norm, x->data, n, moments, weight, dy, dx, accumulate, d_weight, d_bias);
    }
}

/* Deliver a gradient that is dy itself: reshape and addition. */
static void pass_gradient(const struct sfd_session *session, uint32_t tensor,
                          enum sfd_delivery delivery, const float *dy, uint32_t count)
{
    if (delivery == SFD_DELIVER_WRITE)
        memcpy(gradient_data(session, tensor), dy, (size_t)count * sizeof *dy);
    else if (delivery == SFD_DELIVER_ACCUMULATE)
        sfd_add_into(dy, count, gradient_data(session, tensor));
}

static void node_backward(struct sfd_session *session, const struct sfd_node *node, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    struct sfd_view x =
        tensor_view(session, operation->input0, sfd_tensor_data(session, operation->input0), n);
    struct sfd_view dy =
        tensor_view(session, operation->output, gradient_data(session, operation->output), n);
    struct sfd_view dx = x;
    uint32_t count = n * session->values[operation->input0].size;
    int accumulate = node->delivery0 == SFD_DELIVER_ACCUMULATE;
    int delivers = node->delivery0 != SFD_DELIVER_NOTHING;

    dx.data = delivers ? gradient_data(session, operation->input0) : NULL;
    if (node->delivery0 == SFD_DELIVER_WRITE && operation->kind != SFD_OPERATION_ADD)
        memset(dx.data, 0, (size_t)count * sizeof *dx.data); /* these kernels add */

    switch (operation->kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR:
        sparse_backward(session, node, &x, &dy, delivers ? &dx : NULL, n);
        break;
    case SFD_OPERATION_BATCH_NORM:
    case SFD_OPERATION_GROUP_NORM:
    case SFD_OPERATION_LAYER_NORM:
        norm_backward(session, node, &x, dy.data, dx.data, accumulate, n);
        break;
    case SFD_OPERATION_RELU:
    case SFD_OPERATION_RELU6:
        sfd_rectifier_backward(sfd_region_data(session, node->mask), dy.data, count, dx.data,
                               accumulate);
        break;
    case SFD_OPERATION_GELU:
    case SFD_OPERATION_SILU:
        sfd_smooth_backward(operation, x.data, dy.data, count, dx.data, accumulate);
        break;
    case SFD_OPERATION_MAX_POOL:
        sfd_max_pool_backward(operation, &dy, &dx, n, sfd_region_data(session, node->mask));
        break;
    case SFD_OPERATION_AVERAGE_POOL:
    case SFD_OPERATION_ADAPTIVE_AVERAGE_POOL:
        sfd_average_pool_backward(operation, &dy, &dx, n);
        break;
    case SFD_OPERATION_ADD:
        pass_gradient(session, operation->input1, node->delivery1, dy.data, count);
        pass_gradient(session, operation->input0, node->delivery0, dy.data, count);
        break;
    default: /* reshape */
        pass_gradient(session, operation->input0, node->delivery0, dy.data, count);
        break;
    }
}

void sfd_backward(struct sfd_session *session, uint32_t n)
{
    uint32_t i;

    for (i = session->operation_count; i-- > 0u;)
        if (session->nodes[i].has_backward)
            node_backward(session, &session->nodes[i], n);
}
