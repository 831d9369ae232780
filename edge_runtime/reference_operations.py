"""The operations of an artifact in NumPy, each with its backward: the arithmetic of the oracle.

Tensors are arrays (batch, channels, height, width); convolutions are loops over kernel positions.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime.artifact import Operation
from sparsyfed.edge_runtime.format import FLAG_COUNT_PADDING, FLAG_GELU_TANH, OperationKind

Array = NDArray[Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True, slots=True)
class Call:
    """What an operation is executed with, besides its inputs."""

    operation: Operation
    shape: tuple[int, int, int, int]
    """Of the output."""
    training: bool
    keep: int = 0
    """How many entries of the input are kept for the gradient of the weight."""
    weight: Array | None = None
    """w as (rows, columns), or a norm's scale per channel."""
    bias: Array | None = None
    mean: Array | None = None
    variance: Array | None = None


class Gradients(NamedTuple):
    """What a backward returns; weight and bias also where the operation has none."""

    inputs: tuple[Array, ...]
    weight: Array | None = None
    bias: Array | None = None


Backward = Callable[[Array], Gradients]
"""Takes dL/d(output)."""


class Result(NamedTuple):
    """What an operation returns; `statistics` of a batch norm: mean and unbiased variance."""

    output: Array
    backward: Backward
    statistics: tuple[Array, Array] | None = None


def top_k(x: Array, keep: int) -> Array:
    """Return x with all but the `keep` largest |x| set to zero; ties go to the lower position."""
    order = np.argsort(-np.abs(x), axis=None, kind="stable")
    kept = np.zeros_like(x)
    kept.flat[order[:keep]] = x.flat[order[:keep]]
    return kept


def _windows(call: Call) -> Iterator[tuple[int, int, slice, slice]]:
    """Yield (i, j, rows, columns) by kernel position: the slices of the padded input it meets."""
    operation = call.operation
    dilation = operation.dilation if operation.kind == OperationKind.CONVOLUTION else (1, 1)
    for i in range(operation.kernel[0]):
        for j in range(operation.kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            bottom = top + operation.stride[0] * (call.shape[2] - 1) + 1
            right = left + operation.stride[1] * (call.shape[3] - 1) + 1
            rows = slice(top, bottom, operation.stride[0])
            yield i, j, rows, slice(left, right, operation.stride[1])


def _pad(call: Call, x: Array, value: float = 0.0) -> Array:
    rows, columns = call.operation.padding
    border = ((0, 0), (0, 0), (rows, rows), (columns, columns))
    return np.pad(x, border, constant_values=value)


def _crop(call: Call, padded: Array) -> Array:
    rows, columns = call.operation.padding
    return padded[:, :, rows : padded.shape[2] - rows, columns : padded.shape[3] - columns]


def _convolution(call: Call, x: Array) -> Result:
    assert call.weight is not None
    n, rows, height, width = call.shape
    groups = call.operation.groups
    kernel = (groups, rows // groups, x.shape[1] // groups, *call.operation.kernel)
    w = call.weight.reshape(kernel)

    def grouped(a: Array) -> Array:
        return a.reshape(n, groups, -1, *a.shape[2:])

    padded = grouped(_pad(call, x))
    y = np.zeros((n, groups, rows // groups, height, width), x.dtype)
    for i, j, down, across in _windows(call):
        y += np.einsum("ngchw,goc->ngohw", padded[..., down, across], w[..., i, j], optimize=True)
    y = y.reshape(call.shape)
    if call.bias is not None:
        y = y + call.bias[:, None, None]
    saved = grouped(_pad(call, top_k(x, call.keep)))

    def backward(dy: Array) -> Gradients:
        flow, dx, dw = grouped(dy), np.zeros_like(padded), np.zeros_like(w)
        for i, j, down, across in _windows(call):
            dx[..., down, across] += np.einsum(
                "ngohw,goc->ngchw", flow, w[..., i, j], optimize=True
            )
            dw[..., i, j] = np.einsum(
                "ngohw,ngchw->goc", flow, saved[..., down, across], optimize=True
            )
        dx = _crop(call, dx.reshape(n, x.shape[1], *padded.shape[3:]))
        return Gradients((dx,), dw.reshape(rows, -1), dy.sum(axis=(0, 2, 3)))

    return Result(y, backward)


def _linear(call: Call, x: Array) -> Result:
    assert call.weight is not None
    w, flat = call.weight, x.reshape(len(x), -1)
    saved = top_k(flat, call.keep)
    y = flat @ w.T if call.bias is None else flat @ w.T + call.bias

    def backward(dy: Array) -> Gradients:
        flow = dy.reshape(len(x), -1)
        return Gradients((flow @ w,), flow.T @ saved, flow.sum(axis=0))

    return Result(y, backward)


def _normalise(call: Call, x: Array, over: tuple[int, ...], axes: tuple[int, ...]) -> Result:
    """Normalise x by its biased moments over the axes `over`, then scale and shift.

    Weight and bias lie along the axes of x that are not in `axes`.
    """
    deviation = np.sqrt(x.var(axis=over, keepdims=True) + call.operation.epsilon)
    z = (x - x.mean(axis=over, keepdims=True)) / deviation
    along = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    scale = np.ones(along, x.dtype) if call.weight is None else call.weight.reshape(along)
    shift = np.zeros(along, x.dtype) if call.bias is None else call.bias.reshape(along)

    def backward(dy: Array) -> Gradients:
        flow = dy.reshape(x.shape)
        dz = flow * scale
        common = dz.mean(axis=over, keepdims=True) + z * (dz * z).mean(axis=over, keepdims=True)
        d_scale, d_shift = (flow * z).sum(axis=axes), flow.sum(axis=axes)
        return Gradients(((dz - common) / deviation,), d_scale.ravel(), d_shift.ravel())

    return Result(z * scale + shift, backward)


def _batch_norm(call: Call, x: Array) -> Result:
    axes = (0, 2, 3)
    if call.mean is None or call.variance is None:
        return _normalise(call, x, axes, axes)
    if call.training:
        count = x.size // x.shape[1]
        # a single value has no unbiased variance: its biased one, 0, stands in
        unbiased = x.var(axis=axes) * (count / max(count - 1, 1))
        return _normalise(call, x, axes, axes)._replace(statistics=(x.mean(axis=axes), unbiased))
    scale = 1 / np.sqrt(call.variance + call.operation.epsilon)
    if call.weight is not None:
        scale = scale * call.weight
    shift = -call.mean * scale if call.bias is None else call.bias - call.mean * scale
    slope = np.broadcast_to(scale[:, None, None], x.shape)
    return Result(x * slope + shift[:, None, None], lambda dy: Gradients((dy * slope,)))


def _group_norm(call: Call, x: Array) -> Result:
    groups = call.operation.groups
    grouped = x.reshape(len(x), groups, x.shape[1] // groups, -1)
    return _normalise(call, grouped, over=(2, 3), axes=(0, 3))


def _layer_norm(call: Call, x: Array) -> Result:
    return _normalise(call, x.reshape(-1, call.operation.normalized), over=(1,), axes=(0,))


def _pointwise(y: Array, slope: Array) -> Result:
    return Result(y, lambda dy: Gradients((dy * slope,)))


def _relu(_: Call, x: Array) -> Result:
    return _pointwise(np.maximum(x, 0), x > 0)


def _relu6(_: Call, x: Array) -> Result:
    return _pointwise(np.clip(x, 0, 6), (x > 0) & (x < 6))


def _gelu(call: Call, x: Array) -> Result:
    if call.operation.flags & FLAG_GELU_TANH:
        scale = math.sqrt(2 / math.pi)
        t = np.tanh(scale * (x + 0.044715 * x**3))
        inner = scale * (1 + 3 * 0.044715 * x**2)
        return _pointwise(0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * inner)
    below = (0.5 * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype)
    return _pointwise(x * below, below + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi))


def _silu(_: Call, x: Array) -> Result:
    sigmoid = 0.5 * (1 + np.tanh(x / 2))
    return _pointwise(x * sigmoid, sigmoid * (1 + x * (1 - sigmoid)))


def _max_pool(call: Call, x: Array) -> Result:
    padded = _pad(call, x, -np.inf)
    y = np.full(call.shape, -np.inf, x.dtype)
    winner = np.full(call.shape, -1)
    windows = [(down, across) for _, _, down, across in _windows(call)]
    for position, (down, across) in enumerate(windows):
        better = padded[:, :, down, across] > y  # so the first of equals wins
        y = np.where(better, padded[:, :, down, across], y)
        winner = np.where(better, position, winner)

    def backward(dy: Array) -> Gradients:
        dx = np.zeros_like(padded)
        for position, (down, across) in enumerate(windows):
            dx[:, :, down, across] += np.where(winner == position, dy, 0)
        return Gradients((_crop(call, dx),))

    return Result(y, backward)


def _average_pool(call: Call, x: Array) -> Result:
    counts_padding = call.operation.flags & FLAG_COUNT_PADDING != 0
    padded = _pad(call, x)
    members = _pad(call, np.ones_like(x), float(counts_padding))
    y, divisor = np.zeros(call.shape, x.dtype), np.zeros(call.shape, x.dtype)
    for _, _, down, across in _windows(call):
        y += padded[:, :, down, across]
        divisor += members[:, :, down, across]

    def backward(dy: Array) -> Gradients:
        dx = np.zeros_like(padded)
        for _, _, down, across in _windows(call):
            dx[:, :, down, across] += dy / divisor
        return Gradients((_crop(call, dx),))

    return Result(y / divisor, backward)


def _adaptive_average_pool(call: Call, x: Array) -> Result:
    # output i averages [floor(i * in / out), ceil((i + 1) * in / out)): one matrix for each axis
    matrices = []
    for size, count in zip(x.shape[2:], call.shape[2:], strict=True):
        matrix = np.zeros((count, size), x.dtype)
        for i in range(count):
            low, high = i * size // count, -(-(i + 1) * size // count)
            matrix[i, low:high] = 1 / (high - low)
        matrices.append(matrix)
    down, across = matrices
    return Result(down @ x @ across.T, lambda dy: Gradients((down.T @ dy @ across,)))


def _add(_: Call, a: Array, b: Array) -> Result:
    return Result(a + b, lambda dy: Gradients((dy, dy)))


def _reshape(_: Call, x: Array) -> Result:
    return Result(x, lambda dy: Gradients((dy,)))


OPERATIONS: dict[OperationKind, Callable[..., Result]] = {
    OperationKind.CONVOLUTION: _convolution,
    OperationKind.LINEAR: _linear,
    OperationKind.BATCH_NORM: _batch_norm,
    OperationKind.GROUP_NORM: _group_norm,
    OperationKind.LAYER_NORM: _layer_norm,
    OperationKind.RELU: _relu,
    OperationKind.RELU6: _relu6,
    OperationKind.GELU: _gelu,
    OperationKind.SILU: _silu,
    OperationKind.MAX_POOL: _max_pool,
    OperationKind.AVERAGE_POOL: _average_pool,
    OperationKind.ADAPTIVE_AVERAGE_POOL: _adaptive_average_pool,
    OperationKind.ADD: _add,
    OperationKind.RESHAPE: _reshape,
}
"""By kind: a function of a Call and the inputs. Outputs and input gradients may have any shape."""
