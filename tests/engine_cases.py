"""Models, states and batches on which exported training steps are compared with the eager reference."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn

from sparsyfed import export
from sparsyfed.edge_runtime import DenseTensor, SparseTensor, State
from sparsyfed.edge_runtime.kept_inputs import kept_inputs
from sparsyfed.export import models
from sparsyfed.export.gate import Cases, Run, keep_count_largest
from sparsyfed.export.joint_graph import JointGraph, joint_graph
from sparsyfed.export.powerprop import method_of
from sparsyfed.export.states import dense_tensors

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


def narrow_net() -> nn.Module:
    """Batch norms over one value for each channel of an example, so that a batch of one has one."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, bias=False),
        nn.BatchNorm2d(8, momentum=0.3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 12),
        nn.BatchNorm1d(12, affine=False),
        nn.SiLU(),
        nn.Linear(12, 4),
    )


def small_resnet18(norm: models.NormName) -> nn.Module:
    """ResNet-18 with an eighth of its channels."""
    return models.ResNet(10, (8, 16, 32, 64), 2, models._norm(norm))


BUILDERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "watch_cnn": (models.watch_cnn, (6, 128), "cross_entropy"),
    "kws_dscnn": (lambda: models.kws_dscnn(width=16), (1, 49, 10), "cross_entropy"),
    "resnet8": (models.resnet8, (3, 16, 16), "cross_entropy"),
    "resnet18_batch": (lambda: small_resnet18("batch"), (3, 16, 16), "cross_entropy"),
    "resnet18_group": (lambda: small_resnet18("group"), (3, 16, 16), "cross_entropy"),
    "mlp": (models.mlp, (1, 28, 28), "cross_entropy"),
    "odd_net": (OddNet, (2, 21, 15), "cross_entropy"),
    "signal_net": (signal_net, (3, 45), "mse"),
    "narrow_net": (narrow_net, (3, 4, 4), "cross_entropy"),
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
def gate_cases(name: str) -> Cases:
    return Cases(compiled(name))


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


class GraphTrainer:
    """An exported step of SGD in training, by the names of its joint graph."""

    def __init__(self, run: Run, artifact: export.TrainingArtifact, state: State) -> None:
        self.run = run
        values = dense_tensors(artifact.model, state)
        self.state = {f"state.{name}": value for name, value in values.items()}

    def step(self, x: Tensor, y: Tensor, keep: Tensor, rate: float, decay: float) -> float:
        rates = {"learning_rate": torch.tensor(rate), "weight_decay": torch.tensor(decay)}
        results = dict(self.run({**self.state, "x": x, "y": y, "keep": keep, **rates}))
        loss = float(results.pop("loss"))
        self.state = {name.removeprefix("new_"): value for name, value in results.items()}
        return loss

    def values(self) -> Mapping[str, Tensor]:
        return {name.removeprefix("state."): value for name, value in self.state.items()}


@dataclass(frozen=True)
class Trajectory:
    """Twenty steps of the reference with other counts from the tenth on."""

    state: State
    steps: list[tuple[Tensor, Tensor, Tensor]]
    losses: list[float]
    values: dict[str, Tensor]


RATE, DECAY = 0.02, 1e-3


@cache
def trajectory(name: str, density: float) -> Trajectory:
    artifact = compiled(name)
    state = state_at(artifact, density)
    oracle = EagerTrainer(artifact, state)
    zeros = {key: oracle.values()[key] == 0 for key in oracle.weights}
    steps, losses = [], []
    for turn in range(20):
        x, y = batch(artifact, 4 + turn % 3, seed=turn)
        keep = torch.tensor(kept_inputs(artifact.native, state, len(x)))
        steps.append((x, y, (keep if turn < 10 else keep // 2).clamp(min=1)))
        losses.append(oracle.step(*steps[-1], RATE, DECAY))
    for key, zero in zeros.items():
        assert torch.equal(oracle.values()[key] == 0, zero), key
    return Trajectory(state, steps, losses, dict(oracle.values()))


def follow_eager(name: str, density: float, engine: Trainer) -> None:
    """Zeros stay exactly zero; the values, taken together, end within 1e-3 of the reference.

    Not each tensor by itself: an activation that is zero but for rounding may pass a rectifier in
    one engine and not in another, which turns one step's gradient by percents.
    """
    wanted = trajectory(name, density)
    for (x, y, keep), loss in zip(wanted.steps, wanted.losses, strict=True):
        assert engine.step(x, y, keep, RATE, DECAY) == pytest.approx(loss, rel=1e-2)
    got = engine.values()
    for key, value in wanted.values.items():
        assert torch.equal(got[key] == 0, value == 0), key
    together = torch.cat([value.flatten() for value in wanted.values.values()])
    errors = torch.cat([(got[key] - value).flatten() for key, value in wanted.values.items()])
    assert errors.norm() <= 1e-3 * together.norm()


def follow_at_all_densities(name: str, train: Run) -> None:
    """`follow_eager` by an exported step."""
    artifact = compiled(name)
    for density in DENSITIES:
        follow_eager(name, density, GraphTrainer(train, artifact, state_at(artifact, density)))
