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

static struct sfd_view tensor_view(const struct sfd_session *session, uint32_t tensor, float *data)
{
    const struct sfd_value *value = &session->values[tensor];
    struct sfd_view view;

    view.data = data;
    view.channels = value->channels;
    view.height = value->height;
    view.width = value->width;
    view.row_stride = value->width;
    view.channel_stride = value->height * value->width;
    view.image_stride = value->size;
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
        uint32_t elements = n * session->values[operation->input0].size;
        sfd_pack(x->data, elements, sfd_keep_count(slot, elements), session->histogram,
                 sfd_region_data(session, node->saved));
    }
}

static void norm_forward(struct sfd_session *session, const struct sfd_node *node,
                         const struct sfd_view *x, float *y, uint32_t n, int training)
{
    const struct sfd_operation *operation = &node->operation;
    const float *weight = parameter_data(session, operation->weight);
    const float *bias = parameter_data(session, operation->bias);
    float *moments = sfd_region_data(session, node->moments);
    uint32_t plane = x->height * x->width;

    if (operation->kind == SFD_OPERATION_GROUP_NORM) {
        sfd_group_norm_forward(x->data, n, x->channels, plane, operation->groups,
                               operation->epsilon, weight, bias, moments, y);
    } else if (operation->kind == SFD_OPERATION_LAYER_NORM) {
        uint32_t rows = n * (x->image_stride / operation->normalized);
        sfd_layer_norm_forward(x->data, rows, operation->normalized, operation->epsilon, weight,
                               bias, moments, y);
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
        tensor_view(session, operation->input0, sfd_tensor_data(session, operation->input0));
    struct sfd_view y =
        tensor_view(session, operation->output, sfd_tensor_data(session, operation->output));
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

void sfd_forward(struct sfd_session *session, const float *x, uint32_t n, int training)
{
    uint32_t i;

    session->input = x;
    for (i = 0u; i < session->operation_count; ++i)
        node_forward(session, &session->nodes[i], n, training);
}

/* dX needs w; afterwards the same memory takes the gradient. */
static void sparse_backward(struct sfd_session *session, const struct sfd_node *node,
                            const struct sfd_view *x, const struct sfd_view *dy,
                            const struct sfd_view *dx, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    const struct sfd_sparse_kernels *kernels = session->kernels;
    const struct sfd_slot *slot = &session->slots[operation->weight];
    struct sfd_multiply_adds *done = &session->counters.done;
    const int linear = operation->kind == SFD_OPERATION_LINEAR;
    struct sfd_convolution shape = convolution_shape(operation);
    float *working = sfd_region_data(session, slot->working);
    struct sfd_support support;
    uint32_t image, taken = 0u;

    sfd_slot_support(session, slot, &support);
    if (dx) {
        if (linear)
            done->d_input += kernels->linear_d_input(&support, working, dy->data, dx->data, n);
        else
            done->d_input += kernels->convolution_d_input(&shape, &support, working, dy, dx, n);
    }
    if (operation->bias != SFD_NONE)
        sfd_bias_backward(dy->data, n, dy->channels, dy->height * dy->width,
                          dense_gradient(session, operation->bias));
    memset(working, 0, (size_t)slot->count * sizeof *working);
    if (slot->count == 0u)
        return;
    if (node->saved == SFD_NONE) {
        if (linear)
            done->d_weight += kernels->linear_d_weight(&support, x->data, dy->data, working, n);
        else
            done->d_weight += kernels->convolution_d_weight(&shape, &support, x, dy, working, n);
    }
    for (image = 0u; node->saved != SFD_NONE && image < n; ++image) {
        uint32_t keep = sfd_keep_count(slot, (uint64_t)n * x->image_stride);
        struct sfd_view one = *x, d_one = *dy;
        one.data = sfd_region_data(session, node->scratch);
        d_one.data = dy->data + (size_t)image * dy->image_stride;
        taken = sfd_unpack(sfd_region_data(session, node->saved), keep, image * x->image_stride,
                           x->image_stride, taken, one.data);
        if (linear)
            done->d_weight += kernels->linear_d_weight(&support, one.data, d_one.data, working, 1u);
        else
            done->d_weight +=
                kernels->convolution_d_weight(&shape, &support, &one, &d_one, working, 1u);
    }
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
    uint32_t plane = x->height * x->width;

    if (operation->kind == SFD_OPERATION_BATCH_NORM)
        sfd_batch_norm_backward(x, n, moments, operation->epsilon, weight, dy, dx, accumulate,
                                d_weight, d_bias);
    else if (operation->kind == SFD_OPERATION_GROUP_NORM)
        sfd_group_norm_backward(x->data, n, x->channels, plane, operation->groups, moments, weight,
                                dy, dx, accumulate, d_weight, d_bias);
    else
        sfd_layer_norm_backward(x->data, n * (x->image_stride / operation->normalized),
                                operation->normalized, moments, weight, dy, dx, accumulate,
                                d_weight, d_bias);
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
        tensor_view(session, operation->input0, sfd_tensor_data(session, operation->input0));
    struct sfd_view dy =
        tensor_view(session, operation->output, gradient_data(session, operation->output));
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
