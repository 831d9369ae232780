"""Batches of examples as callers give them, checked where they come in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.buffers import contiguous, described
from sparsyfed.edge_runtime.container import FLOAT_BYTES
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.format import Loss

if TYPE_CHECKING:
    from sparsyfed.edge_runtime.buffers import BufferLike
    from sparsyfed.edge_runtime.quantization import Quantization


@dataclass(frozen=True, slots=True)
class Batch:
    """Checked buffers of a batch; the views keep the memory alive."""

    x: memoryview
    y: memoryview
    target: _native.Target
    examples: int


def check_batch(
    artifact: Artifact, x: BufferLike, y: BufferLike, batch_size: int | None = None
) -> Batch:
    """The batch of two buffers, checked but for its values; `batch_size` is the most examples.

    Raises InputError.
    """
    batch = _check_buffers(artifact, x, y)
    if batch_size is not None and batch.examples > batch_size:
        raise InputError(
            f"got a batch of {batch.examples} examples, wanted {batch_size} at most: "
            "the session is planned for that"
        )
    return batch


DIVERGENCE = {
    "step": "the loss, a gradient or a new value is not finite; the step was not applied: lower the "
    "learning rate, or check that the inputs are normalised",
    "gradients": "the loss or a gradient is not finite: check that the inputs are normalised",
    "evaluation": "the loss is not finite: check that the inputs are normalised",
}


def divergence(action: str) -> str:
    """What a DivergedError says, on every engine."""
    return f"{action}: {DIVERGENCE[action]}"


def refuse_values(artifact: Artifact, batch: Batch, action: str) -> None:
    """Raise InputError for the first value of a checked batch that no model, or not this one, takes."""
    values = [("x", batch.x)] if artifact.quantization is None else []
    if artifact.loss is Loss.MEAN_SQUARED_ERROR:
        values.append(("y", batch.y))
    for name, view in values:
        size = view.nbytes // FLOAT_BYTES // batch.examples
        for place, value in enumerate(view.cast("B").cast("f")):
            if not math.isfinite(value):
                raise InputError(
                    f"{action}: got {name} with a value that is not finite: {value} in example "
                    f"{place // size}"
                )
    if artifact.loss is Loss.CROSS_ENTROPY:
        classes = artifact.tensors[artifact.output].size
        for place, label in enumerate(batch.y):
            if not 0 <= label < classes:
                raise InputError(
                    f"{action}: got y with a label outside 0 to {classes - 1}: {label} for example "
                    f"{place}"
                )


def _check_buffers(artifact: Artifact, x: BufferLike, y: BufferLike) -> Batch:
    x_view, examples = model_inputs(x, artifact.tensors[0], artifact.quantization)
    if artifact.loss is Loss.MEAN_SQUARED_ERROR:
        y_view = batch_buffer("y", y)
        size = artifact.tensors[artifact.output].size
        if y_view.format != "f" or y_view.nbytes != examples * size * FLOAT_BYTES:
            raise InputError(
                f"got y of {described(y_view)}, wanted float32 with {size} values for each of "
                f"{examples} examples"
            )
        return Batch(x_view, y_view, _native.Target.FLOAT32, examples)
    y_view = batch_buffer("y", y)
    targets = {4: _native.Target.INT32, 8: _native.Target.INT64}
    target = targets.get(y_view.itemsize) if y_view.format in ("i", "l", "q") else None
    if target is None or y_view.shape != (examples,):
        raise InputError(
            f"got y of {described(y_view)}, wanted int32 or int64 of shape ({examples},): one "
            "label for each example"
        )
    return Batch(x_view, y_view, target, examples)


def batch_buffer(name: str, data: BufferLike) -> memoryview:
    """View of a buffer that the core can read where it lies."""
    view = contiguous(name, data)
    if _native.address(view) % view.itemsize:
        raise InputError(
            f"got {name} at an address that is no multiple of {view.itemsize}: copy it first"
        )
    return view


def model_inputs(
    x: BufferLike, tensor: Tensor, quantization: Quantization | None = None
) -> tuple[memoryview, int]:
    """View of the inputs of a batch, and its number of examples.

    With a quantization they are int8; float32 is rounded to it.
    """
    view = batch_buffer("x", x)
    shape = view.shape or ()
    examples, rest = divmod(view.nbytes, tensor.size * view.itemsize)
    flat = len(shape) == 1 and rest == 0
    types = ("f",) if quantization is None else ("f", "b")
    fits = flat or shape == (examples, *tensor.shape)
    if view.format not in types or examples == 0 or not fits:
        wanted = ", ".join(map(str, ("n", *tensor.shape)))
        raise InputError(
            f"got x of {described(view)}, wanted float32{' or int8' if quantization else ''} of shape ({wanted}), "
            f"or flat with {tensor.size} values for each example, and at least one example"
        )
    if quantization is not None and view.format == "f":
        view = memoryview(quantization.quantize(view))
    return view, examples
