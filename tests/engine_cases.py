"""Models, states and batches on which exported training steps are compared with the eager reference."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn

from sparsyfed import export
from sparsyfed.edge_runtime import DenseTensor, SparseTensor, State
from sparsyfed.edge_runtime.kept_inputs import kept_inputs
from sparsyfed.export import models
from sparsyfed.export.gate import Case, Run, keep_count_largest, make_cases
from sparsyfed.export.joint_graph import JointGraph, joint_graph
from sparsyfed.export.powerprop import method_of

torch.set_num_threads(1)


class OddNet(nn.Module):
    """Odd strides, paddings and groups, a residual add, three norms and every pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, (4, 3), (2, 1), (1, 0))
        self.norm = nn.BatchNorm2d(6, momentum=0.3)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=2, dilation=2, groups=6, bias=False)
        self.grouped = nn.Conv2d(12, 12, (1, 3), padding=(0, 1), groups=3)
        self.group_norm = nn.GroupNorm(4, 12)
        self.max_pool = nn.MaxPool2d(3, 2, 1)
        self.average_pool = nn.AvgPool2d((2, 3), 2, (1, 1), count_include_pad=False)
        self.head = nn.Sequential(
            nn.Conv2d(12, 10, (2, 3), (3, 2), bias=False),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d((2, 1)),
            nn.LayerNorm((10, 2, 1)),
            nn.Flatten(),
            nn.Linear(20, 15),
            nn.ReLU6(),
            nn.Dropout(0.5),
            nn.Linear(15, 4, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(nn.functional.gelu(self.norm(self.stem(x))))
        x = x + nn.functional.gelu(self.group_norm(self.grouped(x)), approximate="tanh")
        logits: Tensor = self.head(self.average_pool(self.max_pool(torch.relu(x))))
        return logits


def signal_net() -> nn.Module:
    """A regression over a signal: 1-D layers and pools, no norm."""
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, 2, padding=1, dilation=2),
        nn.ReLU(inplace=True),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3, groups=8, bias=False),
        nn.AvgPool1d(3, 1, 1),
        nn.Flatten(),
        nn.Linear(8 * 8, 5),
    )


def small_resnet18(norm: models.NormName) -> nn.Module:
    """ResNet-18 with an eighth of its channels."""
    return models.ResNet(10, (8, 16, 32, 64), 2, models._norm(norm))


BUILDERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "watch_cnn": (models.watch_cnn, (6, 256), "cross_entropy"),
    "kws_dscnn": (lambda: models.kws_dscnn(width=16), (1, 49, 10), "cross_entropy"),
    "resnet8": (models.resnet8, (3, 32, 32), "cross_entropy"),
    "resnet18_batch": (lambda: small_resnet18("batch"), (3, 16, 16), "cross_entropy"),
    "resnet18_group": (lambda: small_resnet18("group"), (3, 16, 16), "cross_entropy"),
    "mlp": (models.mlp, (1, 28, 28), "cross_entropy"),
    "odd_net": (OddNet, (2, 21, 15), "cross_entropy"),
    "signal_net": (signal_net, (3, 45), "mse"),
}
DENSITIES = (1.0, 0.1, 0.02)


@cache
def compiled(name: str) -> export.TrainingArtifact:
    build, shape, loss = BUILDERS[name]
    torch.manual_seed(0)
    return export.compile(build(), torch.zeros(1, *shape), loss=loss)


@cache
def traced(name: str) -> JointGraph:
    return joint_graph(compiled(name))


@cache
def gate_cases(name: str) -> list[Case]:
    return make_cases(compiled(name))


def runner(graph: JointGraph) -> Run:
    """The graph itself as an exported step."""

    def run(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results = graph.module(*(named[name] for name in graph.inputs))
        return dict(zip(graph.outputs, results, strict=True))

    return run


def state_at(artifact: export.TrainingArtifact, density: float, seed: int = 0) -> State:
    """Random v at the density, random biases, norm parameters and running statistics."""
    state = export.initial_state(artifact.model, sparsity=1 - density, seed=seed, budget="erk")
    generator = torch.Generator().manual_seed(seed)
    tensors: list[SparseTensor | DenseTensor] = []
    for tensor in state.tensors:
        if isinstance(tensor, DenseTensor):
            values = 0.5 + torch.rand(tensor.count, generator=generator)
            tensors.append(replace(tensor, value=array("f", values.tolist())))
        else:
            tensors.append(tensor)
    return State(tuple(tensors))


def batch(artifact: export.TrainingArtifact, examples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, *artifact.input_shape, generator=generator)
    shape = artifact.native.tensors[artifact.native.output].shape
    if artifact.loss == "mse":
        return x, torch.randn(examples, *shape, generator=generator)
    return x, torch.randint(shape[0], (examples,), generator=generator)


def eager(artifact: export.TrainingArtifact, state: State) -> nn.Module:
    """The eager reference in training mode with the values of `state`."""
    reference = export.reference(artifact.model, artifact.beta)
    export.load_state(reference, state)
    return reference.train()


def eager_loss(artifact: export.TrainingArtifact, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    if artifact.loss == "mse":
        return nn.functional.mse_loss(model(x), y)
    return nn.functional.cross_entropy(model(x), y)


def inputs(
    artifact: export.TrainingArtifact, model: nn.Module, state: State, x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """The inputs of a training graph by name, with the values of `model` and the counts of `state`."""
    values = dict(model.state_dict())
    named = {f"state.{p.name}": values[p.name].clone() for p in artifact.native.parameters}
    keep = torch.tensor(kept_inputs(artifact.native, state, len(x)))
    return {**named, "x": x, "y": y, "keep": keep}


class Trainer(Protocol):
    """An engine in training: one step of SGD, and the values after it by parameter name."""

    def step(self, x: Tensor, y: Tensor, keep: Tensor, rate: float, decay: float) -> float: ...
    def values(self) -> Mapping[str, Tensor]: ...


class EagerTrainer:
    """The reference in training, with the counts that it is given."""

    def __init__(self, artifact: export.TrainingArtifact, state: State) -> None:
        self.artifact = artifact
        self.model = eager(artifact, state)
        self.weights = [artifact.native.parameters[i].name for i in artifact.native.prunable]

    def step(self, x: Tensor, y: Tensor, keep: Tensor, rate: float, decay: float) -> float:
        for name, count in zip(self.weights, keep.tolist(), strict=True):
            method_of(self.model, name).prune = partial(keep_count_largest, count=count)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, weight_decay=decay)
        loss = eager_loss(self.artifact, self.model, x, y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.item()

    def values(self) -> Mapping[str, Tensor]:
        state = self.model.state_dict()
        return {p.name: state[p.name] for p in self.artifact.native.parameters}


def follow_eager(artifact: export.TrainingArtifact, state: State, engine: Trainer) -> None:
    """Twenty steps with other counts from the tenth on: zeros stay, values end within 1e-3 of eager."""
    oracle = EagerTrainer(artifact, state)
    zeros = {name: value == 0 for name, value in oracle.values().items()}
    for turn in range(20):
        x, y = batch(artifact, 4 + turn % 3, seed=turn)
        keep = torch.tensor(kept_inputs(artifact.native, state, len(x)))
        keep = (keep if turn < 10 else keep // 2).clamp(min=1)
        wanted = oracle.step(x, y, keep, rate=0.02, decay=1e-3)
        assert engine.step(x, y, keep, 0.02, 1e-3) == pytest.approx(wanted, rel=1e-3)
    got = engine.values()
    for name, value in oracle.values().items():
        assert torch.equal(got[name] == 0, value == 0), name
        if name in oracle.weights:
            assert torch.equal(value == 0, zeros[name]), name
        assert (got[name] - value).norm() <= 1e-3 * value.norm(), name
