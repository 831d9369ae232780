"""Constants and record layouts of the binary formats: the Python copy of `csrc/sfd_format.h`.

`docs/format.md` is the text. A name here is the name in the C header without its `SFD_` prefix.
"""

import enum
import struct
from collections import Counter
from collections.abc import Sequence

from sparsyfed.edge_runtime.errors import InputError

ARTIFACT_MAGIC = b"SFDA"
ARTIFACT_MAJOR = 1
ARTIFACT_MINOR = 1
CONTAINER_MAGIC = b"SFDV"
CONTAINER_VERSION = 0x0100
CONTENT_MASK = 0x0003
CODEC_SHIFT = 4
CODEC_MASK = 0x000F
FLAG_NAMES = 0x0100

NONE = 0xFFFF
MAX_RECORDS = 4096
FLAG_COUNT_PADDING = 1
FLAG_GELU_TANH = 2

NARROW_COLUMNS = 65536
"""The most columns that 2-byte column indices can name."""


class ParameterKind(enum.IntEnum):
    """What a parameter is for."""

    WEIGHT = 1
    DENSE = 2
    STATISTIC = 3


class OperationKind(enum.IntEnum):
    """What an operation computes."""

    CONVOLUTION = 1
    LINEAR = 2
    BATCH_NORM = 3
    GROUP_NORM = 4
    LAYER_NORM = 5
    RELU = 6
    RELU6 = 7
    GELU = 8
    SILU = 9
    MAX_POOL = 10
    AVERAGE_POOL = 11
    ADAPTIVE_AVERAGE_POOL = 12
    ADD = 13
    RESHAPE = 14


class Loss(enum.IntEnum):
    """The loss that a model is trained with."""

    CROSS_ENTROPY = 1
    MEAN_SQUARED_ERROR = 2


class InputType(enum.IntEnum):
    """What a model's inputs are."""

    FLOAT32 = 0
    INT8 = 1


class Content(enum.IntEnum):
    """What a container holds."""

    STATE = 1
    UPDATE = 2


class Codec(enum.IntEnum):
    """How a container stores its indices."""

    CSR = 0


class ValueType(enum.IntEnum):
    """How a container stores its values."""

    FP32 = 0


ARTIFACT_HEADER = struct.Struct("<4sHHIIHHHHHHfIHhf20x")
"""magic, major, minor, total_bytes, crc32, parameter_count, tensor_count, operation_count, loss,
input, output, beta, names_bytes, input_type, zero_point, scale"""

PARAMETER_RECORD = struct.Struct("<BB2x4IIH6x")
"""kind, rank, four dimensions, name_offset, name_bytes"""

TENSOR_RECORD = struct.Struct("<3IB3x")
"""channels, height, width, rank"""

OPERATION_RECORD = struct.Struct("<18HffIIH2x")
"""kind, flags, input0, input1, output, weight, bias, mean, variance, groups, kernel (2),
stride (2), padding (2), dilation (2), epsilon, momentum, normalized, name_offset, name_bytes"""

CONTAINER_HEADER = struct.Struct("<4sHHI8sIIBBHII")
"""magic, version, flags, round, support_id, positions, nonzeros, rice_parameter, value_type,
tensors, index_bytes, crc32"""

TABLE_ENTRY = struct.Struct("<BB2xIII")
"""kind, index_width, rows, columns, count"""

NAMES_LENGTH = struct.Struct("<I")


def encode_name(name: str) -> bytes:
    """UTF-8 of a name. Raises InputError for a control character or a lone surrogate."""
    if any(ord(letter) < 0x20 or letter == "\x7f" for letter in name):
        raise InputError(f"the name {name!r} holds a control character")
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {name!r} is not text: {error}") from error


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that occurs twice, if one does."""
    counts = Counter(names)
    return next((name for name in names if counts[name] > 1), None)
