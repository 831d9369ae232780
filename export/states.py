"""States from models and back: initial values, values of a module, and modules that hold or serve a state."""

from __future__ import annotations

import copy
import math
from array import array
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.errors import MismatchError
from sparsyfed.edge_runtime.format import ParameterKind
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State
from sparsyfed.export.parameters import ModelTensor, model_tensors
from sparsyfed.export.powerprop import check_beta, powerprop

_TRUNCATED_STD = 0.87962566
"""Standard deviation of a standard normal distribution cut at ±2."""


def initial_state(
    model: nn.Module,
    beta: float = 1.25,
    sparsity: float = 0.0,
    seed: int = 0,
    budget: str | Mapping[str, int] = "global",
) -> State:
    """Return the state that training starts from, its tensors in the order of the compiled artifact.

    For each prunable weight, in that order, u is drawn from a normal distribution of standard deviation sqrt(1 /
    fan_in) / 0.87962566 cut at ±2 standard deviations, and v = sign(u)·|u|^(1/β), so that w starts as u. Their biases
    are zero; norm weights, norm biases and running statistics are the model's.

    With a `sparsity` above 0 only the largest |v| by `budget` are kept ("global": one ranking over all layers, "erk"
    or a mapping: a count for each layer; ties to the lower position). At 0 every position is in the support.

    The draw depends on `seed` and the model's shapes alone, not on PyTorch's global random state.
    """
    check_beta(beta)
    entries = model_tensors(model)
    parameters = [entry.parameter for entry in entries]
    counts = keep_counts(parameters, sparsity, budget)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        entry.parameter.name: _draw(entry.tensor.shape, beta, generator)
        for entry in entries
        if entry.parameter.kind is ParameterKind.WEIGHT
    }
    dense = sum(counts) == sum(weight.numel() for weight in weights.values())
    if not dense:
        _prune(list(weights.values()), [count for count in counts if count])
    biases = {name.removesuffix("weight") + "bias" for name in weights}
    values = []
    for entry in entries:
        name, tensor = entry.parameter.name, entry.tensor
        values.append(weights.get(name, torch.zeros_like(tensor) if name in biases else tensor))
    return _state(entries, values, keep_zeros=dense)


def state_from_model(model: nn.Module) -> State:
    """Return the state whose v and dense tensors are the values of `model`; every position is in the support."""
    entries = model_tensors(model)
    return _state(entries, [entry.tensor for entry in entries], keep_zeros=True)


def load_state(model: nn.Module, state: State) -> None:
    """Write v and the dense tensors of `state` into `model`, whose weights then hold v.

    Raises MismatchError, before anything is written, if the state is of another model.
    """
    values = dense_tensors(model, state)
    with torch.no_grad():
        for entry in model_tensors(model):
            entry.tensor.copy_(values[entry.parameter.name])


def dense_tensors(model: nn.Module, state: State) -> dict[str, Tensor]:
    """Return the values of `state` by name, in the shapes of `model`, zeros outside the support.

    Raises MismatchError if the state is of another model.
    """
    entries = model_tensors(model)
    _check_match(entries, state)
    return {
        entry.parameter.name: _dense(stored).view(entry.tensor.shape)
        for entry, stored in zip(entries, state.tensors, strict=True)
    }


def to_inference(model: nn.Module, state: State, beta: float = 1.25) -> nn.Module:
    """Return a copy of `model` in evaluation mode whose weights are w = sign(v)·|v|^β, for serving.

    `beta` must be the one that the state was trained with: a state does not tell. Raises MismatchError if the state
    is of another model.
    """
    check_beta(beta)
    served = copy.deepcopy(model)
    load_state(served, state)
    with torch.no_grad():
        for entry in model_tensors(served):
            if entry.parameter.kind is ParameterKind.WEIGHT:
                entry.tensor.copy_(powerprop(entry.tensor, beta))
    return served.eval()


def _draw(shape: torch.Size, beta: float, generator: torch.Generator) -> Tensor:
    std = math.sqrt(1 / math.prod(shape[1:])) / _TRUNCATED_STD
    u = torch.empty(shape, dtype=torch.float32)
    nn.init.trunc_normal_(u, 0.0, std, -2 * std, 2 * std, generator=generator)
    return u.sign() * u.abs().pow(1 / beta)


def _prune(weights: list[Tensor], counts: list[int]) -> None:
    """Set all but the largest |v| to zero, with one count over all weights or one for each."""
    if len(counts) != 1:
        for weight, count in zip(weights, counts, strict=True):
            _zero_all_but_largest(weight.view(-1), count)
        return
    flat = torch.cat([weight.view(-1) for weight in weights])
    _zero_all_but_largest(flat, counts[0])
    start = 0
    for weight in weights:
        weight.view(-1).copy_(flat[start : start + weight.numel()])
        start += weight.numel()


def _zero_all_but_largest(v: Tensor, count: int) -> None:
    v[torch.sort(v.abs(), descending=True, stable=True).indices[count:]] = 0


def _state(entries: tuple[ModelTensor, ...], values: list[Tensor], *, keep_zeros: bool) -> State:
    tensors: list[SparseTensor | DenseTensor] = []
    for entry, value in zip(entries, values, strict=True):
        parameter, data = entry.parameter, value.detach().cpu().contiguous().numpy().data
        if parameter.kind is ParameterKind.WEIGHT:
            tensors.append(
                SparseTensor.from_dense(
                    parameter.name, parameter.rows, parameter.columns, data, keep_zeros=keep_zeros
                )
            )
        else:
            tensors.append(DenseTensor.from_dense(parameter.name, parameter.kind, data))
    return State(tuple(tensors))


def _check_match(entries: tuple[ModelTensor, ...], state: State) -> None:
    wanted = [
        (p.name, (p.rows, p.columns) if p.kind is ParameterKind.WEIGHT else p.count)
        for p in (entry.parameter for entry in entries)
    ]
    got = [
        (t.name, (t.rows, t.columns) if isinstance(t, SparseTensor) else t.count)
        for t in state.tensors
    ]
    if got == wanted:
        return
    for place, (mine, theirs) in enumerate(zip(wanted, got, strict=False)):
        if mine != theirs:
            raise MismatchError(
                f"tensor {place} of the state is {theirs[0]!r} of size {theirs[1]}, the model has {mine[0]!r} "
                f"of size {mine[1]}: the state is of another model"
            )
    raise MismatchError(
        f"the state has {len(got)} tensors, the model {len(wanted)}: the state is of another model"
    )


def _dense(stored: SparseTensor | DenseTensor) -> Tensor:
    values = _tensor(stored.value, torch.float32)
    if isinstance(stored, DenseTensor):
        return values
    bounds = _tensor(stored.row_pointer, torch.uint32).long()
    rows = torch.repeat_interleave(torch.arange(stored.rows), bounds.diff())
    width = torch.uint16 if stored.column.typecode == "H" else torch.uint32
    dense = torch.zeros(stored.rows, stored.columns, dtype=torch.float32)
    dense[rows, _tensor(stored.column, width).long()] = values
    return dense


def _tensor(values: array[int] | array[float], dtype: torch.dtype) -> Tensor:
    # frombuffer refuses an empty buffer
    return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
