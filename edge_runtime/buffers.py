"""Batches and dense tensors as buffers: anything C-contiguous, from NumPy or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast

from sparsyfed.edge_runtime.errors import InputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    class NumericArray(Protocol):
        """A NumPy array, whose buffer type checkers do not see before Python 3.12."""

        @property
        def data(self) -> memoryview:
            """The elements."""

    BufferLike = ReadableBuffer | NumericArray

TYPE_NAMES: Mapping[str, str] = {"f": "float32", "d": "float64", "e": "float16", "b": "int8"}


def contiguous(name: str, data: BufferLike) -> memoryview:
    """View of a buffer. Raises InputError unless it is one, and C-contiguous."""
    try:
        view = memoryview(cast("ReadableBuffer", data))
    except TypeError as error:
        raise InputError(
            f"got {name} of type {type(data).__name__}, wanted a buffer, as a NumPy array is"
        ) from error
    if not view.c_contiguous:
        raise InputError(f"got {name} that is not C-contiguous: copy it first")
    return view


def described(view: memoryview) -> str:
    """Shape and type of a buffer in words."""
    kind = TYPE_NAMES.get(view.format, f"type {view.format!r} ({view.itemsize} bytes)")
    return f"shape {view.shape}, {kind}"
