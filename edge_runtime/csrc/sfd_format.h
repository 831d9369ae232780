/* The binary formats in C. docs/format.md is the text; edge_runtime/format.py is the Python copy.
 * Lists are X-macros, so that an enum and its names can't drift apart. */
#ifndef SFD_FORMAT_H
#define SFD_FORMAT_H

#define SFD_ARTIFACT_MAGIC 0x41444653u /* "SFDA" */
#define SFD_ARTIFACT_MAJOR 1u
#define SFD_ARTIFACT_MINOR 1u
#define SFD_ARTIFACT_HEADER_BYTES 64u
#define SFD_PARAMETER_RECORD_BYTES 32u
#define SFD_TENSOR_RECORD_BYTES 16u
#define SFD_OPERATION_RECORD_BYTES 56u

#define SFD_CONTAINER_MAGIC 0x56444653u /* "SFDV" */
#define SFD_CONTAINER_VERSION 0x0100u
#define SFD_CONTAINER_HEADER_BYTES 40u
#define SFD_TABLE_ENTRY_BYTES 16u
#define SFD_CONTENT_MASK 0x0003u
#define SFD_CODEC_SHIFT 4u
#define SFD_CODEC_MASK 0x000fu
#define SFD_FLAG_NAMES 0x0100u

#define SFD_NONE 0xffffu
#define SFD_MAX_RECORDS 4096u
#define SFD_FLAG_COUNT_PADDING 1u
#define SFD_FLAG_GELU_TANH 2u

#define SFD_PARAMETER_KINDS(X) \
    X(WEIGHT, 1)               \
    X(DENSE, 2)                \
    X(STATISTIC, 3)

#define SFD_OPERATION_KINDS(X)   \
    X(CONVOLUTION, 1)            \
    X(LINEAR, 2)                 \
    X(BATCH_NORM, 3)             \
    X(GROUP_NORM, 4)             \
    X(LAYER_NORM, 5)             \
    X(RELU, 6)                   \
    X(RELU6, 7)                  \
    X(GELU, 8)                   \
    X(SILU, 9)                   \
    X(MAX_POOL, 10)              \
    X(AVERAGE_POOL, 11)          \
    X(ADAPTIVE_AVERAGE_POOL, 12) \
    X(ADD, 13)                   \
    X(RESHAPE, 14)

#define SFD_LOSSES(X)   \
    X(CROSS_ENTROPY, 1) \
    X(MEAN_SQUARED_ERROR, 2)

#define SFD_INPUT_TYPES(X) \
    X(FLOAT32, 0)          \
    X(INT8, 1)

#define SFD_CONTENTS(X) \
    X(STATE, 1)         \
    X(UPDATE, 2)

#define SFD_CODECS(X) X(CSR, 0)

#define SFD_VALUE_TYPES(X) X(FP32, 0)

#define SFD_ENUM_PARAMETER(name, code) SFD_PARAMETER_##name = code,
#define SFD_ENUM_OPERATION(name, code) SFD_OPERATION_##name = code,
#define SFD_ENUM_LOSS(name, code) SFD_LOSS_##name = code,
#define SFD_ENUM_INPUT(name, code) SFD_INPUT_##name = code,
#define SFD_ENUM_CONTENT(name, code) SFD_CONTENT_##name = code,
#define SFD_ENUM_CODEC(name, code) SFD_CODEC_##name = code,
#define SFD_ENUM_VALUE(name, code) SFD_VALUE_##name = code,

enum sfd_parameter_kind { SFD_PARAMETER_KINDS(SFD_ENUM_PARAMETER) };
enum sfd_operation_kind { SFD_OPERATION_KINDS(SFD_ENUM_OPERATION) };
enum sfd_loss { SFD_LOSSES(SFD_ENUM_LOSS) };
enum sfd_input_type { SFD_INPUT_TYPES(SFD_ENUM_INPUT) };
enum sfd_content { SFD_CONTENTS(SFD_ENUM_CONTENT) };
enum sfd_codec { SFD_CODECS(SFD_ENUM_CODEC) };
enum sfd_value_type { SFD_VALUE_TYPES(SFD_ENUM_VALUE) };

#endif
