"""Each rule for artifacts in docs/format.md, broken alone, is refused at the field that breaks it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from checksums import sealed

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter, Tensor
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.format import (
    FLAG_COUNT_PADDING,
    FLAG_GELU_TANH,
    Loss,
    OperationKind,
    ParameterKind,
)
from sparsyfed.edge_runtime.quantization import Quantization

WEIGHT, DENSE, STATISTIC = ParameterKind

FLAGS, INPUT0, INPUT1, OUTPUT, WEIGHT_FIELD, BIAS, MEAN, VARIANCE = range(2, 18, 2)
GROUPS, KERNEL, STRIDE, PADDING, DILATION = 18, 20, 24, 28, 32
EPSILON, MOMENTUM, NORMALIZED, NAME = 36, 40, 44, 48
"""Byte offsets inside an operation record."""

Shape = tuple[int, int, int]
WINDOW: dict[str, Any] = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1)}
OTHER = OperationKind


def vector(kind: ParameterKind, size: int) -> Parameter:
    return Parameter(kind, 1, (size, 1, 1, 1), f"{kind.name}{size}")


def matrix(rank: int, *dimensions: int) -> Parameter:
    out, inner, height, width = (*dimensions, 1, 1)[:4]
    return Parameter(WEIGHT, rank, (out, inner, height, width), "weight")


def single(
    kind: OperationKind, shape: Shape, result: Shape, *parameters: Parameter, **fields: Any
) -> Artifact:
    """An artifact of one operation. Shapes without height and width become vectors."""
    ranks = [1 if extents[1:] == (1, 1) else 3 for extents in (shape, result)]
    tensors = (Tensor(*shape, ranks[0]), Tensor(*result, ranks[1]))
    operation = Operation(kind, fields.pop("inputs", (0,)), 1, "layer", **fields)
    return Artifact(parameters, tensors, (operation,), Loss.MEAN_SQUARED_ERROR, 1, 1.25)


def with_linear(first: Artifact) -> Artifact:
    """The artifact followed by a linear layer, since a file has at least one parameter."""
    size = first.tensors[1].size
    linear = Operation(OperationKind.LINEAR, (1,), 2, "linear", weight=len(first.parameters))
    return dataclasses.replace(
        first,
        parameters=(*first.parameters, matrix(2, 2, size)),
        tensors=(*first.tensors, Tensor(2, 1, 1, 1)),
        operations=(*first.operations, linear),
        output=2,
    )


CONVOLUTION = single(
    OTHER.CONVOLUTION,
    (4, 9, 8),
    (6, 4, 9),
    matrix(4, 6, 2, 3, 2),
    vector(DENSE, 6),
    weight=0,
    bias=1,
    groups=2,
    dilation=(2, 1),
    kernel=(3, 2),
    stride=(2, 1),
    padding=(1, 1),
)
LINEAR = single(
    OTHER.LINEAR, (2, 3, 4), (5, 1, 1), matrix(2, 5, 24), vector(DENSE, 5), weight=0, bias=1
)
BATCH_NORM = single(
    OTHER.BATCH_NORM,
    (4, 3, 3),
    (4, 3, 3),
    vector(DENSE, 4),
    dataclasses.replace(vector(DENSE, 4), name="bias"),
    vector(STATISTIC, 4),
    dataclasses.replace(vector(STATISTIC, 4), name="variance"),
    weight=0,
    bias=1,
    mean=2,
    variance=3,
    epsilon=0.125,
    momentum=0.125,
)
GROUP_NORM = single(
    OTHER.GROUP_NORM, (4, 3, 3), (4, 3, 3), vector(DENSE, 4), weight=0, groups=2, epsilon=0.125
)
LAYER_NORM = single(
    OTHER.LAYER_NORM, (4, 3, 3), (4, 3, 3), vector(DENSE, 9), weight=0, normalized=9, epsilon=0.125
)
MAX_POOL = with_linear(single(OTHER.MAX_POOL, (4, 9, 8), (4, 5, 9), **WINDOW))
WIDE_MAX_POOL = with_linear(
    single(OTHER.MAX_POOL, (1, 512, 256), (1, 2, 1), kernel=(256, 256), stride=(256, 256))
)
AVERAGE_POOL = with_linear(
    single(OTHER.AVERAGE_POOL, (4, 9, 8), (4, 5, 9), flags=FLAG_COUNT_PADDING, **WINDOW)
)
ADAPTIVE = with_linear(single(OTHER.ADAPTIVE_AVERAGE_POOL, (4, 9, 8), (4, 11, 3)))
GELU = with_linear(single(OTHER.GELU, (4, 3, 3), (4, 3, 3), flags=FLAG_GELU_TANH))
RELU = with_linear(single(OTHER.RELU, (4, 3, 3), (4, 3, 3)))
ADD = with_linear(single(OTHER.ADD, (4, 3, 3), (4, 3, 3), inputs=(0, 0)))
RESHAPE = with_linear(single(OTHER.RESHAPE, (4, 3, 3), (6, 3, 2)))
SIGNAL = dataclasses.replace(
    CONVOLUTION,
    parameters=(matrix(3, 6, 2, 1, 3), vector(DENSE, 6)),
    tensors=(Tensor(4, 1, 8, 2), Tensor(6, 1, 4, 2)),
    operations=(
        dataclasses.replace(
            CONVOLUTION.operations[0],
            kernel=(1, 3),
            stride=(1, 2),
            padding=(0, 1),
            dilation=(1, 1),
        ),
    ),
)

VALID = {name: value for name, value in list(globals().items()) if isinstance(value, Artifact)}


def refused_at(data: bytes, position: int) -> None:
    with pytest.raises(FormatError) as caught:
        Artifact.decode(data)
    found = re.search(r"at byte (\d+):", str(caught.value))
    assert found is not None, caught.value
    assert int(found[1]) == position, caught.value


@pytest.mark.parametrize("artifact", VALID.values(), ids=VALID)
def test_the_rules_allow_what_the_format_has(artifact: Artifact) -> None:
    assert Artifact.decode(artifact.encode()) == artifact


@pytest.mark.parametrize(
    ("artifact", "changes", "field"),
    [
        (CONVOLUTION, {"kind": 0}, 0),
        (CONVOLUTION, {"kind": 15}, 0),
        (CONVOLUTION, {"inputs": (1,)}, INPUT0),
        (CONVOLUTION, {"inputs": (0, 0)}, INPUT1),
        (CONVOLUTION, {"output": 0}, OUTPUT),
        (CONVOLUTION, {"flags": FLAG_COUNT_PADDING}, FLAGS),
        (CONVOLUTION, {"weight": None}, WEIGHT_FIELD),
        (CONVOLUTION, {"weight": 1}, WEIGHT_FIELD),
        (CONVOLUTION, {"weight": 65534}, WEIGHT_FIELD),
        (CONVOLUTION, {"bias": 0}, BIAS),
        (CONVOLUTION, {"mean": 1}, MEAN),
        (CONVOLUTION, {"variance": 1}, VARIANCE),
        (CONVOLUTION, {"groups": 0}, GROUPS),
        (CONVOLUTION, {"groups": 3}, GROUPS),
        (CONVOLUTION, {"groups": 4}, GROUPS),
        (CONVOLUTION, {"groups": 1}, WEIGHT_FIELD),
        (CONVOLUTION, {"kernel": (0, 2)}, KERNEL),
        (CONVOLUTION, {"kernel": (3, 0)}, KERNEL + 2),
        (CONVOLUTION, {"kernel": (7, 2)}, KERNEL),
        (CONVOLUTION, {"kernel": (2, 2)}, OUTPUT),
        (CONVOLUTION, {"stride": (0, 1)}, STRIDE),
        (CONVOLUTION, {"stride": (1, 1)}, OUTPUT),
        (CONVOLUTION, {"padding": (1, 0)}, OUTPUT),
        (CONVOLUTION, {"dilation": (0, 1)}, DILATION),
        (CONVOLUTION, {"dilation": (2, 2)}, OUTPUT),
        (CONVOLUTION, {"epsilon": 1e-5}, EPSILON),
        (CONVOLUTION, {"momentum": 0.5}, MOMENTUM + 2),
        (CONVOLUTION, {"normalized": 1}, NORMALIZED),
        (SIGNAL, {"kernel": (2, 3)}, KERNEL),
        (SIGNAL, {"stride": (2, 2)}, STRIDE),
        (SIGNAL, {"padding": (1, 1)}, PADDING),
        (SIGNAL, {"dilation": (2, 1)}, DILATION),
        (BATCH_NORM, {"epsilon": 0.0}, EPSILON),
        (BATCH_NORM, {"epsilon": -1e-5}, EPSILON),
        (BATCH_NORM, {"epsilon": float("inf")}, EPSILON),
        (BATCH_NORM, {"momentum": 1.5}, MOMENTUM),
        (BATCH_NORM, {"momentum": float("nan")}, MOMENTUM),
        (BATCH_NORM, {"mean": None}, VARIANCE),
        (BATCH_NORM, {"mean": 0}, MEAN),
        (BATCH_NORM, {"variance": 2}, VARIANCE),
        (BATCH_NORM, {"weight": 2}, WEIGHT_FIELD),
        (GROUP_NORM, {"groups": 0}, GROUPS),
        (GROUP_NORM, {"groups": 3}, GROUPS),
        (LAYER_NORM, {"normalized": 0}, NORMALIZED),
        (LAYER_NORM, {"normalized": 7}, NORMALIZED),
        (LAYER_NORM, {"normalized": 3}, WEIGHT_FIELD),
        (MAX_POOL, {"padding": (1, 2)}, PADDING + 2),
        (MAX_POOL, {"dilation": (1, 1)}, DILATION),
        (MAX_POOL, {"flags": FLAG_COUNT_PADDING}, FLAGS),
        (WIDE_MAX_POOL, {"kernel": (257, 256)}, KERNEL),
        (AVERAGE_POOL, {"flags": FLAG_GELU_TANH}, FLAGS),
        (AVERAGE_POOL, {"kernel": (12, 2), "padding": (1, 1)}, KERNEL),
        (ADAPTIVE, {"kernel": (1, 1)}, KERNEL),
        (GELU, {"flags": 4}, FLAGS),
        (RELU, {"weight": 0}, WEIGHT_FIELD),
        (RELU, {"output": 0}, OUTPUT),
        (ADD, {"inputs": (0,)}, INPUT1),
        (ADD, {"inputs": (0, 1)}, INPUT1),
        (RESHAPE, {"inputs": (0, 0)}, INPUT1),
    ],
)
def test_a_wrong_operation_is_refused_at_its_field(
    artifact: Artifact, changes: dict[str, Any], field: int
) -> None:
    first, *rest = artifact.operations
    changed = dataclasses.replace(first, **changes)
    data = dataclasses.replace(artifact, operations=(changed, *rest)).encode()
    record = 64 + 32 * len(artifact.parameters) + 16 * len(artifact.tensors)
    refused_at(data, record + field)


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (Tensor(4, 9, 0, 3), 8),
        (Tensor(4, 9, 8, 4), 12),
        (Tensor(4, 9, 8, 0), 12),
        (Tensor(4, 9, 8, 2), 4),
        (Tensor(4, 9, 8, 1), 4),
        (Tensor(2**16, 2**6, 2**5, 3), 0),
        (Tensor(2**31, 2**31, 4, 3), 0),
    ],
)
def test_a_wrong_tensor_is_refused_at_its_field(tensor: Tensor, field: int) -> None:
    data = dataclasses.replace(CONVOLUTION, tensors=(tensor, CONVOLUTION.tensors[1])).encode()
    refused_at(data, 64 + 2 * 32 + field)


@pytest.mark.parametrize(
    ("artifact", "output", "field"),
    [
        (CONVOLUTION, Tensor(6, 4, 8, 3), OUTPUT),
        (CONVOLUTION, Tensor(6, 1, 4, 2), OUTPUT),
        (LINEAR, Tensor(5, 1, 1, 3), OUTPUT),
        (LINEAR, Tensor(4, 1, 1, 1), WEIGHT_FIELD),
        (BATCH_NORM, Tensor(4, 3, 2, 3), OUTPUT),
        (MAX_POOL, Tensor(3, 5, 9, 3), OUTPUT),
        (ADAPTIVE, Tensor(3, 11, 3, 3), OUTPUT),
        (ADAPTIVE, Tensor(4, 1, 1, 1), OUTPUT),
        (RELU, Tensor(36, 1, 1, 1), OUTPUT),
        (RESHAPE, Tensor(35, 1, 1, 1), OUTPUT),
    ],
)
def test_an_output_of_the_wrong_shape_is_refused(
    artifact: Artifact, output: Tensor, field: int
) -> None:
    first, _, *rest = artifact.tensors
    data = dataclasses.replace(artifact, tensors=(first, output, *rest)).encode()
    refused_at(data, 64 + 32 * len(artifact.parameters) + 16 * len(artifact.tensors) + field)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": 0}, 0),
        ({"kind": 4}, 0),
        ({"rank": 1}, 1),
        ({"rank": 5}, 1),
        ({"dimensions": (0, 2, 3, 2)}, 4),
        ({"rank": 2}, 12),
        ({"rank": 3}, 12),
        ({"dimensions": (2**16, 2**15, 1, 1)}, 4),
        ({"dimensions": (2**31, 2**31, 2**31, 4)}, 4),
    ],
)
def test_a_wrong_parameter_is_refused_at_its_field(changes: dict[str, Any], field: int) -> None:
    first, *rest = CONVOLUTION.parameters
    changed = dataclasses.replace(first, **changes)
    refused_at(dataclasses.replace(CONVOLUTION, parameters=(changed, *rest)).encode(), 64 + field)


@pytest.mark.parametrize(
    ("index", "rank", "field"), [(0, 3, WEIGHT_FIELD), (0, 4, WEIGHT_FIELD), (1, 2, BIAS)]
)
def test_a_parameter_of_another_rank_is_refused(index: int, rank: int, field: int) -> None:
    parameters = list(LINEAR.parameters)
    parameters[index] = dataclasses.replace(parameters[index], rank=rank)
    data = dataclasses.replace(LINEAR, parameters=tuple(parameters)).encode()
    refused_at(data, 64 + 2 * 32 + 2 * 16 + field)


def test_the_second_input_of_an_addition_counts_as_read() -> None:
    first, last = RELU.operations
    again = dataclasses.replace(first, output=2)
    addition = Operation(OperationKind.ADD, (2, 1), 3, "add")
    last = dataclasses.replace(last, inputs=(3,), output=4)
    shape, _, result = RELU.tensors
    both = dataclasses.replace(
        RELU,
        tensors=(shape, shape, shape, shape, result),
        operations=(first, again, addition, last),
        output=4,
    )
    assert Artifact.decode(both.encode()) == both


@pytest.mark.parametrize("artifact", [CONVOLUTION, MAX_POOL, ADAPTIVE])
def test_a_window_over_a_vector_is_refused(artifact: Artifact) -> None:
    tensors = (Tensor(4, 1, 1, 1), *artifact.tensors[1:])
    data = dataclasses.replace(artifact, tensors=tensors).encode()
    refused_at(data, 64 + 32 * len(artifact.parameters) + 16 * len(tensors) + INPUT0)


def test_an_addition_of_two_shapes_is_refused() -> None:
    first, last = RESHAPE.operations
    addition = Operation(OperationKind.ADD, (1, 0), 2, "add")
    shape, changed, result = RESHAPE.tensors
    both = dataclasses.replace(
        RESHAPE,
        tensors=(shape, changed, changed, result),
        operations=(first, addition, dataclasses.replace(last, inputs=(2,), output=3)),
        output=3,
    )
    refused_at(both.encode(), 64 + 32 + 4 * 16 + 56 + INPUT1)


def test_more_positions_than_a_state_can_count_are_refused() -> None:
    weights = tuple(Parameter(WEIGHT, 2, (2**31 - 1, 1, 1, 1), str(i)) for i in range(3))
    refused_at(dataclasses.replace(LINEAR, parameters=weights).encode(), 64 + 2 * 32)


def test_an_unused_parameter_is_refused() -> None:
    more = dataclasses.replace(CONVOLUTION, parameters=(*CONVOLUTION.parameters, vector(DENSE, 3)))
    refused_at(more.encode(), 64 + 2 * 32)


def test_an_operation_that_nobody_reads_is_refused() -> None:
    first, second = RELU.operations
    skipping = dataclasses.replace(second, inputs=(0,))
    data = dataclasses.replace(RELU, operations=(first, skipping)).encode()
    refused_at(data, 64 + 32 + 3 * 16 + OUTPUT)


def test_cross_entropy_wants_a_vector() -> None:
    data = dataclasses.replace(CONVOLUTION, loss=Loss.CROSS_ENTROPY).encode()
    refused_at(data, 64 + 2 * 32 + 2 * 16 + OUTPUT)


@pytest.mark.parametrize(
    ("offset", "value", "width"),
    [
        (4, 2, 2),
        (8, 1, 4),
        (16, 0, 2),
        (16, 4097, 2),
        (18, 1, 2),
        (20, 2, 2),
        (22, 0, 2),
        (22, 3, 2),
        (24, 1, 2),
        (26, 0, 2),
        (26, 2, 2),
        (28, 0x3F000000, 4),
        (28, 0x41800001, 4),
        (28, 0x7FC00000, 4),
        (32, 1, 4),
        (36, 2, 2),
        (38, 1, 2),
        (43, 63, 1),
        (63, 1, 1),
    ],
)
def test_a_wrong_header_field_is_refused(offset: int, value: int, width: int) -> None:
    data = bytearray(CONVOLUTION.encode())
    data[offset : offset + width] = value.to_bytes(width, "little")
    refused_at(sealed(data), offset)


@pytest.mark.parametrize(
    ("offset", "value", "width"),
    [
        (38, 128, 2),
        (38, 0xFF7F, 2),
        (40, 0, 4),
        (40, 0x007FFFFF, 4),
        (40, 0x7F800000, 4),
        (40, 0x7FC00000, 4),
        (40, 0xBF800000, 4),
        (44, 1, 1),
    ],
)
def test_a_wrong_form_of_int8_inputs_is_refused(offset: int, value: int, width: int) -> None:
    data = bytearray(dataclasses.replace(CONVOLUTION, quantization=Quantization(0.5)).encode())
    data[offset : offset + width] = value.to_bytes(width, "little")
    refused_at(sealed(data), offset)


@pytest.mark.parametrize(
    ("offset", "written", "position"),
    [
        (64 + 2, b"\1", 64 + 2),
        (64 + 31, b"\1", 64 + 31),
        (64 + 20, b"\1", 64 + 20),
        (64 + 24, b"\xff\xff", 64 + 24),
        (64 + 2 * 32 + 13, b"\1", 64 + 2 * 32 + 13),
        (64 + 2 * 32 + 2 * 16 + 54, b"\1", 64 + 2 * 32 + 2 * 16 + 54),
        (64 + 2 * 32 + 2 * 16 + NAME, b"\0", 64 + 2 * 32 + 2 * 16 + NAME),
        (-1, b"\xff", None),
        (-1, b"\n", None),
    ],
)
def test_holes_reserved_bytes_and_bad_names_are_refused(
    offset: int, written: bytes, position: int | None
) -> None:
    data = bytearray(CONVOLUTION.encode())
    offset %= len(data)
    data[offset : offset + len(written)] = written
    refused_at(sealed(data), offset if position is None else position)
