/* Prints the constants of sfd_format.h and the codes and structures of sfd.h, one a line, for a
 * test that compares them with the Python side and with docs/format.md. */
#include <inttypes.h>
#include <stdio.h>

#include "sfd_parse.h"

#define DEFINE(name) printf("define %s %" PRIu32 "\n", #name, (uint32_t)SFD_##name);
#define OFFSET(name) printf("offset %s %d\n", #name, SFD_AT_##name);
#define SIZE(type) printf("size %s %zu\n", #type, sizeof(struct sfd_##type));
#define FIELD(type, field) \
    printf("field %s.%s %zu\n", #type, #field, offsetof(struct sfd_##type, field));

#define PARAMETER_KIND(name, code) printf("ParameterKind %s %d\n", #name, code);
#define OPERATION_KIND(name, code) printf("OperationKind %s %d\n", #name, code);
#define LOSS(name, code) printf("Loss %s %d\n", #name, code);
#define INPUT_TYPE(name, code) printf("InputType %s %d\n", #name, code);
#define CONTENT(name, code) printf("Content %s %d\n", #name, code);
#define CODEC(name, code) printf("Codec %s %d\n", #name, code);
#define VALUE_TYPE(name, code) printf("ValueType %s %d\n", #name, code);
#define BUFFER_KIND(name, code) printf("BufferKind %s %d\n", #name, code);
#define ACTION(name, code) printf("Action %s %d\n", #name, code);
#define KERNEL_SET(name, code, text) printf("KernelSet %s %d\n", #name, code);
#define ERROR_CODE(name, code, text) printf("ErrorCode %s %d\n", #name, code);

static void print_format(void)
{
    DEFINE(ARTIFACT_MAGIC)
    DEFINE(ARTIFACT_MAJOR)
    DEFINE(ARTIFACT_MINOR)
    DEFINE(ARTIFACT_HEADER_BYTES)
    DEFINE(PARAMETER_RECORD_BYTES)
    DEFINE(TENSOR_RECORD_BYTES)
    DEFINE(OPERATION_RECORD_BYTES)
    DEFINE(CONTAINER_MAGIC)
    DEFINE(CONTAINER_VERSION)
    DEFINE(CONTAINER_HEADER_BYTES)
    DEFINE(TABLE_ENTRY_BYTES)
    DEFINE(CONTENT_MASK)
    DEFINE(CODEC_SHIFT)
    DEFINE(CODEC_MASK)
    DEFINE(FLAG_NAMES)
    DEFINE(NONE)
    DEFINE(MAX_RECORDS)
    DEFINE(FLAG_COUNT_PADDING)
    DEFINE(FLAG_GELU_TANH)
    SFD_PARAMETER_KINDS(PARAMETER_KIND)
    SFD_OPERATION_KINDS(OPERATION_KIND)
    SFD_LOSSES(LOSS)
    SFD_INPUT_TYPES(INPUT_TYPE)
    SFD_CONTENTS(CONTENT)
    SFD_CODECS(CODEC)
    SFD_VALUE_TYPES(VALUE_TYPE)
}

static void print_operation_record(void)
{
    OFFSET(FLAGS)
    OFFSET(INPUT0)
    OFFSET(INPUT1)
    OFFSET(OUTPUT)
    OFFSET(WEIGHT)
    OFFSET(BIAS)
    OFFSET(MEAN)
    OFFSET(VARIANCE)
    OFFSET(GROUPS)
    OFFSET(KERNEL)
    OFFSET(STRIDE)
    OFFSET(PADDING)
    OFFSET(DILATION)
    OFFSET(EPSILON)
    OFFSET(MOMENTUM)
    OFFSET(NORMALIZED)
    OFFSET(NAME)
    OFFSET(RESERVED)
}

static void print_interface(void)
{
    SFD_ERRORS(ERROR_CODE)
    SFD_BUFFER_KINDS(BUFFER_KIND)
    SFD_ACTIONS(ACTION)
    printf("MemoryChoice FAST %d\n", SFD_MEMORY_FAST);
    printf("MemoryChoice SMALL %d\n", SFD_MEMORY_SMALL);
    printf("MemoryChoice LAYERWISE %d\n", SFD_MEMORY_LAYERWISE);
    SFD_KERNEL_SETS(KERNEL_SET)
    printf("Target INT32 %d\n", SFD_TARGET_INT32);
    printf("Target INT64 %d\n", SFD_TARGET_INT64);
    printf("Target FLOAT32 %d\n", SFD_TARGET_FLOAT32);
    SIZE(problem)
    FIELD(problem, position)
    FIELD(problem, got)
    FIELD(problem, wanted)
    SIZE(buffer)
    FIELD(buffer, offset)
    FIELD(buffer, bytes)
    FIELD(buffer, first_step)
    FIELD(buffer, last_step)
    FIELD(buffer, kind)
    FIELD(buffer, owner)
    SIZE(options)
    FIELD(options, kernels)
    FIELD(options, threads)
    FIELD(options, memory)
    FIELD(options, arena_bytes)
    FIELD(options, layout)
    FIELD(options, layout_bytes)
    SIZE(planned_step)
    FIELD(planned_step, action)
    FIELD(planned_step, operation)
    SIZE(multiply_adds)
    FIELD(multiply_adds, forward)
    FIELD(multiply_adds, d_input)
    FIELD(multiply_adds, d_weight)
    FIELD(multiply_adds, recomputed)
    SIZE(plan)
    FIELD(plan, arena_bytes)
    FIELD(plan, transient_bytes)
    FIELD(plan, live_peak_bytes)
    FIELD(plan, live_peak_step)
    FIELD(plan, buffer_count)
    FIELD(plan, step_count)
    FIELD(plan, step)
    SIZE(counters)
    FIELD(counters, done)
    FIELD(counters, evaluation)
    FIELD(counters, steps)
    SIZE(parameter_view)
    FIELD(parameter_view, value)
    FIELD(parameter_view, gradient)
    FIELD(parameter_view, row_pointer)
    FIELD(parameter_view, column)
    FIELD(parameter_view, rows)
    FIELD(parameter_view, columns)
    FIELD(parameter_view, count)
    FIELD(parameter_view, index_width)
    FIELD(parameter_view, kind)
}

int main(void)
{
    print_format();
    print_operation_record();
    print_interface();
    return 0;
}
