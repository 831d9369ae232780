"""The training method in eager PyTorch: the reference that every other implementation is checked against.

Weights are stored as v; a layer computes with w = sign(v)·|v|^β. Only the copy of the layer's input that is kept for
the weight gradient is pruned: the output and the gradient of the input are exact.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from sparsyfed.edge_runtime.errors import InputError, UnsupportedOperationError
from sparsyfed.edge_runtime.kept_inputs import keep_count
from sparsyfed.export.batch_norm import DeviceBatchNorm
from sparsyfed.export.parameters import model_tensors

_DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def check_beta(beta: float) -> float:
    """Return `beta` if it is an exponent that artifacts can hold (1 ≤ β ≤ 16).

    Raises InputError otherwise.
    """
    if not 1.0 <= beta <= 16.0:
        raise InputError(
            f"beta is {beta!r}; it must be a number from 1 to 16 (the method uses 1.25)"
        )
    return float(beta)


def powerprop(v: Tensor, beta: float) -> Tensor:
    """Return w = sign(v)·|v|^β, of the shape and dtype of v.

    The gradient is dL/dv = β·|v|^(β−1)·dL/dw, and exactly 0 where v = 0, for every β ≥ 1: a pruned weight stays
    pruned. (Schwarz et al., "Powerpropagation: a sparsity inducing weight reparameterisation", 2021.)
    """
    return cast("Tensor", _PowerProp.apply(v, beta))  # type: ignore[no-untyped-call]


def keep_largest(x: Tensor, count: int) -> Tensor:
    """Return a copy of x with all but the `count` largest |x| set to zero.

    The ranking is over the whole tensor, batch included, in float32 whatever the dtype of x; among equals the lower
    position (row-major) is kept.
    """
    if count >= x.numel():
        return x.clone()
    flat = x.flatten()
    kept = torch.sort(flat.abs().float(), descending=True, stable=True).indices[:count]
    pruned = torch.zeros_like(flat)
    pruned[kept] = flat[kept]
    return pruned.view(x.shape)


def prune_to_density(x: Tensor, v: Tensor) -> Tensor:
    """Return a copy of a layer's input x, pruned to the density of the layer's weight v."""
    return keep_largest(x, keep_count(int(torch.count_nonzero(v)), v.numel(), x.numel()))


def symmetric_padding(
    padding: str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Return the zeros that "valid" or "same" padding adds at both ends of each spatial dimension.

    None where "same" would pad the two ends differently.
    """
    if padding == "valid":
        return (0,) * len(kernel)
    totals = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return None if any(total % 2 for total in totals) else tuple(total // 2 for total in totals)


@dataclass(slots=True)
class Method:
    """What makes a layer a pruned one; an export puts operators of its own in the places of the two functions."""

    beta: float
    prune: Callable[[Tensor, Tensor], Tensor] = prune_to_density
    """From a layer's input and v to what is saved for the weight gradient."""
    power: Callable[[Tensor, float], Tensor] = powerprop
    """From v and β to w."""


class PrunedConv1d(nn.Conv1d):
    """A Conv1d whose weight holds v and whose saved input is pruned."""

    def __init__(self, layer: nn.Conv1d, beta: float) -> None:
        super().__init__(**_convolution_arguments(layer))
        self.weight, self.bias = layer.weight, layer.bias
        self.method = Method(beta)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` with w."""
        return _pruned_convolution(self, input, self.method)


class PrunedConv2d(nn.Conv2d):
    """A Conv2d whose weight holds v and whose saved input is pruned."""

    def __init__(self, layer: nn.Conv2d, beta: float) -> None:
        super().__init__(**_convolution_arguments(layer))
        self.weight, self.bias = layer.weight, layer.bias
        self.method = Method(beta)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` with w."""
        return _pruned_convolution(self, input, self.method)


class PrunedLinear(nn.Linear):
    """A Linear whose weight holds v and whose saved input is pruned."""

    def __init__(self, layer: nn.Linear, beta: float) -> None:
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.method = Method(beta)

    def forward(self, input: Tensor) -> Tensor:
        """Return input · wᵀ + bias; `input` is (batch, ..., features)."""
        pruned = self.method.prune(input.detach(), self.weight)
        weight = self.method.power(self.weight, self.method.beta)
        return cast("Tensor", _PrunedLinear.apply(input, weight, self.bias, pruned))  # type: ignore[no-untyped-call]


def reference(model: nn.Module, beta: float = 1.25) -> nn.Module:
    """Return a copy of `model` that computes as a training device does, its weights taken as v.

    Each Conv1d, Conv2d and Linear (grouped ones included) becomes its pruned form; names in the state dict stay.
    Dropout modules get probability 0, because devices do not drop out; batch norms train on a single value for each
    channel, too. The mode (train or eval) is kept. The density of a layer is that of its nonzeros; a device counts what
    its state stores, zeros too if a state stores any.

    Raises UnsupportedOperationError for shared or frozen parameters, for subclasses of these layers and for padding
    modes other than "zeros".
    """
    model_tensors(model)
    return _replace(copy.deepcopy(model), check_beta(beta), "")


def method_of(model: nn.Module, weight: str) -> Method:
    """Return the `Method` of the pruned layer in a `reference` that holds the weight of that name."""
    method = model.get_submodule(weight.removesuffix("weight").removesuffix(".")).method
    assert isinstance(method, Method)
    return method


def _replace(module: nn.Module, beta: float, path: str) -> nn.Module:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        return _pruned(module, beta, path)
    if isinstance(module, _BatchNorm):
        return DeviceBatchNorm(module).train(module.training)
    if isinstance(module, _DROPOUTS):
        module.p = 0.0
    for name, child in module.named_children():
        setattr(module, name, _replace(child, beta, f"{path}.{name}" if path else name))
    return module


def _pruned(layer: nn.Conv1d | nn.Conv2d | nn.Linear, beta: float, path: str) -> nn.Module:
    place = path or "the model itself"
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.padding_mode != "zeros":
        raise UnsupportedOperationError(
            f"{place}: padding_mode={layer.padding_mode!r} is not supported; use padding_mode='zeros'"
        )
    pruned: nn.Module
    if type(layer) is nn.Conv1d:
        pruned = PrunedConv1d(layer, beta)
    elif type(layer) is nn.Conv2d:
        pruned = PrunedConv2d(layer, beta)
    elif type(layer) is nn.Linear:
        pruned = PrunedLinear(layer, beta)
    else:
        raise UnsupportedOperationError(
            f"{place}: {type(layer).__qualname__} is a subclass of a layer that is pruned; use the plain layer"
        )
    return pruned.train(layer.training)


def _convolution_arguments(layer: nn.Conv1d | nn.Conv2d) -> dict[str, Any]:
    padding: tuple[int, ...] | str | None = layer.padding
    if isinstance(padding, str):
        padding = symmetric_padding(padding, layer.kernel_size, layer.dilation)
    if padding is None:
        raise UnsupportedOperationError(
            f"padding='same' with kernel {layer.kernel_size} pads the two ends differently; "
            "use an odd kernel size or explicit padding"
        )
    return {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "padding": padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "bias": layer.bias is not None,
        "device": "meta",
    }


def _pruned_convolution(layer: PrunedConv1d | PrunedConv2d, x: Tensor, method: Method) -> Tensor:
    pruned = method.prune(x.detach(), layer.weight)
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    weight = method.power(layer.weight, method.beta)
    return cast(
        "Tensor",
        _PrunedConvolution.apply(x, weight, layer.bias, pruned, geometry),  # type: ignore[no-untyped-call]
    )


def raise_to_power(v: Tensor, beta: float) -> Tensor:
    """Return sign(v)·|v|^β, not differentiable: the forward of `powerprop`."""
    return v.sign() * v.abs().pow(beta)


def gradient_through_power(v: Tensor, d_weight: Tensor, beta: float) -> Tensor:
    """Return dL/dv = β·|v|^(β−1)·dL/dw, 0 where v = 0 whatever dL/dw is: the backward of `powerprop`."""
    d_v = beta * v.abs().pow(beta - 1) * d_weight
    return torch.where(v == 0, torch.zeros_like(v), d_v)


class _PowerProp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.beta = beta
        return raise_to_power(v, beta)

    @staticmethod
    def backward(ctx: Any, d_weight: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return gradient_through_power(v, d_weight, ctx.beta), None


class _PrunedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        pruned: Tensor,
        geometry: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(pruned, weight)
        ctx.geometry = geometry
        convolve = functional.conv1d if weight.dim() == 3 else functional.conv2d
        return convolve(x, weight, bias, *geometry)

    @staticmethod
    def backward(
        ctx: Any, d_output: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        pruned, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        # dX depends on the weight alone, so that one call with the pruned input gives all three.
        d_input, d_weight, d_bias = torch.ops.aten.convolution_backward(
            *(d_output, pruned, weight, [weight.shape[0]], stride, padding, dilation),
            *(False, [0] * len(stride), groups, ctx.needs_input_grad[:3]),
        )
        return d_input, d_weight, d_bias, None, None


class _PrunedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pruned: Tensor) -> Tensor:
        ctx.save_for_backward(pruned, weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        pruned, weight = ctx.saved_tensors
        d_input = d_output @ weight if ctx.needs_input_grad[0] else None
        rows = d_output.flatten(0, -2)
        d_weight = rows.t() @ pruned.flatten(0, -2)
        d_bias = rows.sum(dim=0) if ctx.needs_input_grad[2] else None
        return d_input, d_weight, d_bias, None
