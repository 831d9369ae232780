"""A model small enough to be trained in a test, as an artifact and as states."""

import numpy as np
import pytest

from sparsyfed.edge_runtime import Artifact, DenseTensor, SparseTensor, State
from sparsyfed.edge_runtime.artifact import Operation, Parameter, Tensor
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind

FEATURES, HIDDEN, CLASSES = 6, 10, 3


@pytest.fixture(scope="session")
def artifact() -> Artifact:
    """linear(6, 10), ReLU, linear(10, 3), cross-entropy; 90 prunable positions."""
    weight, dense = ParameterKind.WEIGHT, ParameterKind.DENSE
    return Artifact(
        parameters=(
            Parameter(weight, 2, (HIDDEN, FEATURES, 1, 1), "first.weight"),
            Parameter(dense, 1, (HIDDEN, 1, 1, 1), "first.bias"),
            Parameter(weight, 2, (CLASSES, HIDDEN, 1, 1), "last.weight"),
            Parameter(dense, 1, (CLASSES, 1, 1, 1), "last.bias"),
        ),
        tensors=(
            Tensor(FEATURES, 1, 1, 1),
            Tensor(HIDDEN, 1, 1, 1),
            Tensor(HIDDEN, 1, 1, 1),
            Tensor(CLASSES, 1, 1, 1),
        ),
        operations=(
            Operation(OperationKind.LINEAR, (0,), 1, "first", weight=0, bias=1),
            Operation(OperationKind.RELU, (1,), 2, "relu"),
            Operation(OperationKind.LINEAR, (2,), 3, "last", weight=2, bias=3),
        ),
        loss=Loss.CROSS_ENTROPY,
        output=3,
        beta=1.25,
    )


@pytest.fixture(scope="session")
def dense_state() -> State:
    """State of round 1 with all positions in its support."""
    generator = np.random.default_rng(5)

    def weight(name: str, rows: int, columns: int) -> SparseTensor:
        values = generator.normal(0, 0.5, (rows, columns)).astype(np.float32)
        return SparseTensor.from_dense(name, rows, columns, values.data, keep_zeros=True)

    def bias(name: str, count: int) -> DenseTensor:
        return DenseTensor.from_dense(name, ParameterKind.DENSE, np.zeros(count, np.float32).data)

    tensors = (
        weight("first.weight", HIDDEN, FEATURES),
        bias("first.bias", HIDDEN),
        weight("last.weight", CLASSES, HIDDEN),
        bias("last.bias", CLASSES),
    )
    return State(tensors, round=1)
