"""Sparse tensors in NumPy: where their entries lie, and which of them to keep."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime.container import SparseTensor, column_type

Floats = NDArray[np.float32]


def entry_positions(tensor: SparseTensor) -> NDArray[np.int64]:
    """Position in the dense weight, row * columns + column, of each stored entry, rising."""
    pointer = np.asarray(tensor.row_pointer, np.int64)
    rows = np.repeat(np.arange(tensor.rows, dtype=np.int64), np.diff(pointer))
    return rows * tensor.columns + np.asarray(tensor.column, np.int64)


def largest(values: Floats, count: int) -> NDArray[np.bool_]:
    """Mark the `count` largest |value|, ties at the lower place first, exact zeros never."""
    size = np.abs(values)
    chosen: NDArray[np.bool_] = size > 0
    if count >= np.count_nonzero(chosen):
        return chosen
    threshold = np.partition(size, len(size) - count)[len(size) - count]
    chosen = size > threshold
    equal = np.flatnonzero(size == threshold)
    chosen[equal[: count - np.count_nonzero(chosen)]] = True
    return chosen


def selected(tensor: SparseTensor, values: Floats, chosen: NDArray[np.bool_]) -> SparseTensor:
    """The tensor with other values for its entries, of which the chosen ones stay."""
    before = np.concatenate([[0], np.cumsum(chosen)])
    return replace(
        tensor,
        row_pointer=_array("I", before[np.asarray(tensor.row_pointer)].astype(np.uint32)),
        column=_array(column_type(tensor.columns), np.asarray(tensor.column)[chosen]),
        value=_array("f", values[chosen]),
    )


def _array(code: str, values: NDArray[Any]) -> array[Any]:
    return array(code, values.tobytes())
