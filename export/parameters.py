"""The parameters of a model in the one order that artifacts and states share: that of the state dict."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from sparsyfed.edge_runtime.artifact import Parameter
from sparsyfed.edge_runtime.errors import InputError, UnsupportedOperationError
from sparsyfed.edge_runtime.format import ParameterKind


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """A parameter record and the model's own tensor that it describes."""

    parameter: Parameter
    tensor: Tensor


def model_tensors(model: nn.Module) -> tuple[ModelTensor, ...]:
    """Return every tensor of `model` that trains or is averaged, in state-dict order.

    The weights of Conv1d, Conv2d and Linear are prunable; other parameters are dense; the running mean and variance
    of batch norms are statistics. Other buffers are left out.

    Raises UnsupportedOperationError for shared or frozen parameters and InputError for dtypes other than float32
    and for lazy layers that have no shape yet.
    """
    prunable, statistics = _kinds_by_module(model)
    trainable = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    first_name: dict[int, str] = {}
    result = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in prunable:
            kind = ParameterKind.WEIGHT
        elif name in statistics:
            kind = ParameterKind.STATISTIC
        elif name in trainable:
            kind = ParameterKind.DENSE
        else:
            continue
        _check(name, tensor, trains=kind is not ParameterKind.STATISTIC)
        other = first_name.setdefault(id(tensor), name)
        if other != name:
            raise UnsupportedOperationError(
                f"{name} and {other} are one shared parameter; give each layer its own"
            )
        result.append(ModelTensor(_parameter(name, kind, tensor), tensor))
    if not result:
        raise UnsupportedOperationError("the model has no parameters: there is nothing to train")
    return tuple(result)


def _kinds_by_module(model: nn.Module) -> tuple[set[str], set[str]]:
    prunable: set[str] = set()
    statistics: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            prunable.add(prefix + "weight")
        elif isinstance(module, _BatchNorm) and module.track_running_stats:
            statistics.update((prefix + "running_mean", prefix + "running_var"))
    return prunable, statistics


def _check(name: str, tensor: Tensor, trains: bool) -> None:
    if is_lazy(tensor):
        raise InputError(
            f"{name} has no shape yet, its layer is lazy: call the model on an example before"
        )
    if tensor.dtype is not torch.float32:
        raise InputError(
            f"{name} is {tensor.dtype}; devices train float32: call model.float() first"
        )
    if trains and not tensor.requires_grad:
        raise UnsupportedOperationError(
            f"{name} is frozen (requires_grad=False), and devices train every parameter; "
            "call requires_grad_(True) or leave the layer out of the model"
        )


def _parameter(name: str, kind: ParameterKind, tensor: Tensor) -> Parameter:
    shape = tuple(tensor.shape)
    if kind is not ParameterKind.WEIGHT:
        return Parameter(kind, 1, (tensor.numel(), 1, 1, 1), name)
    if len(shape) == 2:
        dimensions = (shape[0], shape[1], 1, 1)
    elif len(shape) == 3:
        dimensions = (shape[0], shape[1], 1, shape[2])
    else:
        dimensions = (shape[0], shape[1], shape[2], shape[3])
    return Parameter(kind, len(shape), dimensions, name)
