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

/* One block of a tensor. */
static struct sfd_view block_view(const struct sfd_session *session, uint32_t tensor, float *data,
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

static struct sfd_channels channels_of(const struct sfd_value *value)
{
    struct sfd_channels shape;

    shape.channels = value->channels;
    shape.pixels = value->height * value->width;
    return shape;
}

/* How much of its scratch a kernel writes depends on the data. The last word is written here, so
 * that a measured arena counts the region whole. */
static void *scratch_data(const struct sfd_session *session, uint32_t region)
{
    uint32_t *scratch;

    if (region == SFD_NONE)
        return NULL;
    scratch = sfd_region_data(session, region);
    scratch[session->regions[region].bytes / sizeof *scratch - 1u] = 0u;
    return scratch;
}

static void sparse_forward(struct sfd_session *session, const struct sfd_node *node, const float *x,
                           float *y, uint32_t n, int training)
{
    const struct sfd_operation *operation = &node->operation;
    const struct sfd_slot *slot = &session->slots[operation->weight];
    float *w = sfd_region_data(session, slot->working);
    uint64_t *done = training ? &session->counters.done.forward : &session->counters.evaluation;
    struct sfd_layer layer = sfd_layer_sizes(session, node);

    sfd_slot_support(session, slot, &layer.support);
    sfd_powerprop_forward(sfd_region_data(session, slot->value), w, slot->count, session->beta);
    *done += session->kernels->forward(&layer, w, parameter_data(session, operation->bias), x, y, n,
                                       scratch_data(session, node->forward_scratch));
    if (training && node->saved != SFD_NONE) {
        uint32_t size = session->values[operation->input0].size;
        sfd_pack(x, size, n, sfd_keep_count(slot, (uint64_t)size * n), session->histogram,
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

static void norm_forward(struct sfd_session *session, const struct sfd_node *node, const float *x,
                         float *y, uint32_t n, int training)
{
    const struct sfd_operation *operation = &node->operation;
    const struct sfd_value *in = &session->values[operation->input0];
    const struct sfd_channels shape = channels_of(in);
    const float *weight = parameter_data(session, operation->weight);
    const float *bias = parameter_data(session, operation->bias);
    float *moments = sfd_region_data(session, node->moments);

    if (operation->kind != SFD_OPERATION_BATCH_NORM) {
        struct sfd_norm norm = norm_shape(operation, in);
        sfd_norm_forward(&norm, x, n, operation->epsilon, weight, bias, moments, y);
    } else if (training || operation->mean == SFD_NONE) {
        sfd_batch_norm_moments(&shape, x, n, moments);
        sfd_batch_norm_forward(&shape, x, n, moments, moments + shape.channels, operation->epsilon,
                               weight, bias, y);
    } else {
        sfd_batch_norm_forward(&shape, x, n, parameter_data(session, operation->mean),
                               parameter_data(session, operation->variance), operation->epsilon,
                               weight, bias, y);
    }
}

/* Winners lie as the output does, one for each of its elements. */
static void pool_forward(const struct sfd_session *session, const struct sfd_node *node, uint32_t n,
                         uint16_t *winner)
{
    const struct sfd_operation *operation = &node->operation;
    size_t size = session->values[operation->output].size;
    float *x = sfd_tensor_data(session, operation->input0);
    float *y = sfd_tensor_data(session, operation->output);
    uint32_t first;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        struct sfd_view in = block_view(session, operation->input0, x, n, first);
        struct sfd_view out = block_view(session, operation->output, y, n, first);
        uint32_t images = sfd_block_images(n, first);
        if (operation->kind == SFD_OPERATION_MAX_POOL)
            sfd_max_pool_forward(operation, &in, &out, images,
                                 winner ? winner + first * size : NULL);
        else
            sfd_average_pool_forward(operation, &in, &out, images);
    }
}

static void node_forward(struct sfd_session *session, const struct sfd_node *node, uint32_t n,
                         int training)
{
    const struct sfd_operation *operation = &node->operation;
    const float *x = sfd_tensor_data(session, operation->input0);
    float *y = sfd_tensor_data(session, operation->output);
    uint32_t count = n * session->values[operation->output].size;
    void *mask = training && node->mask != SFD_NONE ? sfd_region_data(session, node->mask) : NULL;

    switch (operation->kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR:
        sparse_forward(session, node, x, y, n, training);
        break;
    case SFD_OPERATION_BATCH_NORM:
    case SFD_OPERATION_GROUP_NORM:
    case SFD_OPERATION_LAYER_NORM:
        norm_forward(session, node, x, y, n, training);
        break;
    case SFD_OPERATION_RELU:
        sfd_rectifier_forward(x, count, SFD_INFINITY, mask, y);
        break;
    case SFD_OPERATION_RELU6:
        sfd_rectifier_forward(x, count, 6.0f, mask, y);
        break;
    case SFD_OPERATION_GELU:
    case SFD_OPERATION_SILU:
        sfd_smooth_forward(operation, x, count, y);
        break;
    case SFD_OPERATION_MAX_POOL:
    case SFD_OPERATION_AVERAGE_POOL:
    case SFD_OPERATION_ADAPTIVE_AVERAGE_POOL:
        pool_forward(session, node, n, mask);
        break;
    case SFD_OPERATION_ADD:
        sfd_add_forward(x, sfd_tensor_data(session, operation->input1), count, y);
        break;
    default: /* a reshape is the same memory */
        break;
    }
}

/* Images in a row become interleaved blocks. */
static void interleave(const float *x, uint32_t size, uint32_t n, float *y)
{
    uint32_t first, element, image;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        uint32_t images = sfd_block_images(n, first);
        const float *in = x + (size_t)first * size;
        float *out = y + (size_t)first * size;
        for (element = 0u; element < size; ++element)
            for (image = 0u; image < images; ++image)
                out[(size_t)element * images + image] = in[(size_t)image * size + element];
    }
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
static void sparse_backward(struct sfd_session *session, const struct sfd_node *node,
                            const float *x, const float *dy, float *dx, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    const struct sfd_kernels *kernels = session->kernels;
    const struct sfd_slot *slot = &session->slots[operation->weight];
    const struct sfd_channels out = channels_of(&session->values[operation->output]);
    struct sfd_saved_input saved = saved_input(session, node, x, n);
    struct sfd_multiply_adds *done = &session->counters.done;
    struct sfd_layer layer = sfd_layer_sizes(session, node);
    float *working = sfd_region_data(session, slot->working);
    void *scratch = scratch_data(session, node->backward_scratch);
    int accumulate = node->delivery0 == SFD_DELIVER_ACCUMULATE;

    sfd_slot_support(session, slot, &layer.support);
    if (operation->bias != SFD_NONE)
        sfd_bias_backward(&out, dy, n, dense_gradient(session, operation->bias));
    kernels->backward(&layer, working, &saved, dy, dx, accumulate, working, n, scratch, done);
    sfd_powerprop_backward(sfd_region_data(session, slot->value), working, slot->count,
                           session->beta);
}

static void norm_backward(struct sfd_session *session, const struct sfd_node *node, const float *x,
                          const float *dy, float *dx, int accumulate, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    const struct sfd_value *in = &session->values[operation->input0];
    const float *weight = parameter_data(session, operation->weight);
    const float *moments = sfd_region_data(session, node->moments);
    float *d_weight = dense_gradient(session, operation->weight);
    float *d_bias = dense_gradient(session, operation->bias);

    if (operation->kind == SFD_OPERATION_BATCH_NORM) {
        struct sfd_channels shape = channels_of(in);
        sfd_batch_norm_backward(&shape, x, n, moments, operation->epsilon, weight, dy, dx,
                                accumulate, d_weight, d_bias);
    } else {
        struct sfd_norm norm = norm_shape(operation, in);
        sfd_norm_backward(&norm, x, n, moments, weight, dy, dx, accumulate, d_weight, d_bias);
    }
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
        struct sfd_view out = block_view(session, operation->output, dy, n, first);
        struct sfd_view in = block_view(session, operation->input0, dx, n, first);
        uint32_t images = sfd_block_images(n, first);
        if (operation->kind == SFD_OPERATION_MAX_POOL)
            sfd_max_pool_backward(operation, &out, &in, images,
                                  (const uint16_t *)sfd_region_data(session, node->mask) +
                                      first * size);
        else
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
        sfd_add_into(dy, count, gradient_data(session, tensor));
}

static void node_backward(struct sfd_session *session, const struct sfd_node *node, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    const float *x = sfd_tensor_data(session, operation->input0);
    float *dy = gradient_data(session, operation->output);
    float *dx =
        node->delivery0 == SFD_DELIVER_NOTHING ? NULL : gradient_data(session, operation->input0);
    uint32_t count = n * session->values[operation->input0].size;
    int accumulate = node->delivery0 == SFD_DELIVER_ACCUMULATE;

    switch (operation->kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR:
        sparse_backward(session, node, x, dy, dx, n);
        break;
    case SFD_OPERATION_BATCH_NORM:
    case SFD_OPERATION_GROUP_NORM:
    case SFD_OPERATION_LAYER_NORM:
        norm_backward(session, node, x, dy, dx, accumulate, n);
        break;
    case SFD_OPERATION_RELU:
    case SFD_OPERATION_RELU6:
        sfd_rectifier_backward(sfd_region_data(session, node->mask), dy, count, dx, accumulate);
        break;
    case SFD_OPERATION_GELU:
    case SFD_OPERATION_SILU:
        sfd_smooth_backward(operation, x, dy, count, dx, accumulate);
        break;
    case SFD_OPERATION_MAX_POOL:
    case SFD_OPERATION_AVERAGE_POOL:
    case SFD_OPERATION_ADAPTIVE_AVERAGE_POOL:
        pool_backward(session, node, dy, dx, n);
        break;
    case SFD_OPERATION_ADD:
        pass_gradient(session, operation->input1, node->delivery1, dy, count);
        pass_gradient(session, operation->input0, node->delivery0, dy, count);
        break;
    default: /* reshape */
        pass_gradient(session, operation->input0, node->delivery0, dy, count);
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
