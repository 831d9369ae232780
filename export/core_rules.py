"""One rule for each ATen operator that the core computes: a call of the core's operator in its place.

What PyTorch saves second for the backward of a norm is our moments, and an unwanted gradient may be empty.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsyfed.edge_runtime.format import FLAG_COUNT_PADDING, FLAG_GELU_TANH, OperationKind
from sparsyfed.export import core_operators  # noqa: F401 - declares torch.ops.sparsyfed

_ATEN = torch.ops.aten
_OWN = torch.ops.sparsyfed


def _batch_norm(  # noqa: PLR0917 - the signature of the operator that it replaces
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, ...]:
    del training
    y, moments, *statistics = _OWN.batch_norm.default(
        *(x, weight, bias, mean, variance, momentum, epsilon)
    )
    return y, moments[: x.shape[1]], moments, *statistics


def _batch_norm_evaluated(  # noqa: PLR0917 - likewise
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, ...]:
    del momentum
    return (_OWN.batch_norm_evaluated.default(x, weight, bias, mean, variance, epsilon),)


def _batch_norm_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    batch_mean: Tensor,
    moments: Tensor,
    training: bool,
    epsilon: float,
    wanted: Sequence[bool],
) -> Any:
    del mean, variance, batch_mean, training, wanted
    return _OWN.batch_norm_backward.default(d_y, x, weight, moments, epsilon)


def _group_shape(channels: int, pixels: int, groups: int) -> list[int]:
    return [groups, channels // groups * pixels, pixels, channels // groups]


def _group_norm(  # noqa: PLR0917 - likewise
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    epsilon: float,
) -> tuple[Tensor, ...]:
    del batch
    shape = _group_shape(channels, pixels, groups)
    y, moments = _OWN.norm.default(x, weight, bias, shape, epsilon)
    return y, moments, moments


def _group_norm_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    moments: Tensor,
    also_moments: Tensor,
    weight: Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    wanted: Sequence[bool],
) -> Any:
    del also_moments, batch
    shape = _group_shape(channels, pixels, groups)
    coefficients = channels if wanted[1] else 0
    return _OWN.norm_backward.default(d_y, x, weight, moments, shape, coefficients)


def _layer_shape(x: Tensor, normalized: Sequence[int]) -> list[int]:
    size = torch.Size(x.shape[1:]).numel()
    elements = torch.Size(normalized).numel()
    return [size // elements, elements, 1, 0]


def _layer_norm(
    x: Tensor,
    normalized: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, ...]:
    y, moments = _OWN.norm.default(x, weight, bias, _layer_shape(x, normalized), epsilon)
    return y, moments, moments


def _layer_norm_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    normalized: Sequence[int],
    moments: Tensor,
    also_moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    del also_moments, bias
    coefficients = torch.Size(normalized).numel() if wanted[1] else 0
    shape = _layer_shape(x, normalized)
    d_x, d_weight, d_bias = _OWN.norm_backward.default(d_y, x, weight, moments, shape, coefficients)
    if not wanted[1]:
        return d_x, d_weight, d_bias
    return d_x, d_weight.reshape(normalized), d_bias.reshape(normalized)


def _relu(x: Tensor) -> Any:
    return _OWN.rectifier.default(x, float("inf"))


def _relu_backward(d_y: Tensor, y: Tensor, threshold: float) -> Any:
    del threshold
    return _OWN.rectifier_backward.default(d_y, y, float("inf"))


def _hardtanh(x: Tensor, low: float, high: float) -> Any:
    del low
    return _OWN.rectifier.default(x, high)


def _hardtanh_backward(d_y: Tensor, x: Tensor, low: float, high: float) -> Any:
    del low
    return _OWN.rectifier_backward.default(d_y, x, high)


def _gelu_flags(approximate: str) -> int:
    return FLAG_GELU_TANH if approximate == "tanh" else 0


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    return _OWN.smooth.default(x, int(OperationKind.GELU), _gelu_flags(approximate))


def _gelu_backward(d_y: Tensor, x: Tensor, *, approximate: str = "none") -> Any:
    flags = _gelu_flags(approximate)
    return _OWN.smooth_backward.default(d_y, x, int(OperationKind.GELU), flags)


def _silu(x: Tensor) -> Any:
    return _OWN.smooth.default(x, int(OperationKind.SILU), 0)


def _silu_backward(d_y: Tensor, x: Tensor) -> Any:
    return _OWN.smooth_backward.default(d_y, x, int(OperationKind.SILU), 0)


def _window(
    kind: OperationKind,
    flags: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> list[int]:
    return [int(kind), flags, *kernel, *(stride or kernel), *padding]


def _pooled(x: Tensor, geometry: Sequence[int]) -> list[int]:
    kernel, stride, padding = (geometry[i : i + 2] for i in (2, 4, 6))
    return [(x.shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2)]


def _max_pool(  # noqa: PLR0917 - likewise
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Any:
    del dilation, ceil_mode
    geometry = _window(OperationKind.MAX_POOL, 0, kernel, stride, padding)
    return _OWN.pool.default(x, geometry, _pooled(x, geometry))


def _max_pool_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    winners: Tensor,
) -> Any:
    del dilation, ceil_mode
    geometry = _window(OperationKind.MAX_POOL, 0, kernel, stride, padding)
    return _OWN.pool_backward.default(d_y, winners, geometry, list(x.shape[2:]))


def _average_pool(  # noqa: PLR0917 - likewise
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_padding: bool = True,
    divisor: None = None,
) -> Any:
    del ceil_mode, divisor
    flags = FLAG_COUNT_PADDING if count_padding else 0
    geometry = _window(OperationKind.AVERAGE_POOL, flags, kernel, stride, padding)
    return _OWN.pool.default(x, geometry, _pooled(x, geometry))[0]


def _average_pool_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_padding: bool,
    divisor: None,
) -> Any:
    del ceil_mode, divisor
    flags = FLAG_COUNT_PADDING if count_padding else 0
    geometry = _window(OperationKind.AVERAGE_POOL, flags, kernel, stride, padding)
    return _OWN.pool_backward.default(d_y, d_y, geometry, list(x.shape[2:]))


_ADAPTIVE = [int(OperationKind.ADAPTIVE_AVERAGE_POOL), 0, 1, 1, 1, 1, 0, 0]


def _adaptive_average_pool(x: Tensor, size: Sequence[int]) -> Any:
    return _OWN.pool.default(x, _ADAPTIVE, list(size))[0]


def _adaptive_average_pool_backward(d_y: Tensor, x: Tensor) -> Any:
    return _OWN.pool_backward.default(d_y, d_y, _ADAPTIVE, list(x.shape[2:]))


RULES: dict[Any, Callable[..., Any]] = {
    _ATEN._native_batch_norm_legit_functional.default: _batch_norm,  # noqa: SLF001 - an operator's name
    _ATEN._native_batch_norm_legit_no_training.default: _batch_norm_evaluated,  # noqa: SLF001 - likewise
    _ATEN.native_batch_norm_backward.default: _batch_norm_backward,
    _ATEN.native_group_norm.default: _group_norm,
    _ATEN.native_group_norm_backward.default: _group_norm_backward,
    _ATEN.native_layer_norm.default: _layer_norm,
    _ATEN.native_layer_norm_backward.default: _layer_norm_backward,
    _ATEN.relu.default: _relu,
    _ATEN.threshold_backward.default: _relu_backward,
    _ATEN.hardtanh.default: _hardtanh,
    _ATEN.hardtanh_backward.default: _hardtanh_backward,
    _ATEN.gelu.default: _gelu,
    _ATEN.gelu_backward.default: _gelu_backward,
    _ATEN.silu.default: _silu,
    _ATEN.silu_backward.default: _silu_backward,
    _ATEN.max_pool2d_with_indices.default: _max_pool,
    _ATEN.max_pool2d_with_indices_backward.default: _max_pool_backward,
    _ATEN.avg_pool2d.default: _average_pool,
    _ATEN.avg_pool2d_backward.default: _average_pool_backward,
    _ATEN._adaptive_avg_pool2d.default: _adaptive_average_pool,  # noqa: SLF001 - likewise
    _ATEN._adaptive_avg_pool2d_backward.default: _adaptive_average_pool_backward,  # noqa: SLF001 - likewise
}
"""By operator and overload: the core's operator in its place."""
