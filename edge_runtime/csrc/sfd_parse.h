/* Parsed views: borrowed bytes plus the header's numbers. Valid only after ..._open gave SFD_OK. */
#ifndef SFD_PARSE_H
#define SFD_PARSE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "sfd.h"

/* Limits that keep every later product and sum inside 64 bits. */
#define SFD_MAX_TENSOR_SIZE (UINT32_C(1) << 26)
#define SFD_MAX_PARAMETER_SIZE UINT32_C(0x7fffffff)
#define SFD_MAX_WINDOW 65536u /* of a max pool: its winner is kept as a 16-bit place */

/* What a build has: operations by the bit `code`, losses by 16 + `code`, types of inputs but float32,
 * which all have, by 24 + `code`. A firmware
 * for one model may name what it needs: -D'SFD_OPERATIONS=(SFD_OPERATION_BIT(LINEAR) |
 * SFD_LOSS_BIT(CROSS_ENTROPY))'. The dispatch of the forward, of the backward and of the loss, and the
 * table of the portable kernels, leave out the others. */
#define SFD_OPERATION_BIT(name) (UINT32_C(1) << SFD_OPERATION_##name)
#define SFD_LOSS_BIT(name) (UINT32_C(1) << (16 + SFD_LOSS_##name))
#define SFD_INPUT_BIT(name) (UINT32_C(1) << (24 + SFD_INPUT_##name))
#define SFD_OR_OPERATION(name, code) | SFD_OPERATION_BIT(name)
#define SFD_OR_LOSS(name, code) | SFD_LOSS_BIT(name)
#if !defined(SFD_OPERATIONS)
#define SFD_OPERATIONS \
    (SFD_INPUT_BIT(INT8) SFD_OPERATION_KINDS(SFD_OR_OPERATION) SFD_LOSSES(SFD_OR_LOSS))
#endif
#define SFD_HAS(name) ((SFD_OPERATIONS & SFD_OPERATION_BIT(name)) != 0u)
#define SFD_HAS_LOSS(name) ((SFD_OPERATIONS & SFD_LOSS_BIT(name)) != 0u)
#define SFD_HAS_INPUT(name) ((SFD_OPERATIONS & SFD_INPUT_BIT(name)) != 0u)
#define SFD_HAS_NORM (SFD_HAS(GROUP_NORM) || SFD_HAS(LAYER_NORM))
#define SFD_HAS_SMOOTH (SFD_HAS(GELU) || SFD_HAS(SILU))
#define SFD_HAS_RECTIFIER (SFD_HAS(RELU) || SFD_HAS(RELU6))
#define SFD_HAS_AVERAGE (SFD_HAS(AVERAGE_POOL) || SFD_HAS(ADAPTIVE_AVERAGE_POOL))

/* Whether names are checked, and whether a refusal says where in a file and why. A board has nobody who
 * reads names, and a host that finds the same place in the same bytes: its firmware leaves out both. */
#if !defined(SFD_WITH_NAMES)
#define SFD_WITH_NAMES 1
#endif
#if !defined(SFD_WITH_PLACES)
#define SFD_WITH_PLACES 1
#endif

/* How a model takes its inputs: int8 q stands for scale * (q - zero_point). */
struct sfd_input {
    uint32_t type; /* enum sfd_input_type */
    int32_t zero_point;
    float scale;
};

struct sfd_artifact_view {
    const uint8_t *bytes;
    size_t size;
    uint32_t parameter_count, tensor_count, operation_count;
    uint32_t loss, output;
    float beta;
};

/* Bytes of one element of a batch. */
static inline uint32_t sfd_input_element_bytes(const struct sfd_input *input)
{
    return SFD_HAS_INPUT(INT8) && input->type == SFD_INPUT_INT8 ? 1u : 4u;
}

/* Prunable: rows, columns = product of the other dimensions, count = rows * columns.
 * Dense: rows 1, columns = count = number of elements. */
struct sfd_parameter {
    uint32_t kind, rank, dimensions[4], rows, columns, count;
};

struct sfd_tensor {
    uint32_t channels, height, width, rank;
    uint32_t size; /* elements of one example */
};

struct sfd_operation {
    uint32_t kind, flags, input0, input1, output, weight, bias, mean, variance, groups;
    uint32_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    uint32_t normalized;
    float epsilon, momentum;
};

struct sfd_container_view {
    const uint8_t *bytes;
    size_t size;
    uint32_t content, round, tensors, positions, nonzeros, index_offset, index_bytes, value_offset;
    uint8_t support_id[8];
};

/* One tensor of a container. The offsets count bytes from the start of the container; a dense
 * tensor has no row pointers and no columns, and its first two offsets are equal. */
struct sfd_entry {
    uint32_t kind, index_width, rows, columns, count;
    uint32_t row_pointer_offset, column_offset, value_offset;
};

/* Byte offsets inside an operation record. */
enum {
    SFD_AT_FLAGS = 2,
    SFD_AT_INPUT0 = 4,
    SFD_AT_INPUT1 = 6,
    SFD_AT_OUTPUT = 8,
    SFD_AT_WEIGHT = 10,
    SFD_AT_BIAS = 12,
    SFD_AT_MEAN = 14,
    SFD_AT_VARIANCE = 16,
    SFD_AT_GROUPS = 18,
    SFD_AT_KERNEL = 20,
    SFD_AT_STRIDE = 24,
    SFD_AT_PADDING = 28,
    SFD_AT_DILATION = 32,
    SFD_AT_EPSILON = 36,
    SFD_AT_MOMENTUM = 40,
    SFD_AT_NORMALIZED = 44,
    SFD_AT_NAME = 48,
    SFD_AT_RESERVED = 54
};

/* Check all of an artifact and fill the view. */
int sfd_artifact_open(const uint8_t *artifact, size_t artifact_bytes,
                      struct sfd_artifact_view *view, struct sfd_problem *problem);
void sfd_artifact_input(const struct sfd_artifact_view *view, struct sfd_input *input);
void sfd_artifact_parameter(const struct sfd_artifact_view *view, uint32_t index,
                            struct sfd_parameter *parameter);
void sfd_artifact_tensor(const struct sfd_artifact_view *view, uint32_t index,
                         struct sfd_tensor *tensor);
void sfd_artifact_operation(const struct sfd_artifact_view *view, uint32_t index,
                            struct sfd_operation *operation);

/* Byte offset of the record of an operation. */
size_t sfd_operation_position(const struct sfd_artifact_view *view, uint32_t index);

/* The part of the check that looks at operations: each fits its tensors and its parameters. The
 * records before the operations must have been checked. */
int sfd_graph_check(const struct sfd_artifact_view *view, struct sfd_problem *problem);

/* Check all of a state or an update and fill the view. */
int sfd_container_open(const uint8_t *data, size_t data_bytes, struct sfd_container_view *view,
                       struct sfd_problem *problem);

/* Walk over the tensors: `first` sets the entry to tensor 0, `next` takes it from tensor index - 1
 * to tensor index < tensors. */
void sfd_container_entry_first(const struct sfd_container_view *view, struct sfd_entry *entry);
void sfd_container_entry_next(const struct sfd_container_view *view, uint32_t index,
                              struct sfd_entry *entry);

/* The container is a state (else SFD_ERR_STRUCTURE) with exactly the parameters of the artifact
 * (else SFD_ERR_MISMATCH). */
int sfd_state_matches(const struct sfd_artifact_view *artifact,
                      const struct sfd_container_view *state, struct sfd_problem *problem);

/* CRC-32 as in zlib: begin with crc = 0, feed the result back to continue. */
uint32_t sfd_crc32(uint32_t crc, const uint8_t *data, size_t size);

/* CRC-32 of a file whose own checksum at `field` counts as four zero bytes. */
uint32_t sfd_crc32_without(const uint8_t *data, size_t size, size_t field);

/* Offset of the first byte that is not well-formed UTF-8 or is a control character, or `size` if
 * there is none. Line feeds are counted in *lines instead, unless it is NULL. */
size_t sfd_text_check(const uint8_t *text, size_t size, uint32_t *lines);

/* Note where a check stopped and return `error`. */
static inline int sfd_fail(struct sfd_problem *problem, int error, size_t position, uint32_t got,
                           uint32_t wanted)
{
    if (SFD_WITH_PLACES && problem != NULL) {
        problem->position = (uint32_t)position;
        problem->got = got;
        problem->wanted = wanted;
    }
    return error;
}

/* Note how much memory there was and is wanted, and return `error`. */
static inline int sfd_fail_for_memory(struct sfd_problem *problem, int error, uint32_t got,
                                      uint32_t wanted)
{
    if (problem != NULL) {
        problem->position = 0u;
        problem->got = got;
        problem->wanted = wanted;
    }
    return error;
}

/* Where a word may lie at any address, to load or store it is one instruction: less than a call. */
#if defined(__ARM_FEATURE_UNALIGNED)
#define SFD_WORD_ACCESS static inline __attribute__((always_inline))
#else
#define SFD_WORD_ACCESS static inline
#endif

SFD_WORD_ACCESS uint32_t sfd_load_u16(const uint8_t *from)
{
    return (uint32_t)from[0] | (uint32_t)from[1] << 8;
}

SFD_WORD_ACCESS uint32_t sfd_load_u32(const uint8_t *from)
{
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 |
           (uint32_t)from[3] << 24;
}

/* Whether two fields that identify a support are the same 8 bytes. */
static inline int sfd_same_support(const uint8_t *one, const uint8_t *other)
{
    return sfd_load_u32(one) == sfd_load_u32(other) &&
           sfd_load_u32(one + 4) == sfd_load_u32(other + 4);
}

SFD_WORD_ACCESS float sfd_load_f32(const uint8_t *from)
{
    const uint32_t bits = sfd_load_u32(from);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Column of stored entry k of a sparse tensor. */
static inline uint32_t sfd_container_column(const uint8_t *container, const struct sfd_entry *entry,
                                            uint32_t k)
{
    const uint8_t *columns = container + entry->column_offset;
    return entry->index_width == 2u ? sfd_load_u16(columns + (size_t)k * 2u)
                                    : sfd_load_u32(columns + (size_t)k * 4u);
}

SFD_WORD_ACCESS void sfd_store_u16(uint8_t *to, uint32_t value)
{
    to[0] = (uint8_t)(value & 0xffu);
    to[1] = (uint8_t)(value >> 8 & 0xffu);
}

SFD_WORD_ACCESS void sfd_store_u32(uint8_t *to, uint32_t value)
{
    to[0] = (uint8_t)(value & 0xffu);
    to[1] = (uint8_t)(value >> 8 & 0xffu);
    to[2] = (uint8_t)(value >> 16 & 0xffu);
    to[3] = (uint8_t)(value >> 24);
}

SFD_WORD_ACCESS void sfd_store_f32(uint8_t *to, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    sfd_store_u32(to, bits);
}

#endif
