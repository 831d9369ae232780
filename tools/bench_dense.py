"""Training steps of PyTorch: the dense one, and one as the published simulation of the method takes it."""

import copy
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional, grad

from sparsyfed.edge_runtime.kept_inputs import keep_count
from sparsyfed.export.powerprop import Method, reference
from sparsyfed.tools.bench_session import LEARNING_RATE, WEIGHT_DECAY
from sparsyfed.tools.bench_timing import Side

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def memory_formats(x: NDArray[np.float32]) -> list[str]:
    """Names of the memory formats that a batch can have: images have two."""
    return list(FORMATS) if x.ndim == 4 else ["contiguous"]


def dense_step(
    model: nn.Module, x: NDArray[np.float32], y: NDArray[np.int32], memory_format: str
) -> Side:
    """One eager training step of the model, which changes: forward, loss, backward, SGD."""
    chosen = FORMATS[memory_format]
    trained = _in_format(model.train(), chosen)
    optimiser = torch.optim.SGD(trained.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    inputs, labels = (
        torch.from_numpy(x).contiguous(memory_format=chosen),
        torch.from_numpy(y).long(),
    )

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(trained(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def dense_forward(
    model: nn.Module, x: NDArray[np.float32], y: NDArray[np.int32], memory_format: str
) -> Side:
    """Loss of the model, which changes, in evaluation mode."""
    chosen = FORMATS[memory_format]
    evaluated = _in_format(model.eval(), chosen)
    inputs, labels = (
        torch.from_numpy(x).contiguous(memory_format=chosen),
        torch.from_numpy(y).long(),
    )

    @torch.no_grad()
    def forward() -> None:
        functional.cross_entropy(evaluated(inputs), labels)

    return forward


def _in_format(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    moved: nn.Module = model.to(memory_format=memory_format)  # type: ignore[call-overload]
    return moved


def fast_reference(model: nn.Module, beta: float) -> nn.Module:
    """`export.reference` with the fastest search for the largest inputs that PyTorch has.

    The reference sorts, to be exact where inputs are equal; this keeps all that are equal to the
    smallest one kept, and takes a part of the time.
    """
    fast = reference(model, beta)
    for layer in fast.modules():
        method = getattr(layer, "method", None)
        if isinstance(method, Method):
            method.prune = _prune_by_threshold
    return fast


def _prune_by_threshold(x: Tensor, v: Tensor) -> Tensor:
    count = keep_count(int(torch.count_nonzero(v)), v.numel(), x.numel())
    if count >= x.numel():
        return x
    size = x.abs()
    threshold = torch.kthvalue(size.flatten(), x.numel() - count + 1).values
    return torch.where(size >= threshold, x, 0.0)


def reference_like(model: nn.Module, beta: float) -> nn.Module:
    """A copy of a model that holds v, trained as the published simulation of the method does it.

    Every convolution and linear layer computes with sign(v)|v|^beta by dense operators, and saves
    its input with zeros below a threshold, to the density of v. A convolution finds its threshold
    in the first batch and keeps it; the search for the largest values runs at each forward all the
    same, as it does there. A linear layer takes the threshold that each search finds.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear))
    }
    changed = copy.deepcopy(model)
    for name, layer in layers.items():
        changed.set_submodule(name, _ReferenceLayer(copy.deepcopy(layer), beta))
    return changed


class _ReferenceLayer(nn.Module):
    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Linear, beta: float) -> None:
        super().__init__()
        self.layer, self.beta = layer, beta
        self.threshold: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        v = self.layer.weight
        weight = v.sign() * v.abs().pow(self.beta)
        nonzeros = max(1, int(torch.count_nonzero(weight)))
        count = keep_count(nonzeros, weight.numel(), x.numel())
        smallest_kept = torch.topk(x.detach().abs().flatten(), count).values[-1]
        bias = self.layer.bias
        if isinstance(self.layer, nn.Linear):
            output = _ReferenceLinear.apply(x, weight, smallest_kept)  # type: ignore[no-untyped-call]
            return cast("Tensor", output if bias is None else output + bias)
        if self.threshold is None:
            self.threshold = smallest_kept
        output = _ReferenceConvolution.apply(x, weight, self.threshold, self.layer)  # type: ignore[no-untyped-call]
        if bias is not None:
            output = output + bias.view(-1, *[1] * (output.dim() - 2))
        return cast("Tensor", output)


class _ReferenceConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, threshold: Tensor, layer: Any) -> Tensor:
        ctx.save_for_backward(x * (x.abs() >= threshold), weight)
        ctx.geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        convolve = functional.conv1d if weight.dim() == 3 else functional.conv2d
        return convolve(x, weight, None, *ctx.geometry)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        pruned, weight = ctx.saved_tensors
        # Untyped in PyTorch, as is every call of them.
        passes: Any = (grad.conv2d_input, grad.conv2d_weight)
        if weight.dim() == 3:
            passes = (grad.conv1d_input, grad.conv1d_weight)
        input_gradient, weight_gradient = passes
        d_input = None
        if ctx.needs_input_grad[0]:
            d_input = input_gradient(pruned.shape, weight, d_output, *ctx.geometry)
        return d_input, weight_gradient(pruned, weight.shape, d_output, *ctx.geometry), None, None


class _ReferenceLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(x * (x.abs() >= threshold), weight)
        return functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, Tensor, None]:
        pruned, weight = ctx.saved_tensors
        d_input = d_output @ weight if ctx.needs_input_grad[0] else None
        return d_input, d_output.flatten(0, -2).t() @ pruned.flatten(0, -2), None
