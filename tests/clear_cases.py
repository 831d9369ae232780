"""Models and batches for which single and double precision decide alike.

Rectifiers, max pools and the Top-K of saved inputs decide: where single and double precision decide
differently, gradients differ by more than rounding, and both are right. So model and batch are
drawn anew until every decision of the reference has a clear margin.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from model_strategies import Floats, Model, random_state
from numpy.typing import NDArray

from sparsyfed.edge_runtime.artifact import Artifact, Operation
from sparsyfed.edge_runtime.format import OperationKind
from sparsyfed.edge_runtime.reference import ReferenceModel

MARGIN = 2e-6  # of the largest value of a tensor: some ten times the error of single precision


def gap(ordered: NDArray[Any], keep: int) -> float:
    """Return the distance between the last value kept and the first one dropped.

    Equal entries come from equal computations, in any precision: then the position decides.
    """
    if not 0 < keep < ordered.size or ordered[keep - 1] in (0.0, ordered[keep]):
        return np.inf
    return float(ordered[keep - 1] - ordered[keep])


def nearest(values: NDArray[Any], threshold: float) -> float:
    """Return the distance to a threshold of the value that is nearest to it, but not on it."""
    distance = np.abs(values - threshold)
    return float(distance[distance > 0].min(initial=np.inf))


def pool_gap(operation: Operation, x: NDArray[Any]) -> float:
    """Return the least distance between the largest value of a window and the next other one."""
    rows, columns = operation.padding
    border = ((0, 0), (0, 0), (rows, rows), (columns, columns))
    padded = np.pad(x, border, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, operation.kernel, axis=(2, 3))
    windows = windows[:, :, :: operation.stride[0], :: operation.stride[1]]
    windows = windows.reshape(-1, operation.kernel[0] * operation.kernel[1])
    below = windows.max(axis=1, keepdims=True) - windows
    return float(below[below > 0].min(initial=np.inf))


def decision_margin(reference: ReferenceModel) -> float:
    """Return the least distance of the last forward to another decision, as a share of the tensor."""
    least = np.inf
    for operation in reference.artifact.operations:
        x = reference.activations[operation.inputs[0]]
        distance = np.inf
        if operation.kind in (OperationKind.CONVOLUTION, OperationKind.LINEAR):
            assert operation.weight is not None
            ordered = np.sort(np.abs(x), axis=None)[::-1]
            distance = gap(ordered, reference.keep_count(operation.weight, x.size))
        elif operation.kind is OperationKind.RELU:
            distance = nearest(x, 0)
        elif operation.kind is OperationKind.RELU6:
            distance = min(nearest(x, 0), nearest(x, 6))
        elif operation.kind is OperationKind.MAX_POOL:
            distance = pool_gap(operation, x)
        least = min(least, distance / (np.abs(x).max() + 1e-30))
    return least


@dataclass(frozen=True)
class Case:
    """A model and a batch for which every decision has a margin."""

    model: Model
    x: Floats
    y: NDArray[Any]


def clear_case(
    draw: Callable[[int], Model], examples: int, seed: int = 0, scale: float = 1
) -> Case:
    """Return the first model drawn from `seed` on, with a batch, whose decisions are clear."""
    for number in range(seed, seed + 200):
        model = draw(number)
        x, y = model.batch(np.random.default_rng(number), examples)
        x *= scale
        reference = ReferenceModel(model.artifact, model.state)
        reference.forward(x, training=True)
        if decision_margin(reference) > MARGIN:
            return Case(model, x, y)
    raise AssertionError("no batch of clear decisions was found: make the model smaller")


def states_of(artifact: Artifact, density: float | list[float]) -> Callable[[int], Model]:
    """Return a way to draw states for this artifact."""
    return lambda seed: Model(
        artifact, random_state(artifact, np.random.default_rng(seed), density)
    )
