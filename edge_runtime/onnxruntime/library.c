/* What ONNX Runtime calls: the library as a set of operators, and the life of a kernel. */
#include <stdlib.h>

#include "arguments.h"
#include "operators.h"
#include "ort_interface.h"
#include "sfd.h"

/* Elements are float; where one input or output has others, its number is counted from 1, 0 is none. */
struct operation {
    struct ort_operator base;
    const char *name;
    void (*compute)(struct call *call);
    size_t inputs, outputs, counts_input, winners_input, winners_output;
};

static const struct operation *operation_of(const struct ort_operator *base)
{
    return (const struct operation *)base;
}

static const char *ORT_CALL name(const struct ort_operator *base)
{
    return operation_of(base)->name;
}

static const char *ORT_CALL provider(const struct ort_operator *base)
{
    (void)base;
    return "CPUExecutionProvider";
}

static size_t ORT_CALL inputs(const struct ort_operator *base)
{
    return operation_of(base)->inputs;
}

static size_t ORT_CALL outputs(const struct ort_operator *base)
{
    return operation_of(base)->outputs;
}

static int ORT_CALL input_type(const struct ort_operator *base, size_t index)
{
    if (index + 1u == operation_of(base)->counts_input)
        return ORT_INT64;
    return index + 1u == operation_of(base)->winners_input ? ORT_UINT16 : ORT_FLOAT;
}

static int ORT_CALL output_type(const struct ort_operator *base, size_t index)
{
    return index + 1u == operation_of(base)->winners_output ? ORT_UINT16 : ORT_FLOAT;
}

static int ORT_CALL optional(const struct ort_operator *base, size_t index)
{
    (void)base;
    (void)index;
    return ORT_OPTIONAL;
}

static int ORT_CALL memory(const struct ort_operator *base, size_t index)
{
    (void)base;
    (void)index;
    return ORT_MEMORY_DEFAULT;
}

static int ORT_CALL first_version(const struct ort_operator *base)
{
    (void)base;
    return 1;
}

static struct ort_status *read_attributes(struct kernel *kernel, const struct ort_info *info)
{
    const struct ort_api *api = kernel->api;
    size_t integers = INTEGERS_LIMIT, numbers = NUMBERS_LIMIT, i;
    struct ort_status *status = api->integers(info, "integers", kernel->integers, &integers);

    kernel->rank = RANK_LIMIT;
    if (status == NULL)
        status = api->integers(info, "shape", kernel->shape, &kernel->rank);
    if (status == NULL)
        status = api->floats(info, "numbers", kernel->numbers, &numbers);
    for (i = 0u; status == NULL && i < integers; ++i)
        if (kernel->integers[i] < 0 || kernel->integers[i] > UINT32_MAX)
            status = api->create_status(ORT_INVALID_ARGUMENT,
                                        "an integer of a node is below 0, or 2^32 or more");
    if (status == NULL)
        status = api->processor_memory(ORT_ARENA_ALLOCATOR, ORT_MEMORY_DEFAULT, &kernel->memory);
    return status;
}

static struct ort_status *ORT_CALL create(const struct ort_operator *base,
                                          const struct ort_api *api, const struct ort_info *info,
                                          void **out)
{
    struct kernel *kernel = calloc(1u, sizeof *kernel);
    struct ort_status *status;

    if (kernel == NULL)
        return api->create_status(ORT_FAIL, "no memory for an operator of sparsyfed");
    kernel->operation = operation_of(base);
    kernel->api = api;
    status = read_attributes(kernel, info);
    if (status != NULL)
        free(kernel);
    else
        *out = kernel;
    return status;
}

static struct ort_status *ORT_CALL compute(void *kernel, struct ort_context *context)
{
    struct call call = {kernel, context, NULL};

    call.kernel->operation->compute(&call);
    return call.status;
}

static void ORT_CALL destroy(void *destroyed)
{
    struct kernel *kernel = destroyed;

    kernel->api->release_memory(kernel->memory);
    free(kernel);
}

/* clang-format off */
#define BASE {.version = ORT_VERSION, .name = name, .provider = provider,                         \
              .input_type = input_type, .inputs = inputs, .output_type = output_type,             \
              .outputs = outputs, .destroy = destroy, .input_kind = optional,                     \
              .output_kind = optional, .input_memory = memory, .create = create,                  \
              .compute = compute, .first_version = first_version}
#define OPERATION(function, ...) {BASE, #function, sfd_ort_##function, __VA_ARGS__}
/* clang-format on */

/* Inputs, outputs; the input of counts, that of winners, the output of winners. */
static const struct operation operations[] = {
    OPERATION(to_blocks, 1u, 1u, 0u, 0u, 0u),
    OPERATION(to_rows, 1u, 1u, 0u, 0u, 0u),
    OPERATION(layer, 3u, 1u, 0u, 0u, 0u),
    OPERATION(layer_backward, 4u, 3u, 4u, 0u, 0u),
    OPERATION(batch_norm, 5u, 4u, 0u, 0u, 0u),
    OPERATION(batch_norm_evaluated, 5u, 1u, 0u, 0u, 0u),
    OPERATION(batch_norm_backward, 4u, 3u, 0u, 0u, 0u),
    OPERATION(norm, 3u, 2u, 0u, 0u, 0u),
    OPERATION(norm_backward, 4u, 3u, 0u, 0u, 0u),
    OPERATION(rectifier, 1u, 1u, 0u, 0u, 0u),
    OPERATION(rectifier_backward, 2u, 1u, 0u, 0u, 0u),
    OPERATION(smooth, 1u, 1u, 0u, 0u, 0u),
    OPERATION(smooth_backward, 2u, 1u, 0u, 0u, 0u),
    OPERATION(pool, 1u, 2u, 0u, 0u, 2u),
    OPERATION(pool_backward, 2u, 1u, 0u, 2u, 0u),
    OPERATION(descend, 4u, 1u, 0u, 0u, 0u),
};

/* One domain for all sessions. The runtime reads it as long as there is a session with it, which nothing
 * tells: it lives as long as the library, as the operators in it do. */
static char is_busy;
static const struct ort_api *maker;
static struct ort_domain *domain;

static struct ort_status *make_domain(const struct ort_api *api)
{
    struct ort_status *status = api->create_domain("sparsyfed", &domain);
    size_t i;

    if (status != NULL)
        return status;
    for (i = 0u; status == NULL && i < sizeof operations / sizeof *operations; ++i)
        status = api->add_operator(domain, &operations[i].base);
    if (status == NULL)
        maker = api;
    else
        api->release_domain(domain);
    return status;
}

static struct ort_status *add_domain(const struct ort_api *api, struct ort_options *options)
{
    struct ort_status *status = maker == NULL ? make_domain(api) : NULL;

    if (status != NULL)
        return status;
    if (maker != api) /* its domain is none of this runtime's objects */
        return api->create_status(
            ORT_FAIL, "another ONNX Runtime of this process has the operators of sparsyfed");
    return api->add_domain(options, domain);
}

/* The name that ONNX Runtime looks for. */
SFD_API struct ort_status *ORT_CALL RegisterCustomOps(struct ort_options *options,
                                                      const struct ort_api_base *runtime);

struct ort_status *ORT_CALL RegisterCustomOps(struct ort_options *options,
                                              const struct ort_api_base *runtime)
{
    const struct ort_api *api = runtime->api(ORT_VERSION);
    struct ort_status *status;

    if (api == NULL) /* the first version has had what makes a status */
        return runtime->api(1u)->create_status(
            ORT_FAIL, "the operators of sparsyfed need ONNX Runtime 1.17 or newer");
    while (__atomic_test_and_set(&is_busy, __ATOMIC_ACQUIRE)) {
        /* another thread registers, which takes microseconds */
    }
    status = add_domain(api, options);
    __atomic_clear(&is_busy, __ATOMIC_RELEASE);
    return status;
}

/* When the library is unloaded: the runtime does so after the last session with it. */
__attribute__((destructor)) static void release_domain(void)
{
    if (maker != NULL)
        maker->release_domain(domain);
}
