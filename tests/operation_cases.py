"""One small net for each operation, in its variants."""

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from model_strategies import Floats, Model, ModelBuilder
from numpy.typing import NDArray

from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.format import Loss, ParameterKind
from sparsyfed.edge_runtime.format import OperationKind as Kind
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State

IMAGE, SIGNAL, FEATURES = Tensor(3, 7, 6, 3), Tensor(4, 1, 11, 2), Tensor(9, 1, 1, 1)
OPERATION_CASES: dict[str, tuple[Tensor, Callable[[ModelBuilder, int], int]]] = {
    "convolution": (IMAGE, lambda n, x: n.convolution(x, 4, (3, 2), bias=True)),
    "strided padded convolution": (
        IMAGE,
        lambda n, x: n.convolution(x, 5, (3, 3), stride=(2, 3), padding=(1, 2)),
    ),
    "dilated convolution": (
        IMAGE,
        lambda n, x: n.convolution(x, 4, (3, 2), padding=(2, 1), dilation=(2, 3)),
    ),
    "grouped convolution": (
        IMAGE,
        lambda n, x: n.convolution(x, 4, (3, 3), padding=(1, 1), groups=2, bias=True),
    ),
    "depthwise convolution": (
        IMAGE,
        lambda n, x: n.convolution(x, 12, (3, 3), stride=(2, 2), padding=(1, 1), groups=6),
    ),
    "convolution past its input": (
        IMAGE,
        lambda n, x: n.convolution(x, 3, (5, 7), padding=(3, 6), stride=(1, 4)),
    ),
    "convolution of very many places": (
        IMAGE,
        lambda n, x: n.convolution(x, 3, (35, 34), padding=(17, 18), stride=(1, 2), groups=3),
    ),
    "1-D convolution": (
        SIGNAL,
        lambda n, x: n.convolution(
            x, 4, (1, 4), stride=(1, 2), padding=(0, 3), dilation=(1, 2), groups=2, bias=True
        ),
    ),
    "linear": (FEATURES, lambda n, x: n.linear(x, 7)),
    "linear over an image": (IMAGE, lambda n, x: n.linear(x, 5, bias=False)),
    "batch norm": (IMAGE, lambda n, x: n.batch_norm(x)),
    "batch norm of a signal": (SIGNAL, lambda n, x: n.batch_norm(x, affine=False)),
    "batch norm of features": (FEATURES, lambda n, x: n.batch_norm(x)),
    "batch norm without statistics": (IMAGE, lambda n, x: n.batch_norm(x, tracked=False)),
    "batch norm added to its input": (IMAGE, lambda n, x: n.add(n.batch_norm(x), x)),
    "batch norm under its input, rectified": (
        IMAGE,
        lambda n, x: n.activation(n.add(x, n.batch_norm(x)), Kind.RELU),
    ),
    "group norm": (IMAGE, lambda n, x: n.group_norm(x, 3)),
    "group norm of a signal": (SIGNAL, lambda n, x: n.group_norm(x, 6, affine=False)),
    "group norm of features": (FEATURES, lambda n, x: n.group_norm(x, 4)),
    "layer norm": (FEATURES, lambda n, x: n.layer_norm(x, 12)),
    "layer norm of rows": (IMAGE, lambda n, x: n.layer_norm(x, 6)),
    "layer norm of images": (IMAGE, lambda n, x: n.layer_norm(x, 42, affine=False)),
    "ReLU": (IMAGE, lambda n, x: n.activation(x, Kind.RELU)),
    "ReLU6": (IMAGE, lambda n, x: n.activation(x, Kind.RELU6)),
    "GELU": (FEATURES, lambda n, x: n.activation(x, Kind.GELU)),
    "GELU by tanh": (FEATURES, lambda n, x: n.activation(x, Kind.GELU, tanh=True)),
    "SiLU": (FEATURES, lambda n, x: n.activation(x, Kind.SILU)),
    "max pool": (IMAGE, lambda n, x: n.pool(x, Kind.MAX_POOL, (2, 3), stride=(2, 1))),
    "max pool with ties": (
        IMAGE,
        lambda n, x: n.pool(
            n.activation(x, Kind.RELU), Kind.MAX_POOL, (3, 3), stride=(1, 2), padding=(1, 1)
        ),
    ),
    "max pool of a signal": (
        SIGNAL,
        lambda n, x: n.pool(x, Kind.MAX_POOL, (1, 3), stride=(1, 2), padding=(0, 1)),
    ),
    "average pool": (
        IMAGE,
        lambda n, x: n.pool(x, Kind.AVERAGE_POOL, (3, 2), stride=(2, 2), padding=(1, 1)),
    ),
    "average pool that counts padding": (
        IMAGE,
        lambda n, x: n.pool(
            x, Kind.AVERAGE_POOL, (3, 2), stride=(2, 2), padding=(1, 1), count_padding=True
        ),
    ),
    "average pool of a signal": (
        SIGNAL,
        lambda n, x: n.pool(x, Kind.AVERAGE_POOL, (1, 4), stride=(1, 3), padding=(0, 2)),
    ),
    "adaptive average pool": (IMAGE, lambda n, x: n.adaptive_pool(x, 3, 4)),
    "adaptive average pool to more": (IMAGE, lambda n, x: n.adaptive_pool(x, 9, 1)),
    "adaptive average pool of a signal": (SIGNAL, lambda n, x: n.adaptive_pool(x, 1, 4)),
    "add": (IMAGE, lambda n, x: n.add(n.activation(x, Kind.SILU), x)),
    "add to itself": (IMAGE, lambda n, x: n.add(x, x)),
    "reshape": (IMAGE, lambda n, x: n.linear(n.reshape(x), 4)),
}


def operation_case(name: str) -> Artifact:
    """Return a net of a 1 x 1 convolution and the operation under test: its dX reaches a weight."""
    entry, build = OPERATION_CASES[name]
    net = ModelBuilder(entry)
    build(net, net.linear(0, 12) if entry.rank == 1 else net.convolution(0, 6, (1, 1), bias=True))
    return net.finish(Loss.MEAN_SQUARED_ERROR)


TIE_CASES = (
    "convolution",
    "grouped convolution",
    "1-D convolution",
    "linear",
    "ReLU",
    "ReLU6",
    "max pool",
    "max pool with ties",
    "max pool of a signal",
)
"""Operations that are exact on integers: where they decide, many values are equal or at the edge."""


def tie_case(name: str, examples: int = 6) -> tuple[Model, Floats, NDArray[Any]]:
    """Return the net of an operation with weights of one, and a batch of small integers."""
    artifact = operation_case(name)
    tensors: list[SparseTensor | DenseTensor] = []
    for parameter in artifact.parameters:
        if parameter.kind is not ParameterKind.WEIGHT:
            zeros = array("f", bytes(4 * parameter.count))
            tensors.append(DenseTensor(parameter.name, parameter.kind, zeros))
            continue
        rows, columns = parameter.rows, parameter.columns
        # Two entries a row: equal sums come from inputs that differ.
        entries = [sorted({row % columns, (row + 1) % columns}) for row in range(rows)]
        column = array("H", [place for row in entries for place in row])
        pointer = array("I", range(0, 2 * rows + 1, 2))
        value = array("f", [1.0] * len(column))
        tensors.append(SparseTensor(parameter.name, rows, columns, pointer, column, value))
    rng = np.random.default_rng(0)
    entry, output = artifact.tensors[0], artifact.tensors[artifact.output]
    x = rng.integers(-4, 5, (examples, *entry.shape)).astype(np.float32)
    y = rng.integers(-2, 3, (examples, *output.shape)).astype(np.float32)
    return Model(artifact, State(tuple(tensors))), x, y
