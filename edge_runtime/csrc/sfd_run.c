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
static void *optional_data(const struct sfd_session *session, uint32_t region)
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
    const struct sfd_tensor_kernels *tensors = session->kernels->tensors;
    float *w = sfd_region_data(session, slot->working);
    uint64_t *done = training ? &session->counters.done.forward : &session->counters.evaluation;
    struct sfd_layer layer = sfd_layer_sizes(session, node);

    sfd_slot_support(session, slot, &layer.support);
    tensors->powerprop_forward(sfd_region_data(session, slot->value), w, slot->count,
                               session->beta);
    *done += session->kernels->forward(&layer, w, parameter_data(session, operation->bias), x, y, n,
                                       optional_data(session, node->forward_scratch));
    if (training && node->saved != SFD_NONE) {
        uint32_t size = session->values[operation->input0].size;
        tensors->pack(x, size, n, sfd_keep_count(slot, (uint64_t)size * n), session->histogram,
                      sfd_region_data(session, node->saved), session->team);
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

static float rectifier_ceiling(const struct sfd_operation *operation)
{
    return operation->kind == SFD_OPERATION_RELU6 ? 6.0f : SFD_INFINITY;
}

static struct sfd_batch_norm batch_norm(const struct sfd_session *session,
                                        const struct sfd_node *node)
{
    const struct sfd_operation *operation = &node->operation;
    struct sfd_batch_norm norm;

    norm.shape = channels_of(&session->values[operation->input0]);
    norm.epsilon = operation->epsilon;
    norm.weight = parameter_data(session, operation->weight);
    norm.bias = parameter_data(session, operation->bias);
    norm.mean = norm.variance = NULL;
    norm.moments = sfd_region_data(session, node->moments);
    norm.team = session->team;
    return norm;
}

/* Of the operands of an addition the one that is not `tensor`. */
static uint32_t other_operand(const struct sfd_operation *add, uint32_t tensor)
{
    return add->input0 == tensor ? add->input1 : add->input0;
}

/* The norm, and the operations that are fused with it. */
static void batch_norm_forward(const struct sfd_session *session, const struct sfd_node *node,
                               const float *x, uint32_t n, int training)
{
    const struct sfd_operation *operation = &node->operation, *next;
    struct sfd_batch_norm norm = batch_norm(session, node);
    struct sfd_epilogue after = {NULL, 0.0f, NULL};
    uint32_t i;

    if (!training && operation->mean != SFD_NONE) {
        norm.mean = parameter_data(session, operation->mean);
        norm.variance = parameter_data(session, operation->variance);
    }
    for (i = 1u; i <= node->fused; ++i) {
        next = &node[i].operation;
        if (next->kind == SFD_OPERATION_ADD) {
            after.addend = sfd_tensor_data(session, other_operand(next, operation->output));
        } else {
            after.ceiling = rectifier_ceiling(next);
            after.mask = training ? optional_data(session, node[i].mask) : NULL;
        }
    }
    session->kernels->tensors->batch_norm_forward(
        &norm, x, n, &after, sfd_tensor_data(session, node[node->fused].operation.output));
}

/* Group and layer norm. */
static void norm_forward(const struct sfd_session *session, const struct sfd_node *node,
                         const float *x, float *y, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    struct sfd_norm norm = norm_shape(operation, &session->values[operation->input0]);

    session->kernels->tensors->norm_forward(
        &norm, x, n, operation->epsilon, parameter_data(session, operation->weight),
        parameter_data(session, operation->bias), sfd_region_data(session, node->moments), y);
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
    void *mask = training ? optional_data(session, node->mask) : NULL;
    const struct sfd_tensor_kernels *tensors = session->kernels->tensors;

    switch (operation->kind) {
    case SFD_OPERATION_CONVOLUTION:
    case SFD_OPERATION_LINEAR:
        sparse_forward(session, node, x, y, n, training);
        break;
    case SFD_OPERATION_BATCH_NORM:
        batch_norm_forward(session, node, x, n, training);
        break;
    case SFD_OPERATION_GROUP_NORM:
    case SFD_OPERATION_LAYER_NORM:
        norm_forward(session, node, x, y, n);
        break;
    case SFD_OPERATION_RELU:
    case SFD_OPERATION_RELU6:
        tensors->rectifier_forward(x, count, rectifier_ceiling(operation), mask, y);
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
        tensors->add_forward(x, sfd_tensor_data(session, operation->input1), count, y);
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
        if (!session->nodes[i].absorbed)
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
    void *scratch = optional_data(session, node->backward_scratch);
    int accumulate = node->delivery0 == SFD_DELIVER_ACCUMULATE;

    sfd_slot_support(session, slot, &layer.support);
    if (operation->bias != SFD_NONE)
        kernels->tensors->bias_backward(&out, dy, n, dense_gradient(session, operation->bias));
    kernels->backward(&layer, working, &saved, dy, dx, accumulate, working, n, scratch, done);
    kernels->tensors->powerprop_backward(sfd_region_data(session, slot->value), working,
                                         slot->count, session->beta);
}

/* The operations that are fused with the norm, and the norm. */
static void batch_norm_backward(const struct sfd_session *session, const struct sfd_node *node,
                                const float *x, float *dx, int accumulate, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    struct sfd_batch_norm norm = batch_norm(session, node);
    struct sfd_norm_gradient gradient = {.dx = dx, .accumulate = accumulate};
    uint32_t i;

    gradient.dy = gradient_data(session, node[node->fused].operation.output);
    gradient.d_weight = dense_gradient(session, operation->weight);
    gradient.d_bias = dense_gradient(session, operation->bias);
    for (i = 1u; i <= node->fused; ++i) {
        const struct sfd_operation *next = &node[i].operation;
        uint32_t other;
        if (next->kind != SFD_OPERATION_ADD) {
            gradient.mask = sfd_region_data(session, node[i].mask);
            continue;
        }
        other = other_operand(next, operation->output);
        if (session->values[other].gradient != SFD_NONE)
            gradient.addend = gradient_data(session, other);
    }
    session->kernels->tensors->batch_norm_backward(&norm, x, n, &gradient);
}

/* Group and layer norm. */
static void norm_backward(const struct sfd_session *session, const struct sfd_node *node,
                          const float *x, const float *dy, float *dx, int accumulate, uint32_t n)
{
    const struct sfd_operation *operation = &node->operation;
    struct sfd_norm norm = norm_shape(operation, &session->values[operation->input0]);

    session->kernels->tensors->norm_backward(&norm, x, n, sfd_region_data(session, node->moments),
                                             parameter_data(session, operation->weight), dy, dx,
                                             accumulate, dense_gradient(session, operation->weight),
                                             dense_gradient(session, operation->bias));
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
        session->kernels->tensors->add_into(dy, count, gradient_data(session, tensor));
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
        batch_norm_backward(session, node, x, dx, accumulate, n);
        break;
    case SFD_OPERATION_GROUP_NORM:
    case SFD_OPERATION_LAYER_NORM:
        norm_backward(session, node, x, dy, dx, accumulate, n);
        break;
    case SFD_OPERATION_RELU:
    case SFD_OPERATION_RELU6:
        session->kernels->tensors->rectifier_backward(sfd_region_data(session, node->mask), dy,
                                                      count, dx, accumulate);
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
        if (session->nodes[i].has_backward && !session->nodes[i].absorbed)
            node_backward(session, &session->nodes[i], n);
}
