"""Small models for the tests of the runtime."""

import random
from array import array

import pytest

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter, Tensor
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State

WEIGHT, DENSE, STATISTIC = ParameterKind


def make_classifier() -> Artifact:
    """Convolution, batch norm, ReLU, strided depthwise convolution, pool, linear: 3 classes."""
    return Artifact(
        parameters=(
            Parameter(WEIGHT, 4, (4, 2, 3, 3), "first.weight"),
            Parameter(DENSE, 1, (4, 1, 1, 1), "first.bias"),
            Parameter(DENSE, 1, (4, 1, 1, 1), "norm.weight"),
            Parameter(DENSE, 1, (4, 1, 1, 1), "norm.bias"),
            Parameter(STATISTIC, 1, (4, 1, 1, 1), "norm.running_mean"),
            Parameter(STATISTIC, 1, (4, 1, 1, 1), "norm.running_var"),
            Parameter(WEIGHT, 4, (4, 1, 3, 3), "depthwise.weight"),
            Parameter(WEIGHT, 2, (3, 4, 1, 1), "head.weight"),
            Parameter(DENSE, 1, (3, 1, 1, 1), "head.bias"),
        ),
        tensors=(
            Tensor(2, 6, 5, 3),
            Tensor(4, 6, 5, 3),
            Tensor(4, 6, 5, 3),
            Tensor(4, 6, 5, 3),
            Tensor(4, 3, 3, 3),
            Tensor(4, 1, 1, 3),
            Tensor(4, 1, 1, 1),
            Tensor(3, 1, 1, 1),
        ),
        operations=(
            Operation(
                OperationKind.CONVOLUTION,
                (0,),
                1,
                "first",
                weight=0,
                bias=1,
                groups=1,
                kernel=(3, 3),
                stride=(1, 1),
                padding=(1, 1),
                dilation=(1, 1),
            ),
            Operation(
                OperationKind.BATCH_NORM,
                (1,),
                2,
                "norm",
                weight=2,
                bias=3,
                mean=4,
                variance=5,
                epsilon=2.0**-17,
                momentum=0.125,
            ),
            Operation(OperationKind.RELU, (2,), 3, "relu"),
            Operation(
                OperationKind.CONVOLUTION,
                (3,),
                4,
                "depthwise",
                weight=6,
                groups=4,
                kernel=(3, 3),
                stride=(2, 2),
                padding=(1, 1),
                dilation=(1, 1),
            ),
            Operation(OperationKind.ADAPTIVE_AVERAGE_POOL, (4,), 5, "pool"),
            Operation(OperationKind.RESHAPE, (5,), 6, "flatten"),
            Operation(OperationKind.LINEAR, (6,), 7, "head", weight=7, bias=8),
        ),
        loss=Loss.CROSS_ENTROPY,
        output=7,
        beta=1.25,
    )


def make_regression() -> Artifact:
    """Two linear layers with GELU between them: 5 features to 2 outputs, mean squared error."""
    return Artifact(
        parameters=(
            Parameter(WEIGHT, 2, (8, 5, 1, 1), "hidden.weight"),
            Parameter(DENSE, 1, (8, 1, 1, 1), "hidden.bias"),
            Parameter(WEIGHT, 2, (2, 8, 1, 1), "out.weight"),
        ),
        tensors=(Tensor(5, 1, 1, 1), Tensor(8, 1, 1, 1), Tensor(8, 1, 1, 1), Tensor(2, 1, 1, 1)),
        operations=(
            Operation(OperationKind.LINEAR, (0,), 1, "hidden", weight=0, bias=1),
            Operation(OperationKind.GELU, (1,), 2, "gelu"),
            Operation(OperationKind.LINEAR, (2,), 3, "out", weight=2),
        ),
        loss=Loss.MEAN_SQUARED_ERROR,
        output=3,
        beta=1.0,
    )


def make_state(artifact: Artifact, density: float, seed: int = 0) -> State:
    """State of an artifact with random values at a random support; dense if the density is 1."""
    numbers = random.Random(seed)
    tensors: list[SparseTensor | DenseTensor] = []
    for parameter in artifact.parameters:
        if parameter.kind is not WEIGHT:
            value = 1.0 if parameter.name.endswith(("norm.weight", "running_var")) else 0.0
            values = array("f", [value] * parameter.count)
            tensors.append(DenseTensor(parameter.name, parameter.kind, values))
            continue
        dense = array("f", [numbers.gauss(0.0, 0.5) for _ in range(parameter.count)])
        for place in range(len(dense)):
            if numbers.random() >= density:
                dense[place] = 0.0
        tensors.append(
            SparseTensor.from_dense(
                parameter.name, parameter.rows, parameter.columns, dense, keep_zeros=density == 1.0
            )
        )
    return State(tuple(tensors), round=3)


@pytest.fixture(scope="session")
def classifier() -> Artifact:
    return make_classifier()


@pytest.fixture(scope="session")
def regression() -> Artifact:
    return make_regression()


@pytest.fixture(scope="session")
def dense_state(classifier: Artifact) -> State:
    return make_state(classifier, 1.0)


@pytest.fixture(scope="session")
def sparse_state(classifier: Artifact) -> State:
    return make_state(classifier, 0.4, seed=1)


@pytest.fixture(scope="session")
def regression_state(regression: Artifact) -> State:
    return make_state(regression, 0.5, seed=2)
