/* Training artifacts: docs/format.md, section 1. */
#include "sfd_parse.h"

enum {
    AT_MAJOR = 4,
    AT_TOTAL_BYTES = 8,
    AT_CRC = 12,
    AT_PARAMETER_COUNT = 16,
    AT_TENSOR_COUNT = 18,
    AT_OPERATION_COUNT = 20,
    AT_LOSS = 22,
    AT_INPUT = 24,
    AT_OUTPUT = 26,
    AT_BETA = 28,
    AT_NAMES_BYTES = 32,
    AT_INPUT_TYPE = 36,
    AT_ZERO_POINT = 38,
    AT_SCALE = 40,
    AT_RESERVED = 44
};

enum { PARAMETER_DIMENSIONS = 4, PARAMETER_NAME = 20, PARAMETER_RESERVED = 26 };

static size_t parameter_position(uint32_t index)
{
    return SFD_ARTIFACT_HEADER_BYTES + (size_t)index * SFD_PARAMETER_RECORD_BYTES;
}

static size_t tensor_position(const struct sfd_artifact_view *view, uint32_t index)
{
    return parameter_position(view->parameter_count) + (size_t)index * SFD_TENSOR_RECORD_BYTES;
}

size_t sfd_operation_position(const struct sfd_artifact_view *view, uint32_t index)
{
    return tensor_position(view, view->tensor_count) + (size_t)index * SFD_OPERATION_RECORD_BYTES;
}

void sfd_artifact_input(const struct sfd_artifact_view *view, struct sfd_input *input)
{
    input->type = sfd_load_u16(view->bytes + AT_INPUT_TYPE);
    input->zero_point = (int16_t)sfd_load_u16(view->bytes + AT_ZERO_POINT);
    input->scale = sfd_load_f32(view->bytes + AT_SCALE);
}

void sfd_artifact_parameter(const struct sfd_artifact_view *view, uint32_t index,
                            struct sfd_parameter *parameter)
{
    const uint8_t *record = view->bytes + parameter_position(index);
    uint32_t *dimensions = parameter->dimensions;

    parameter->kind = record[0];
    parameter->rank = record[1];
    for (uint32_t i = 0; i < 4u; ++i)
        dimensions[i] = sfd_load_u32(record + PARAMETER_DIMENSIONS + 4u * i);
    parameter->rows = parameter->kind == SFD_PARAMETER_WEIGHT ? dimensions[0] : 1u;
    parameter->columns = parameter->kind == SFD_PARAMETER_WEIGHT
                             ? dimensions[1] * dimensions[2] * dimensions[3]
                             : dimensions[0];
    parameter->count = parameter->rows * parameter->columns;
}

void sfd_artifact_tensor(const struct sfd_artifact_view *view, uint32_t index,
                         struct sfd_tensor *tensor)
{
    const uint8_t *record = view->bytes + tensor_position(view, index);

    tensor->channels = sfd_load_u32(record);
    tensor->height = sfd_load_u32(record + 4);
    tensor->width = sfd_load_u32(record + 8);
    tensor->rank = record[12];
    tensor->size = tensor->channels * tensor->height * tensor->width;
}

/* An operation begins with the half-words of its record, in their order. */
#define HALF_WORDS (SFD_AT_EPSILON / 2u)
typedef char
    half_words_fit[offsetof(struct sfd_operation, dilation_w) == 4u * (HALF_WORDS - 1u) ? 1 : -1];

void sfd_artifact_operation(const struct sfd_artifact_view *view, uint32_t index,
                            struct sfd_operation *operation)
{
    const uint8_t *record = view->bytes + sfd_operation_position(view, index);
    uint32_t fields[HALF_WORDS];

    for (uint32_t i = 0; i < HALF_WORDS; ++i)
        fields[i] = sfd_load_u16(record + 2u * i);
    memcpy(operation, fields, sizeof fields);
    operation->epsilon = sfd_load_f32(record + SFD_AT_EPSILON);
    operation->momentum = sfd_load_f32(record + SFD_AT_MOMENTUM);
    operation->normalized = sfd_load_u32(record + SFD_AT_NORMALIZED);
}

/* Whether the product of `count` numbers, each at least 1, is over a limit. */
static int is_over(const uint8_t *numbers, uint32_t count, uint32_t limit)
{
    uint64_t product = 1;

    for (uint32_t i = 0; i < count && product <= limit; ++i)
        product *= sfd_load_u32(numbers + 4u * i);
    return product > limit;
}

/* Numbers of one record that must be at least 1, and exactly 1 from number `rank` on. */
static int check_extents(const uint8_t *bytes, size_t at, uint32_t count, uint32_t rank,
                         struct sfd_problem *problem)
{
    for (uint32_t i = 0; i < count; ++i) {
        const uint32_t extent = sfd_load_u32(bytes + at + 4u * i);
        if (extent < 1 || (i >= rank && extent != 1))
            return sfd_fail(problem, SFD_ERR_STRUCTURE, at + 4u * i, extent, 1);
    }
    return SFD_OK;
}

static int check_zero(const uint8_t *bytes, size_t at, size_t count, struct sfd_problem *problem)
{
    for (size_t i = at; i < at + count; ++i)
        if (bytes[i] != 0)
            return sfd_fail(problem, SFD_ERR_STRUCTURE, i, bytes[i], 0);
    return SFD_OK;
}

static int check_parameter(const uint8_t *bytes, size_t at, struct sfd_problem *problem)
{
    const uint32_t kind = bytes[at], rank = bytes[at + 1u];
    const uint32_t least_rank = kind == SFD_PARAMETER_WEIGHT ? 2u : 1u;
    int error;

    if (kind < SFD_PARAMETER_WEIGHT || kind > SFD_PARAMETER_STATISTIC)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, at, kind, SFD_PARAMETER_STATISTIC);
    if (rank < least_rank || rank > 4u)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, at + 1u, rank, rank > 4u ? 4u : least_rank);
    error = check_zero(bytes, at + 2u, 2, problem);
    if (error == SFD_OK)
        error = check_zero(bytes, at + PARAMETER_RESERVED, 6, problem);
    if (error == SFD_OK && kind == SFD_PARAMETER_WEIGHT && rank == 3u &&
        sfd_load_u32(bytes + at + 12u) != 1u)
        error = sfd_fail(problem, SFD_ERR_STRUCTURE, at + 12u, sfd_load_u32(bytes + at + 12u), 1);
    if (error == SFD_OK) {
        const uint32_t used = kind != SFD_PARAMETER_WEIGHT ? 1u : rank == 2u ? 2u : 4u;
        error = check_extents(bytes, at + PARAMETER_DIMENSIONS, 4, used, problem);
    }
    if (error == SFD_OK && is_over(bytes + at + PARAMETER_DIMENSIONS, 4, SFD_MAX_PARAMETER_SIZE)) {
        error = sfd_fail(problem, SFD_ERR_LIMIT, at + PARAMETER_DIMENSIONS,
                         sfd_load_u32(bytes + at + PARAMETER_DIMENSIONS), SFD_MAX_PARAMETER_SIZE);
    }
    return error;
}

/* Every parameter by itself; a state counts all prunable positions in 32 bits. */
static int check_parameters(const struct sfd_artifact_view *view, struct sfd_problem *problem)
{
    uint64_t positions = 0;

    for (uint32_t i = 0; i < view->parameter_count; ++i) {
        struct sfd_parameter parameter;
        const size_t at = parameter_position(i);
        const int error = check_parameter(view->bytes, at, problem);
        if (error != SFD_OK)
            return error;
        sfd_artifact_parameter(view, i, &parameter);
        positions += parameter.kind == SFD_PARAMETER_WEIGHT ? parameter.count : 0u;
        if (positions > UINT32_MAX)
            return sfd_fail(problem, SFD_ERR_LIMIT, at, parameter.count, UINT32_MAX);
    }
    return SFD_OK;
}

static int check_tensors(const struct sfd_artifact_view *view, struct sfd_problem *problem)
{
    for (uint32_t i = 0; i < view->tensor_count; ++i) {
        const size_t at = tensor_position(view, i);
        const uint8_t *record = view->bytes + at;
        const uint32_t rank = record[12];
        int error;

        if (rank < 1u || rank > 3u)
            return sfd_fail(problem, SFD_ERR_STRUCTURE, at + 12u, rank, rank < 1u ? 1u : 3u);
        error = check_extents(view->bytes, at, 3, rank == 1u ? 1u : 3u, problem);
        if (error == SFD_OK && rank == 2u && sfd_load_u32(record + 4) != 1u)
            error = sfd_fail(problem, SFD_ERR_STRUCTURE, at + 4u, sfd_load_u32(record + 4), 1);
        if (error == SFD_OK)
            error = check_zero(view->bytes, at + 13u, 3, problem);
        if (error == SFD_OK && is_over(record, 3, SFD_MAX_TENSOR_SIZE))
            error = sfd_fail(problem, SFD_ERR_LIMIT, at, sfd_load_u32(record), SFD_MAX_TENSOR_SIZE);
        if (error != SFD_OK)
            return error;
    }
    return SFD_OK;
}

/* The name of the record at `at` begins where the names so far ended. */
static int check_name(const struct sfd_artifact_view *view, size_t at, size_t names, size_t *end,
                      struct sfd_problem *problem)
{
    const uint32_t offset = sfd_load_u32(view->bytes + at);
    const uint32_t bytes = sfd_load_u16(view->bytes + at + 4u);
    size_t bad;

    if (offset != *end)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, at, offset, (uint32_t)*end);
    if (bytes > view->size - names - *end) {
        return sfd_fail(problem, SFD_ERR_STRUCTURE, at + 4u, bytes,
                        (uint32_t)(view->size - names - *end));
    }
    bad = sfd_text_check(view->bytes + names + *end, bytes, NULL);
    if (bad != bytes) {
        bad += names + *end;
        return sfd_fail(problem, SFD_ERR_STRUCTURE, bad, view->bytes[bad], 0);
    }
    *end += bytes;
    return SFD_OK;
}

static int check_names(const struct sfd_artifact_view *view, struct sfd_problem *problem)
{
    const size_t names = sfd_operation_position(view, view->operation_count);
    size_t end = 0;
    int error = SFD_OK;

    for (uint32_t i = 0; i < view->parameter_count && error == SFD_OK; ++i)
        error = check_name(view, parameter_position(i) + PARAMETER_NAME, names, &end, problem);
    for (uint32_t i = 0; i < view->operation_count && error == SFD_OK; ++i) {
        const size_t at = sfd_operation_position(view, i) + SFD_AT_NAME;
        error = check_name(view, at, names, &end, problem);
    }
    if (error == SFD_OK && end != view->size - names) {
        error = sfd_fail(problem, SFD_ERR_STRUCTURE, names + end, (uint32_t)end,
                         (uint32_t)(view->size - names));
    }
    return error;
}

static int check_counts(const struct sfd_artifact_view *view, struct sfd_problem *problem)
{
    if (view->parameter_count < 1 || view->parameter_count > SFD_MAX_RECORDS) {
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_PARAMETER_COUNT, view->parameter_count,
                        SFD_MAX_RECORDS);
    }
    if (view->tensor_count < 2 || view->tensor_count > SFD_MAX_RECORDS) {
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_TENSOR_COUNT, view->tensor_count,
                        SFD_MAX_RECORDS);
    }
    if (view->operation_count != view->tensor_count - 1u) {
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_OPERATION_COUNT, view->operation_count,
                        view->tensor_count - 1u);
    }
    return SFD_OK;
}

/* So that each int8 stands for a finite number, and the same one on machines without denormals. */
#define LEAST_SCALE 1.17549435e-38f
#define MOST_SCALE 1e30f

static int check_int8(const uint8_t *bytes, struct sfd_problem *problem)
{
    const int32_t zero_point = (int16_t)sfd_load_u16(bytes + AT_ZERO_POINT);
    const float scale = sfd_load_f32(bytes + AT_SCALE);

    if (zero_point < INT8_MIN || zero_point > INT8_MAX)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_ZERO_POINT, (uint32_t)zero_point, INT8_MAX);
    if (!(scale >= LEAST_SCALE && scale <= MOST_SCALE))
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_SCALE, sfd_load_u32(bytes + AT_SCALE),
                        0x3f800000u);
    return check_zero(bytes, AT_RESERVED, SFD_ARTIFACT_HEADER_BYTES - AT_RESERVED, problem);
}

/* The end of the header: how inputs are given. */
static int check_input(const uint8_t *bytes, struct sfd_problem *problem)
{
    if (sfd_load_u16(bytes + AT_INPUT_TYPE) != SFD_INPUT_INT8)
        return check_zero(bytes, AT_INPUT_TYPE, SFD_ARTIFACT_HEADER_BYTES - AT_INPUT_TYPE, problem);
    if (SFD_HAS_INPUT(INT8))
        return check_int8(bytes, problem);
    return sfd_fail(problem, SFD_ERR_OPERATION, AT_INPUT_TYPE, SFD_INPUT_INT8, SFD_OPERATIONS);
}

/* The fields of the header that decide no length. The output is the last tensor: every other tensor
 * is read by an operation, and none can read the last. */
static int check_header(const struct sfd_artifact_view *view, struct sfd_problem *problem)
{
    const uint8_t *bytes = view->bytes;
    const uint32_t input = sfd_load_u16(bytes + AT_INPUT);

    if (view->loss != SFD_LOSS_CROSS_ENTROPY && view->loss != SFD_LOSS_MEAN_SQUARED_ERROR)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_LOSS, view->loss, SFD_LOSS_CROSS_ENTROPY);
    if ((SFD_OPERATIONS >> (16u + view->loss) & 1u) == 0u)
        return sfd_fail(problem, SFD_ERR_OPERATION, AT_LOSS, view->loss, SFD_OPERATIONS);
    if (input != 0)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_INPUT, input, 0);
    if (view->output != view->tensor_count - 1u) {
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_OUTPUT, view->output,
                        view->tensor_count - 1u);
    }
    if (!(view->beta >= 1.0f && view->beta <= 16.0f)) {
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_BETA, sfd_load_u32(bytes + AT_BETA),
                        0x3f800000u);
    }
    return check_input(bytes, problem);
}

/* Magic, version, total length, checksum: the bytes are those that were written. */
static int check_file(const uint8_t *bytes, size_t size, struct sfd_problem *problem)
{
    uint32_t crc;

    if (bytes == NULL && size > 0)
        return sfd_fail(problem, SFD_ERR_ARGUMENT, 0, 0, SFD_ARTIFACT_HEADER_BYTES);
    if ((uint32_t)size != size)
        return sfd_fail(problem, SFD_ERR_LIMIT, 0, UINT32_MAX, UINT32_MAX);
    if (size >= 4u && sfd_load_u32(bytes) != SFD_ARTIFACT_MAGIC)
        return sfd_fail(problem, SFD_ERR_MAGIC, 0, sfd_load_u32(bytes), SFD_ARTIFACT_MAGIC);
    if (size < SFD_ARTIFACT_HEADER_BYTES)
        return sfd_fail(problem, SFD_ERR_LENGTH, size, (uint32_t)size, SFD_ARTIFACT_HEADER_BYTES);
    if (sfd_load_u16(bytes + AT_MAJOR) != SFD_ARTIFACT_MAJOR) {
        return sfd_fail(problem, SFD_ERR_VERSION, AT_MAJOR, sfd_load_u16(bytes + AT_MAJOR),
                        SFD_ARTIFACT_MAJOR);
    }
    if (sfd_load_u32(bytes + AT_TOTAL_BYTES) != size) {
        return sfd_fail(problem, SFD_ERR_LENGTH, AT_TOTAL_BYTES, (uint32_t)size,
                        sfd_load_u32(bytes + AT_TOTAL_BYTES));
    }
    crc = sfd_crc32_without(bytes, size, AT_CRC);
    if (crc != sfd_load_u32(bytes + AT_CRC))
        return sfd_fail(problem, SFD_ERR_CRC, AT_CRC, crc, sfd_load_u32(bytes + AT_CRC));
    return SFD_OK;
}

static int check_length(const struct sfd_artifact_view *view, struct sfd_problem *problem)
{
    const uint64_t names = sfd_operation_position(view, view->operation_count);
    const uint64_t wanted = names + sfd_load_u32(view->bytes + AT_NAMES_BYTES);

    if (wanted != view->size) {
        return sfd_fail(problem, SFD_ERR_LENGTH, AT_NAMES_BYTES, (uint32_t)view->size,
                        wanted > UINT32_MAX ? UINT32_MAX : (uint32_t)wanted);
    }
    return SFD_OK;
}

int sfd_artifact_open(const uint8_t *artifact, size_t artifact_bytes,
                      struct sfd_artifact_view *view, struct sfd_problem *problem)
{
    int error = check_file(artifact, artifact_bytes, problem);

    if (error != SFD_OK)
        return error;
    view->bytes = artifact;
    view->size = artifact_bytes;
    view->parameter_count = sfd_load_u16(artifact + AT_PARAMETER_COUNT);
    view->tensor_count = sfd_load_u16(artifact + AT_TENSOR_COUNT);
    view->operation_count = sfd_load_u16(artifact + AT_OPERATION_COUNT);
    view->loss = sfd_load_u16(artifact + AT_LOSS);
    view->output = sfd_load_u16(artifact + AT_OUTPUT);
    view->beta = sfd_load_f32(artifact + AT_BETA);
    error = check_counts(view, problem);
    if (error == SFD_OK)
        error = check_length(view, problem);
    if (error == SFD_OK)
        error = check_header(view, problem);
    if (error == SFD_OK)
        error = check_parameters(view, problem);
    if (error == SFD_OK)
        error = check_tensors(view, problem);
    if (error == SFD_OK && SFD_WITH_NAMES)
        error = check_names(view, problem);
    return error != SFD_OK ? error : sfd_graph_check(view, problem);
}

int sfd_artifact_check(const uint8_t *artifact, size_t artifact_bytes, struct sfd_problem *problem)
{
    struct sfd_artifact_view view;
    return sfd_artifact_open(artifact, artifact_bytes, &view, problem);
}
