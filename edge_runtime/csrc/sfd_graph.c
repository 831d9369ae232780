/* The operations of an artifact: each fits its tensors and its parameters, nothing is unused.
 * The checks return 1 if all is well, else they have noted the problem. */
#include "sfd_parse.h"

/* What a kind of operation uses. What it does not use is zero, or SFD_NONE for a reference. */
enum {
    USES_INPUT1 = 1,
    USES_AFFINE = 2,
    USES_STATISTICS = 4,
    USES_GROUPS = 8,
    USES_WINDOW = 16,
    USES_DILATION = 32,
    USES_EPSILON = 64,
    USES_MOMENTUM = 128,
    USES_NORMALIZED = 256,
    USES_COUNT_PADDING = 512,
    USES_GELU_TANH = 1024,
    KEEPS_SHAPE = 2048
};

static const uint16_t uses_of_kind[] = {
    [SFD_OPERATION_CONVOLUTION] = USES_AFFINE | USES_GROUPS | USES_WINDOW | USES_DILATION,
    [SFD_OPERATION_LINEAR] = USES_AFFINE,
    [SFD_OPERATION_BATCH_NORM] =
        KEEPS_SHAPE | USES_AFFINE | USES_STATISTICS | USES_EPSILON | USES_MOMENTUM,
    [SFD_OPERATION_GROUP_NORM] = KEEPS_SHAPE | USES_AFFINE | USES_GROUPS | USES_EPSILON,
    [SFD_OPERATION_LAYER_NORM] = KEEPS_SHAPE | USES_AFFINE | USES_EPSILON | USES_NORMALIZED,
    [SFD_OPERATION_RELU] = KEEPS_SHAPE,
    [SFD_OPERATION_RELU6] = KEEPS_SHAPE,
    [SFD_OPERATION_GELU] = KEEPS_SHAPE | USES_GELU_TANH,
    [SFD_OPERATION_SILU] = KEEPS_SHAPE,
    [SFD_OPERATION_MAX_POOL] = USES_WINDOW,
    [SFD_OPERATION_AVERAGE_POOL] = USES_WINDOW | USES_COUNT_PADDING,
    [SFD_OPERATION_ADD] = KEEPS_SHAPE | USES_INPUT1,
    [SFD_OPERATION_RESHAPE] = 0,
};

/* Half-words of an operation record that not every kind uses. */
static const struct {
    uint16_t use;
    uint8_t first, count;
    uint16_t unused;
} optional_fields[] = {
    {USES_INPUT1, SFD_AT_INPUT1, 1, SFD_NONE},   {USES_AFFINE, SFD_AT_WEIGHT, 2, SFD_NONE},
    {USES_STATISTICS, SFD_AT_MEAN, 2, SFD_NONE}, {USES_GROUPS, SFD_AT_GROUPS, 1, 0},
    {USES_WINDOW, SFD_AT_KERNEL, 6, 0},          {USES_DILATION, SFD_AT_DILATION, 2, 0},
    {USES_EPSILON, SFD_AT_EPSILON, 2, 0},        {USES_MOMENTUM, SFD_AT_MOMENTUM, 2, 0},
    {USES_NORMALIZED, SFD_AT_NORMALIZED, 2, 0},
};

/* One operation under check. */
struct check {
    const struct sfd_artifact_view *view;
    struct sfd_problem *problem;
    size_t at; /* of the operation's record */
    uint32_t uses;
    struct sfd_tensor input, output;
    struct sfd_operation operation;
    uint8_t seen[SFD_MAX_RECORDS / 8u]; /* bit set: parameters used so far */
};

static int require(const struct check *check, int holds, uint32_t field, uint32_t got,
                   uint32_t wanted)
{
    if (!holds)
        (void)sfd_fail(check->problem, SFD_ERR_STRUCTURE, check->at + field, got, wanted);
    return holds;
}

static uint32_t load_field(const struct check *check, uint32_t field)
{
    return sfd_load_u16(check->view->bytes + check->at + field);
}

/* Marks the member; returns 1 if it was there before. */
static int mark(uint8_t *seen, uint32_t member)
{
    const uint32_t bit = 1u << (member & 7u);
    const int before = (seen[member >> 3] & bit) != 0;
    seen[member >> 3] = (uint8_t)(seen[member >> 3] | bit);
    return before;
}

static int check_fields(const struct check *check)
{
    const uint32_t allowed =
        ((check->uses & USES_COUNT_PADDING) != 0 ? SFD_FLAG_COUNT_PADDING : 0u) |
        ((check->uses & USES_GELU_TANH) != 0 ? SFD_FLAG_GELU_TANH : 0u);
    const uint32_t flags = check->operation.flags, reserved = load_field(check, SFD_AT_RESERVED);
    int fits = require(check, (flags & ~allowed) == 0, SFD_AT_FLAGS, flags, flags & allowed) &&
               require(check, reserved == 0, SFD_AT_RESERVED, reserved, 0);

    for (size_t i = 0; i < sizeof optional_fields / sizeof optional_fields[0]; ++i) {
        if ((check->uses & optional_fields[i].use) != 0)
            continue;
        for (uint32_t j = 0; j < optional_fields[i].count && fits; ++j) {
            const uint32_t field = optional_fields[i].first + 2u * j;
            const uint32_t got = load_field(check, field), unused = optional_fields[i].unused;
            fits = require(check, got == unused, field, got, unused);
        }
    }
    return fits;
}

/* Operation `index` writes tensor index + 1 and reads tensors before it. */
static int check_references(const struct check *check, uint32_t index)
{
    const struct sfd_operation *operation = &check->operation;
    const int adds = operation->kind == SFD_OPERATION_ADD;

    return require(check, operation->input0 <= index, SFD_AT_INPUT0, operation->input0, index) &&
           require(check, !adds || operation->input1 <= index, SFD_AT_INPUT1, operation->input1,
                   index) &&
           require(check, operation->output == index + 1u, SFD_AT_OUTPUT, operation->output,
                   index + 1u);
}

/* The parameter that `field` refers to is of this kind and no other operation's. */
static int take_parameter(struct check *check, uint32_t field, uint32_t kind,
                          struct sfd_parameter *parameter)
{
    const uint32_t index = load_field(check, field), count = check->view->parameter_count;

    if (!require(check, index < count, field, index, count - 1u) ||
        !require(check, !mark(check->seen, index), field, index, SFD_NONE))
        return 0;
    sfd_artifact_parameter(check->view, index, parameter);
    return require(check, parameter->kind == kind, field, parameter->kind, kind);
}

/* The parameter that `field` may refer to is a vector of `size` numbers. */
static int check_vector(struct check *check, uint32_t field, uint32_t kind, uint32_t size)
{
    const int any_rank = check->operation.kind == SFD_OPERATION_LAYER_NORM;
    struct sfd_parameter parameter;

    if (load_field(check, field) == SFD_NONE)
        return 1;
    return take_parameter(check, field, kind, &parameter) &&
           require(check, parameter.rank == 1u || any_rank, field, parameter.rank, 1) &&
           require(check, parameter.count == size, field, parameter.count, size);
}

/* A weight of these dimensions, and a bias of as many numbers as the weight has rows. */
static int check_weight(struct check *check, uint32_t rank, const uint32_t *dimensions)
{
    struct sfd_parameter weight;

    if (!take_parameter(check, SFD_AT_WEIGHT, SFD_PARAMETER_WEIGHT, &weight) ||
        !require(check, weight.rank == rank, SFD_AT_WEIGHT, weight.rank, rank))
        return 0;
    for (uint32_t i = 0; i < 4u; ++i)
        if (!require(check, weight.dimensions[i] == dimensions[i], SFD_AT_WEIGHT,
                     weight.dimensions[i], dimensions[i]))
            return 0;
    return check_vector(check, SFD_AT_BIAS, SFD_PARAMETER_DENSE, dimensions[0]);
}

/* One axis of a window: the output extent is floor((in + 2 padding - span) / stride) + 1. A window
 * of a pool never lies wholly in the padding. A signal has one axis: the other is left alone. */
static int check_axis(const struct check *check, uint32_t axis, uint32_t in, uint32_t out)
{
    const int convolves = check->operation.kind == SFD_OPERATION_CONVOLUTION;
    const int flat = check->input.rank == 2u && axis == 0;
    const uint32_t field = 2u * axis;
    const uint32_t kernel = load_field(check, SFD_AT_KERNEL + field);
    const uint32_t stride = load_field(check, SFD_AT_STRIDE + field);
    const uint32_t padding = load_field(check, SFD_AT_PADDING + field);
    const uint32_t dilation = convolves ? load_field(check, SFD_AT_DILATION + field) : 1u;
    const uint32_t most_padding = flat ? 0u : convolves ? 0xffffu : kernel / 2u;
    /* of 16 bits each, and a tensor's extent is at most SFD_MAX_TENSOR_SIZE: 32 bits hold both */
    const uint32_t span = dilation * (kernel - 1u) + 1u;
    const uint32_t padded = in + 2u * padding;
    uint32_t wanted;

    if (!require(check, kernel >= 1u && !(flat && kernel > 1u), SFD_AT_KERNEL + field, kernel, 1) ||
        !require(check, stride >= 1u && !(flat && stride > 1u), SFD_AT_STRIDE + field, stride, 1) ||
        !require(check, dilation >= 1u && !(flat && dilation > 1u), SFD_AT_DILATION + field,
                 dilation, 1) ||
        !require(check, padding <= most_padding, SFD_AT_PADDING + field, padding, most_padding) ||
        !require(check, span <= padded, SFD_AT_KERNEL + field, kernel, padded))
        return 0;
    wanted = (padded - span) / stride + 1u;
    return require(check, out == wanted, SFD_AT_OUTPUT, out, wanted);
}

/* Windows run over signals and images, and give the same. */
static int check_ranks(const struct check *check)
{
    return require(check, check->input.rank >= 2u, SFD_AT_INPUT0, check->input.rank, 2) &&
           require(check, check->output.rank == check->input.rank, SFD_AT_OUTPUT,
                   check->output.rank, check->input.rank);
}

static int check_window(const struct check *check)
{
    return check_ranks(check) && check_axis(check, 0, check->input.height, check->output.height) &&
           check_axis(check, 1, check->input.width, check->output.width);
}

static int check_groups(const struct check *check)
{
    const uint32_t groups = check->operation.groups;

    return require(check, groups >= 1u, SFD_AT_GROUPS, groups, 1) &&
           require(check, check->input.channels % groups == 0, SFD_AT_GROUPS, groups, 1) &&
           require(check, check->output.channels % groups == 0, SFD_AT_GROUPS, groups, 1);
}

static int check_convolution(struct check *check)
{
    uint32_t dimensions[4] = {check->output.channels, 0, check->operation.kernel_h,
                              check->operation.kernel_w};

    if (!check_groups(check) || !check_window(check))
        return 0;
    dimensions[1] = check->input.channels / check->operation.groups;
    return check_weight(check, check->input.rank + 1u, dimensions);
}

static int check_linear(struct check *check)
{
    const uint32_t dimensions[4] = {check->output.channels, check->input.size, 1, 1};

    return require(check, check->output.rank == 1u, SFD_AT_OUTPUT, check->output.rank, 1) &&
           check_weight(check, 2, dimensions);
}

static int check_batch_norm(struct check *check)
{
    const struct sfd_operation *operation = &check->operation;
    const uint32_t momentum = sfd_load_u32(check->view->bytes + check->at + SFD_AT_MOMENTUM);
    const uint32_t channels = check->input.channels;
    const int tracked = operation->mean != SFD_NONE;

    return require(check, operation->momentum >= 0.0f && operation->momentum <= 1.0f,
                   SFD_AT_MOMENTUM, momentum, 0) &&
           require(check, tracked == (operation->variance != SFD_NONE), SFD_AT_VARIANCE,
                   operation->variance, operation->mean) &&
           check_vector(check, SFD_AT_MEAN, SFD_PARAMETER_STATISTIC, channels) &&
           check_vector(check, SFD_AT_VARIANCE, SFD_PARAMETER_STATISTIC, channels);
}

/* Epsilon, what is normalised together, then scale and shift. */
static int check_norm(struct check *check)
{
    const uint32_t epsilon = sfd_load_u32(check->view->bytes + check->at + SFD_AT_EPSILON);
    uint32_t size = check->input.channels;
    int fits = require(check, epsilon > 0 && epsilon < 0x7f800000u, SFD_AT_EPSILON, epsilon, 1);

    if (!fits)
        return 0;
    if (SFD_HAS(BATCH_NORM) && check->operation.kind == SFD_OPERATION_BATCH_NORM) {
        fits = check_batch_norm(check);
    } else if (check->operation.kind == SFD_OPERATION_GROUP_NORM) {
        fits = check_groups(check);
    } else {
        size = check->operation.normalized;
        fits = require(check, size >= 1u && check->input.size % size == 0, SFD_AT_NORMALIZED, size,
                       check->input.size);
    }
    return fits && check_vector(check, SFD_AT_WEIGHT, SFD_PARAMETER_DENSE, size) &&
           check_vector(check, SFD_AT_BIAS, SFD_PARAMETER_DENSE, size);
}

static int check_pool(const struct check *check)
{
    const struct sfd_operation *pool = &check->operation;
    const uint32_t channels = check->output.channels;
    const uint64_t area = (uint64_t)pool->kernel_h * pool->kernel_w;

    return require(check, channels == check->input.channels, SFD_AT_OUTPUT, channels,
                   check->input.channels) &&
           require(check, pool->kind != SFD_OPERATION_MAX_POOL || area <= SFD_MAX_WINDOW,
                   SFD_AT_KERNEL, (uint32_t)area, SFD_MAX_WINDOW) &&
           ((check->uses & USES_WINDOW) != 0 ? check_window(check) : check_ranks(check));
}

static int same_shape(const struct sfd_tensor *a, const struct sfd_tensor *b)
{
    return a->channels == b->channels && a->height == b->height && a->width == b->width &&
           a->rank == b->rank;
}

static int check_add(const struct check *check)
{
    struct sfd_tensor other;

    sfd_artifact_tensor(check->view, check->operation.input1, &other);
    return require(check, same_shape(&check->input, &other), SFD_AT_INPUT1, other.size,
                   check->input.size);
}

static int check_kind(struct check *check)
{
    const struct sfd_tensor *input = &check->input, *output = &check->output;

    if ((check->uses & KEEPS_SHAPE) != 0 &&
        !require(check, same_shape(input, output), SFD_AT_OUTPUT, output->size, input->size))
        return 0;
    switch (check->operation.kind) {
    case SFD_OPERATION_CONVOLUTION:
        return check_convolution(check);
    case SFD_OPERATION_LINEAR:
        return check_linear(check);
    case SFD_OPERATION_BATCH_NORM:
    case SFD_OPERATION_GROUP_NORM:
    case SFD_OPERATION_LAYER_NORM:
        return (SFD_HAS_NORM || SFD_HAS(BATCH_NORM)) && check_norm(check);
    case SFD_OPERATION_MAX_POOL:
    case SFD_OPERATION_AVERAGE_POOL:
    case SFD_OPERATION_ADAPTIVE_AVERAGE_POOL:
        return (SFD_HAS_AVERAGE || SFD_HAS(MAX_POOL)) && check_pool(check);
    case SFD_OPERATION_ADD:
        return SFD_HAS(ADD) && check_add(check);
    case SFD_OPERATION_RESHAPE:
        return require(check, output->size == input->size, SFD_AT_OUTPUT, output->size,
                       input->size);
    default:
        return 1;
    }
}

static int check_operation(struct check *check, uint32_t index)
{
    const uint32_t kind = check->operation.kind;

    if (!require(check, kind >= 1u && kind <= SFD_OPERATION_RESHAPE, 0, kind, 1))
        return 0;
    check->uses = uses_of_kind[kind];
    if (!check_fields(check) || !check_references(check, index))
        return 0;
    sfd_artifact_tensor(check->view, check->operation.input0, &check->input);
    sfd_artifact_tensor(check->view, check->operation.output, &check->output);
    return check_kind(check);
}

/* Every parameter belongs to an operation. */
static int check_parameters_taken(struct check *check)
{
    for (uint32_t i = 0; i < check->view->parameter_count; ++i) {
        check->at = SFD_ARTIFACT_HEADER_BYTES + (size_t)i * SFD_PARAMETER_RECORD_BYTES;
        if (!require(check, mark(check->seen, i), 0, i, SFD_NONE))
            return 0;
    }
    return 1;
}

/* No operation's work is lost: every tensor but the last is read. */
static int check_tensors_read(struct check *check)
{
    const struct sfd_artifact_view *view = check->view;
    struct sfd_operation operation;

    memset(check->seen, 0, sizeof check->seen);
    for (uint32_t i = 0; i < view->operation_count; ++i) {
        sfd_artifact_operation(view, i, &operation);
        (void)mark(check->seen, operation.input0);
        if (operation.kind == SFD_OPERATION_ADD)
            (void)mark(check->seen, operation.input1);
    }
    for (uint32_t i = 0; i < view->operation_count; ++i) {
        check->at = sfd_operation_position(view, i > 0 ? i - 1u : 0u);
        if (!require(check, mark(check->seen, i), SFD_AT_OUTPUT, i, view->output))
            return 0;
    }
    return 1;
}

/* A kind that the format knows, but not this build. */
static int is_left_out(uint32_t kind)
{
    return kind >= 1u && kind <= SFD_OPERATION_RESHAPE && (SFD_OPERATIONS >> kind & 1u) == 0u;
}

int sfd_graph_check(const struct sfd_artifact_view *view, struct sfd_problem *problem)
{
    struct check check = {.view = view, .problem = problem};

    for (uint32_t i = 0; i < view->operation_count; ++i) {
        check.at = sfd_operation_position(view, i);
        sfd_artifact_operation(view, i, &check.operation);
        if (is_left_out(check.operation.kind))
            return sfd_fail(problem, SFD_ERR_OPERATION, check.at, check.operation.kind,
                            SFD_OPERATIONS);
        if (!check_operation(&check, i))
            return SFD_ERR_STRUCTURE;
    }
    /* The last operation's output is what the loss reads. */
    if (!require(&check, view->loss != SFD_LOSS_CROSS_ENTROPY || check.output.rank == 1u,
                 SFD_AT_OUTPUT, check.output.rank, 1) ||
        !check_parameters_taken(&check) || !check_tensors_read(&check))
        return SFD_ERR_STRUCTURE;
    return SFD_OK;
}
