"""How many inputs of each prunable layer are kept for its weight gradient."""

from __future__ import annotations

from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.container import SparseTensor
from sparsyfed.edge_runtime.state import State


def keep_count(stored: int, positions: int, elements: int) -> int:
    """How many of a layer input's `elements` are kept: ceil(stored · elements / positions).

    `stored` of the weight's `positions` are in its support. All are exact integers.
    """
    return -(-stored * elements // positions)


def input_sizes(artifact: Artifact) -> list[int]:
    """Elements of one example of each prunable layer's input, in the order of `artifact.prunable`."""
    sizes = {
        operation.weight: artifact.tensors[operation.inputs[0]].size
        for operation in artifact.operations
    }
    return [sizes[index] for index in artifact.prunable]


def kept_inputs(artifact: Artifact, state: State, examples: int) -> list[int]:
    """Inputs that each prunable layer keeps of a batch, in the order of `artifact.prunable`.

    `state` must be one of the artifact.
    """
    counts = []
    for index, size in zip(artifact.prunable, input_sizes(artifact), strict=True):
        tensor = state.tensors[index]
        assert isinstance(tensor, SparseTensor)
        counts.append(keep_count(tensor.count, tensor.rows * tensor.columns, size * examples))
    return counts
