#include "arguments.h"

#include <string.h>

#include "sfd.h"

bool sfd_ort_require(struct call *call, bool holds, const char *fault)
{
    if (call->status == NULL && !holds)
        call->status = call->kernel->api->create_status(ORT_INVALID_ARGUMENT, fault);
    return call->status == NULL;
}

static bool succeeded(struct call *call, struct ort_status *status)
{
    if (status != NULL)
        call->status = status;
    return status == NULL;
}

static void read_shape(struct call *call, const struct ort_value *value, struct tensor *tensor)
{
    const struct ort_api *api = call->kernel->api;
    struct ort_shape *info;

    if (!succeeded(call, api->shape(value, &info)))
        return;
    if (succeeded(call, api->rank(info, &tensor->rank)) &&
        sfd_ort_require(call, tensor->rank <= RANK_LIMIT, "an input has more than 8 dimensions") &&
        succeeded(call, api->dimensions(info, tensor->shape, tensor->rank)) &&
        succeeded(call, api->count(info, &tensor->count)))
        /* The core counts elements in 32 bits, and divides by the number of examples. */
        sfd_ort_require(call, tensor->count > 0u && tensor->count <= UINT32_MAX,
                        "an input is without elements, or has 2^32 of them or more");
    api->release_shape(info);
}

struct tensor sfd_ort_optional_input(struct call *call, size_t index)
{
    const struct ort_api *api = call->kernel->api;
    struct tensor tensor = {0};
    const struct ort_value *value = NULL;

    if (call->status != NULL || !succeeded(call, api->input(call->context, index, &value)) ||
        value == NULL)
        return tensor;
    read_shape(call, value, &tensor);
    if (call->status == NULL)
        succeeded(call, api->data((struct ort_value *)value, &tensor.data));
    return tensor;
}

struct tensor sfd_ort_input(struct call *call, size_t index)
{
    const struct tensor tensor = sfd_ort_optional_input(call, index);

    sfd_ort_require(call, tensor.data != NULL, "an input is missing");
    return tensor;
}

static void require_examples(struct call *call, const struct tensor *x)
{
    if (call->status == NULL)
        sfd_ort_require(call, x->rank >= 2u && sfd_ort_example_size(x) <= EXAMPLE_LIMIT,
                        "an input or output is no batch of examples of up to 2^26 elements");
}

struct tensor sfd_ort_activation(struct call *call, size_t index)
{
    const struct tensor x = sfd_ort_input(call, index);

    require_examples(call, &x);
    return x;
}

void *sfd_ort_optional_output(struct call *call, size_t index, const int64_t *shape, size_t rank)
{
    const struct ort_api *api = call->kernel->api;
    struct ort_value *value = NULL;
    void *data = NULL;

    if (call->status == NULL &&
        succeeded(call, api->output(call->context, index, shape, rank, &value)) && value != NULL)
        succeeded(call, api->data(value, &data));
    return data;
}

void *sfd_ort_output(struct call *call, size_t index, const int64_t *shape, size_t rank)
{
    void *data = sfd_ort_optional_output(call, index, shape, rank);

    sfd_ort_require(call, data != NULL, "the graph leaves out an output");
    return data;
}

void *sfd_ort_output_like(struct call *call, size_t index, const struct tensor *like)
{
    return sfd_ort_output(call, index, like->shape, like->rank);
}

void *sfd_ort_vector(struct call *call, size_t index, uint32_t size)
{
    const int64_t shape = size;

    return sfd_ort_output(call, index, &shape, 1u);
}

void *sfd_ort_optional_vector(struct call *call, size_t index, uint32_t size)
{
    const int64_t shape = size;
    void *data = sfd_ort_optional_output(call, index, &shape, 1u);

    return size == 0u ? NULL : data;
}

struct tensor sfd_ort_shaped_output(struct call *call, const struct tensor *like)
{
    struct tensor tensor = {.rank = call->kernel->rank, .count = 1u};
    size_t i;

    memcpy(tensor.shape, call->kernel->shape, sizeof tensor.shape);
    tensor.shape[0] = like->shape[0];
    for (i = 0u; i < tensor.rank && call->status == NULL; ++i)
        if (sfd_ort_require(call,
                            tensor.shape[i] > 0 &&
                                (uint64_t)tensor.shape[i] <= UINT32_MAX / (uint64_t)tensor.count,
                            "the attribute shape has a size below 1, or 2^32 elements or more"))
            tensor.count *= (size_t)tensor.shape[i];
    require_examples(call, &tensor);
    tensor.data = sfd_ort_output(call, 0u, tensor.shape, tensor.rank);
    return tensor;
}

struct scratch sfd_ort_take_scratch(struct call *call, uint64_t bytes)
{
    const struct ort_api *api = call->kernel->api;
    struct scratch scratch = {0};

    if (!sfd_ort_require(call, bytes <= SIZE_MAX - SFD_ALIGNMENT,
                         "a layer takes too much memory") ||
        !succeeded(call, api->allocator(call->context, call->kernel->memory, &scratch.allocator)))
        return scratch;
    scratch.block = scratch.allocator->allocate(scratch.allocator, (size_t)bytes + SFD_ALIGNMENT);
    if (scratch.block == NULL)
        call->status = api->create_status(ORT_FAIL, "no memory for a layer of sparsyfed");
    else
        scratch.aligned = (void *)(((uintptr_t)scratch.block + SFD_ALIGNMENT - 1u) / SFD_ALIGNMENT *
                                   SFD_ALIGNMENT);
    return scratch;
}

void sfd_ort_give_back(struct call *call, const struct scratch *scratch)
{
    if (scratch->block != NULL)
        scratch->allocator->free(scratch->allocator, scratch->block);
    if (scratch->allocator != NULL)
        call->kernel->api->release_allocator(scratch->allocator);
}

uint32_t sfd_ort_images(const struct tensor *x)
{
    return (uint32_t)x->shape[0];
}

uint32_t sfd_ort_example_size(const struct tensor *x)
{
    return (uint32_t)(x->count / (size_t)x->shape[0]);
}

uint32_t sfd_ort_channels(const struct tensor *x)
{
    return (uint32_t)x->shape[1];
}

uint32_t sfd_ort_height(const struct tensor *x)
{
    return x->rank == 4u ? (uint32_t)x->shape[2] : 1u;
}

uint32_t sfd_ort_width(const struct tensor *x)
{
    return x->rank > 2u ? (uint32_t)x->shape[x->rank - 1u] : 1u;
}

uint32_t sfd_ort_integer(const struct call *call, size_t index)
{
    return (uint32_t)call->kernel->integers[index];
}

float sfd_ort_number(const struct call *call, size_t index)
{
    return call->kernel->numbers[index];
}
