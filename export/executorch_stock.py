"""The operators of a joint graph from stock ExecuTorch kernels alone.

Decompositions stand where 1.4.1 has no kernel, or a wrong one. Wrong: `max_pool2d_with_indices_backward` does not
clear its result first. Missing: batch norm in training, the backwards of the average pools, convolutions over signals,
and our own three operators.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten
_OWN = torch.ops.sparsyfed


def _powerprop(v: Tensor, beta: float) -> Tensor:
    return torch.sign(v) * torch.pow(torch.abs(v), beta)


def _powerprop_backward(v: Tensor, d_weight: Tensor, beta: float) -> Tensor:
    d_v = torch.pow(torch.abs(v), beta - 1.0) * d_weight * beta
    return torch.where(v == 0.0, torch.zeros_like(v), d_v)


def _prune(x: Tensor, count: Tensor, layer: str) -> Tensor:
    """A whole sort finds the threshold: there is no kernel that selects."""
    del layer
    size = torch.abs(x).reshape(-1)
    values, _ = torch.topk(size, size.shape[0])
    place = torch.clamp(count - 1, min=0).reshape(1)
    last = torch.full_like(size, 1, dtype=torch.int64).sum(0, keepdim=True) - 1
    threshold = torch.index_select(values, 0, torch.minimum(place, last))
    above = size > threshold
    equal = size == threshold
    left = count - above.to(torch.int64).sum(0, keepdim=True)
    taken = torch.logical_and(equal, torch.cumsum(equal.to(torch.int64), 0) <= left)
    kept = torch.logical_or(above, taken).reshape(x.shape)
    return torch.where(kept, x, torch.zeros_like(x))


def _pixels(x: Tensor) -> list[int]:
    """The dimensions that a batch norm takes together."""
    return [0, *range(2, x.dim())]


def _channel_sums(x: Tensor) -> Tensor:
    """One dimension after the other: the kernel adds one number at a time, and long sums lose digits."""
    for dimension in reversed(_pixels(x)):
        x = torch.sum(x, dimension)
    return x


def _channel_means(x: Tensor) -> Tensor:
    for dimension in reversed(_pixels(x)):
        x = torch.mean(x, dimension)
    return x


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape([1, -1] + [1] * (like.dim() - 2))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * _per_channel(weight, x)
    return x if bias is None else x + _per_channel(bias, x)


def _batch_norm(  # noqa: PLR0917 - the signature of the operator that it replaces
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, ...]:
    assert training
    mean = _channel_means(x)
    centred = x - _per_channel(mean, x)
    inverse = torch.rsqrt(_channel_means(centred * centred) + epsilon)
    y = _affine(centred * _per_channel(inverse, x), weight, bias)
    unbiased = torch.var(x, _pixels(x), correction=1)
    new_mean = running_mean * (1 - momentum) + mean * momentum
    new_variance = running_variance * (1 - momentum) + unbiased * momentum
    return y, mean, inverse, new_mean, new_variance


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
    inverse = torch.rsqrt(variance + epsilon)
    y = _affine((x - _per_channel(mean, x)) * _per_channel(inverse, x), weight, bias)
    return y, mean, inverse


def _batch_norm_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor,
    running_variance: Tensor,
    mean: Tensor,
    inverse: Tensor,
    training: bool,
    epsilon: float,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    del running_mean, running_variance, epsilon
    assert training
    normal = (x - _per_channel(mean, x)) * _per_channel(inverse, x)
    shift = _per_channel(_channel_means(d_y), x)
    slope = _per_channel(_channel_means(d_y * normal), x)
    scale = inverse if weight is None else inverse * weight
    d_x = (d_y - shift - normal * slope) * _per_channel(scale, x)
    d_weight = _channel_sums(d_y * normal) if wanted[1] else None
    return d_x, d_weight, _channel_sums(d_y) if wanted[2] else None


def _max_pool_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    winners: Tensor,
) -> Tensor:
    del kernel, stride, padding, dilation, ceil_mode
    shape = [*x.shape[:-2], -1]
    flat = torch.zeros_like(x).reshape(shape)
    return flat.scatter_add(-1, winners.reshape(shape), d_y.reshape(shape)).reshape(x.shape)


def _pair(values: Sequence[int]) -> list[int]:
    return [values[0], values[-1]]


def _reach(  # noqa: PLR0917 - the geometry of an axis
    outputs: int, size: int, kernel: int, stride: int, padding: int, count_padding: bool
) -> Tensor:
    """The elements that each window along an axis counts."""
    first = torch.arange(outputs) * stride - padding
    if count_padding:
        return torch.full_like(first, kernel, dtype=torch.float32)
    last = torch.clamp(first + kernel, max=size)
    return (last - torch.clamp(first, min=0)).to(torch.float32)


def _average_pool_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: None,
) -> Tensor:
    """The input gradient of a convolution by ones."""
    del ceil_mode, divisor
    kernels, pads = _pair(kernel), _pair(padding)
    strides = _pair(stride) if stride else kernels
    rows, columns = (
        _reach(d_y.shape[i - 2], x.shape[i - 2], kernels[i], strides[i], pads[i], count_include_pad)
        for i in range(2)
    )
    share = d_y / (rows.reshape(-1, 1) * columns.reshape(1, -1))
    channels = x.shape[1]
    ones = d_y.new_ones([channels, 1, *kernels])
    d_x: Tensor = _ATEN.convolution_backward.default(
        *(share, x, ones, None, strides, pads, [1, 1], False, [0, 0], channels),
        [True, False, False],
    )[0]
    return d_x


def _spread(d_y: Tensor, axis: int, size: int) -> Tensor:
    """The gradient of averages over adaptive windows along one axis."""
    outputs = d_y.shape[axis]
    total = None
    for index in range(outputs):
        first, last = index * size // outputs, -(-(index + 1) * size // outputs)
        shape = [-1] * d_y.dim()
        shape[axis] = last - first
        part = (d_y.narrow(axis, index, 1) / (last - first)).expand(shape)
        after = [0, 0] * (d_y.dim() - 1 - axis)
        part = torch.constant_pad_nd(part, [*after, first, size - last])
        total = part if total is None else total + part
    assert total is not None
    return total


def _adaptive_average_pool_backward(d_y: Tensor, x: Tensor) -> Tensor:
    rows = _spread(d_y, x.dim() - 2, x.shape[-2])
    return _spread(rows, x.dim() - 1, x.shape[-1])


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Any:
    """A signal as an image of height 1."""
    if x.dim() == 4:
        return _ATEN.convolution.default(x, weight, bias, *geometry)
    planar = _planar(geometry)
    y = _ATEN.convolution.default(x.unsqueeze(2), weight.unsqueeze(2), bias, *planar)
    return y.squeeze(2)


def _convolution_backward(
    d_y: Tensor, x: Tensor, weight: Tensor, bias: Sequence[int] | None, *geometry: Any
) -> Any:
    if x.dim() == 4:
        return _ATEN.convolution_backward.default(d_y, x, weight, bias, *geometry)
    *rest, wanted = geometry
    d_x, d_weight, d_bias = _ATEN.convolution_backward.default(
        *(d_y.unsqueeze(2), x.unsqueeze(2), weight.unsqueeze(2), bias, *_planar(rest), wanted)
    )
    return d_x.squeeze(2) if wanted[0] else None, d_weight.squeeze(2), d_bias


def _planar(geometry: Sequence[Any]) -> list[Any]:
    stride, padding, dilation, transposed, output_padding, groups = geometry
    return [[1, *stride], [0, *padding], [1, *dilation], transposed, [0, *output_padding], groups]


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _silu_backward(d_y: Tensor, x: Tensor) -> Tensor:
    slope = torch.sigmoid(x)
    return d_y * (slope * (x * (1.0 - slope) + 1.0))


def _negative_log_likelihood(
    output: Tensor, labels: Tensor, weight: None, reduction: int, ignored: int
) -> tuple[Tensor, Tensor]:
    del weight, reduction, ignored
    chosen = torch.gather(output, 1, labels.unsqueeze(1))
    return -torch.mean(chosen), torch.ones_like(chosen).sum()


def _negative_log_likelihood_backward(  # noqa: PLR0917 - likewise
    d_loss: Tensor,
    output: Tensor,
    labels: Tensor,
    weight: None,
    reduction: int,
    ignored: int,
    total: Tensor,
) -> Tensor:
    del weight, reduction, ignored
    chosen = torch.scatter(torch.zeros_like(output), 1, labels.unsqueeze(1), -1.0)
    return chosen * (d_loss / total)


def _squared_error(output: Tensor, y: Tensor, reduction: int = 1) -> Tensor:
    del reduction
    return torch.mean((output - y) * (output - y))


def _squared_error_backward(
    d_loss: Tensor, output: Tensor, y: Tensor, reduction: int = 1
) -> Tensor:
    del reduction
    return (output - y) * (d_loss * 2.0 / torch.ones_like(output).sum())


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _OWN.powerprop.default: _powerprop,
    _OWN.powerprop_backward.default: _powerprop_backward,
    _OWN.prune.default: _prune,
    _ATEN._native_batch_norm_legit_functional.default: _batch_norm,  # noqa: SLF001 - an operator's name
    _ATEN._native_batch_norm_legit_no_training.default: _batch_norm_evaluated,  # noqa: SLF001 - likewise
    _ATEN.native_batch_norm_backward.default: _batch_norm_backward,
    _ATEN.max_pool2d_with_indices_backward.default: _max_pool_backward,
    _ATEN.avg_pool2d_backward.default: _average_pool_backward,
    _ATEN._adaptive_avg_pool2d_backward.default: _adaptive_average_pool_backward,  # noqa: SLF001 - likewise
    _ATEN.convolution.default: _convolution,
    _ATEN.convolution_backward.default: _convolution_backward,
    _ATEN.silu.default: _silu,
    _ATEN.silu_backward.default: _silu_backward,
    _ATEN.nll_loss_forward.default: _negative_log_likelihood,
    _ATEN.nll_loss_backward.default: _negative_log_likelihood_backward,
    _ATEN.mse_loss.default: _squared_error,
    _ATEN.mse_loss_backward.default: _squared_error_backward,
}
"""By operator and overload; the batch is the first dimension of every activation."""


PLAIN: frozenset[Any] = frozenset(
    {
        operator.getitem,
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        _ATEN.sym_size.int,
        _ATEN.select.int,
        _ATEN.addmm.default,
        _ATEN.mm.default,
        _ATEN.native_group_norm.default,
        _ATEN.native_group_norm_backward.default,
        _ATEN.native_layer_norm.default,
        _ATEN.native_layer_norm_backward.default,
        _ATEN.relu.default,
        _ATEN.threshold_backward.default,
        _ATEN.hardtanh.default,
        _ATEN.hardtanh_backward.default,
        _ATEN.gelu.default,
        _ATEN.gelu_backward.default,
        _ATEN.max_pool2d_with_indices.default,
        _ATEN.avg_pool2d.default,
        _ATEN._adaptive_avg_pool2d.default,  # noqa: SLF001 - likewise
        _ATEN.mean.dim,
        _ATEN.sum.dim_IntList,
        _ATEN.sum.default,
        _ATEN.view.default,
        _ATEN._unsafe_view.default,  # noqa: SLF001 - likewise
        _ATEN.reshape.default,
        _ATEN.squeeze.dim,
        _ATEN.squeeze.dims,
        _ATEN.unsqueeze.default,
        _ATEN.expand.default,
        _ATEN.t.default,
        _ATEN.ones_like.default,
        _ATEN.add.Tensor,
        _ATEN.sub.Tensor,
        _ATEN.mul.Tensor,
        _ATEN.div.Scalar,
        _ATEN.eq.Tensor,
        _ATEN.eq.Scalar,
        _ATEN.where.self,
        _ATEN._log_softmax.default,  # noqa: SLF001 - likewise
        _ATEN._log_softmax_backward_data.default,  # noqa: SLF001 - likewise
        _ATEN.argmax.default,
    }
)
"""Operators whose stock kernels, or PyTorch's own decompositions into such, are right."""
