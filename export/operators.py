"""The method as PyTorch operators of our own, so that a traced graph shows it in one piece each.

`sparsyfed::prune` marks what is saved for a weight gradient, and carries the name of its layer. `sparsyfed::powerprop`
and `sparsyfed::powerprop_backward` are the two directions of w = sign(v)·|v|^β. Each target lowers them its own way.
"""

from typing import Any, cast

import torch
from torch import Tensor

from sparsyfed.export.powerprop import gradient_through_power, keep_largest, raise_to_power


@torch.library.custom_op("sparsyfed::prune", mutates_args=())
def prune(x: Tensor, count: Tensor, layer: str) -> Tensor:
    """Return x with all but the `count` (int64, one element) largest |x| set to zero, ties to the lower position."""
    del layer  # for readers of the graph
    return keep_largest(x, int(count))


@torch.library.custom_op("sparsyfed::powerprop", mutates_args=())
def power(v: Tensor, beta: float) -> Tensor:
    """Return sign(v)·|v|^β."""
    return raise_to_power(v, beta)


@torch.library.custom_op("sparsyfed::powerprop_backward", mutates_args=())
def power_backward(v: Tensor, d_weight: Tensor, beta: float) -> Tensor:
    """Return β·|v|^(β−1)·dL/dw, 0 where v = 0."""
    return gradient_through_power(v, d_weight, beta)


def _like_first(first: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(first)


for _operator in (prune, power, power_backward):
    _operator.register_fake(_like_first)


def powerprop_operator(v: Tensor, beta: float) -> Tensor:
    """Return w = sign(v)·|v|^β by way of the two operators, differentiable as `powerprop` is."""
    return cast("Tensor", _PowerPropOperator.apply(v, beta))  # type: ignore[no-untyped-call]


class _PowerPropOperator(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.beta = beta
        return cast("Tensor", power(v, beta))

    @staticmethod
    def backward(ctx: Any, d_weight: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return power_backward(v, d_weight, ctx.beta), None
