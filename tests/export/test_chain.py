"""The native runtime against the eager reference, on models that the package does not contain.

The reference computes in float64, so that what is measured is the error of the native core.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from sparsyfed import export
from sparsyfed.edge_runtime import DenseTensor, Session, SparseTensor, State

torch.set_num_threads(1)

TOLERANCE = 1e-4
ROUNDING = 1e-6
"""Share of the whole gradient's norm below which a tensor's gradient is zero but for rounding."""


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, in_place: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(in_place),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def residual_cnn(choose: random.Random) -> tuple[nn.Module, tuple[int, ...], int]:
    width = choose.choice([5, 8, 11])
    model = nn.Sequential(
        nn.Conv2d(3, width, choose.choice([3, 5]), padding="same", bias=False),
        nn.BatchNorm2d(width, momentum=choose.choice([0.1, 0.3])),
        nn.ReLU6() if choose.random() < 0.5 else nn.ReLU(inplace=True),
        Residual(width, width, 1, choose.random() < 0.5),
        nn.MaxPool2d(3, 2, 1),
        Residual(width, 2 * width, 2, choose.random() < 0.5),
        nn.AdaptiveAvgPool2d(choose.choice([1, 2])),
        nn.Flatten(),
        nn.LazyLinear(6),
    )
    return model, (3, choose.randint(9, 13), choose.randint(9, 13)), 6


def depthwise_cnn(choose: random.Random) -> tuple[nn.Module, tuple[int, ...], int]:
    groups = choose.choice([1, 2, 4])
    width = 4 * choose.choice([2, 3])
    model = nn.Sequential(
        nn.Conv2d(2, width, (4, 3), (2, 1), (1, 0)),
        nn.GroupNorm(groups, width),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=width, bias=False),
        nn.GroupNorm(groups, width, affine=False),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 1, groups=2),
        nn.GELU(approximate=choose.choice(["none", "tanh"])),
        nn.AvgPool2d((2, 3), stride=2, padding=(1, 1), count_include_pad=choose.random() < 0.5),
        nn.Conv2d(2 * width, 2 * width, (3, 2), 2),
        nn.AdaptiveAvgPool2d((1, None)),
        nn.Flatten(),
        nn.LazyLinear(4, bias=False),
    )
    return model, (2, choose.randint(12, 16), choose.randint(11, 14)), 4


def one_dimensional_cnn(choose: random.Random) -> tuple[nn.Module, tuple[int, ...], int]:
    width = choose.choice([6, 8])
    length = choose.randint(33, 48)
    model = nn.Sequential(
        nn.Conv1d(3, width, 7, 2, 3),
        nn.GroupNorm(2, width),
        nn.ReLU(),
        nn.Conv1d(width, width, 5, padding="same", groups=2, bias=False),
        nn.LayerNorm((length + 1) // 2),
        nn.GELU(),
        nn.MaxPool1d(2) if choose.random() < 0.5 else nn.AvgPool1d(3, 2, 1),
        nn.Conv1d(width, 2 * width, 3, dilation=2, bias=False),
        nn.BatchNorm1d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(3),
        nn.Flatten(),
        nn.LazyLinear(5),
    )
    return model, (3, length), 5


def perceptron(choose: random.Random) -> tuple[nn.Module, tuple[int, ...], int]:
    hidden = choose.randint(20, 60)
    model = nn.Sequential(
        nn.Linear(17, hidden),
        nn.LayerNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, 40),
        nn.ReLU6(),
        nn.Dropout(0.5),
        nn.Linear(40, 3),
    )
    return model, (17,), 3


FAMILIES: dict[str, Callable[[random.Random], tuple[nn.Module, tuple[int, ...], int]]] = {
    "residual_cnn": residual_cnn,
    "depthwise_cnn": depthwise_cnn,
    "one_dimensional_cnn": one_dimensional_cnn,
    "perceptron": perceptron,
}
DENSITIES: list[float | str] = [1.0, 0.1, 0.05, 0.001, "empty layer"]


@cache
def compiled(family: str, seed: int, loss: str) -> tuple[export.TrainingArtifact, int]:
    torch.manual_seed(seed)
    model, shape, outputs = FAMILIES[family](random.Random(seed))
    model(torch.randn(2, *shape))
    return export.compile(model, torch.zeros(1, *shape), loss=loss), outputs


def random_state(model: nn.Module, density: float | str, seed: int) -> State:
    """Random v at the density, random biases, norm parameters and running statistics."""
    sparsity = 0.5 if density == "empty layer" else 1 - float(density)
    state = export.initial_state(model, sparsity=sparsity, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    tensors: list[SparseTensor | DenseTensor] = []
    for tensor in state.tensors:
        if isinstance(tensor, DenseTensor):
            values = 0.5 + torch.rand(tensor.count, generator=generator)
            tensors.append(replace(tensor, value=array("f", values.tolist())))
        else:
            tensors.append(tensor)
    if density == "empty layer":
        empty(tensors, seed)
    return State(tuple(tensors))


def empty(tensors: list[SparseTensor | DenseTensor], seed: int) -> None:
    """Empty a layer in a residual branch, or else the last one.

    After an empty layer without a shortcut, activations no longer depend on the data: they tie in
    their thousands, and rounding alone decides which of them are saved.
    """
    weights = [i for i, tensor in enumerate(tensors) if isinstance(tensor, SparseTensor)]
    branches = [i for i in weights if ".body." in tensors[i].name]
    place = branches[seed % len(branches)] if branches else weights[-1]
    emptied = tensors[place]
    assert isinstance(emptied, SparseTensor)
    tensors[place] = replace(
        emptied,
        row_pointer=array("I", [0] * (emptied.rows + 1)),
        column=emptied.column[:0],
        value=array("f"),
    )


def eager(artifact: export.TrainingArtifact, state: State) -> nn.Module:
    reference = export.reference(artifact.model, artifact.beta)
    export.load_state(reference, state)
    return reference.train().double()


def batch(
    artifact: export.TrainingArtifact, outputs: int, size: int, seed: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *artifact.input_shape, generator=generator)
    if artifact.loss == "mse":
        return x, torch.randn(size, outputs, generator=generator)
    return x, torch.randint(outputs, (size,), generator=generator)


def eager_loss(
    artifact: export.TrainingArtifact, reference: nn.Module, x: Tensor, y: Tensor
) -> Tensor:
    output = reference(x.double())
    if artifact.loss == "mse":
        return nn.functional.mse_loss(output, y.double())
    return nn.functional.cross_entropy(output, y)


def stored(tensor: SparseTensor | DenseTensor, values: Tensor) -> Tensor:
    """The values at the entries that the tensor stores."""
    if isinstance(tensor, DenseTensor):
        return values.flatten()
    bounds = torch.tensor(tensor.row_pointer.tolist())
    rows = torch.repeat_interleave(torch.arange(tensor.rows), bounds.diff())
    columns = torch.tensor(tensor.column.tolist(), dtype=torch.int64)
    return values.reshape(tensor.rows, tensor.columns)[rows, columns]


def cases() -> list[tuple[str, float | str, int, str]]:
    sizes = [1, 2, 5, 16, 33]
    listed = []
    for f, family in enumerate(FAMILIES):
        for d, density in enumerate(DENSITIES):
            loss = "mse" if (f + d) % 4 == 3 else "cross_entropy"
            listed += [(family, density, sizes[(f + d) % 5], loss)]
            listed += [(family, density, sizes[(f + d + 3) % 5], "cross_entropy")]
    return listed


@pytest.mark.parametrize(("family", "density", "size", "loss"), cases())
def test_native_loss_and_gradients_equal_the_eager_reference(
    family: str, density: float | str, size: int, loss: str
) -> None:
    for seed in (1, 2):
        artifact, outputs = compiled(family, seed, loss)
        state = random_state(artifact.model, density, seed)
        reference = eager(artifact, state)
        x, y = batch(artifact, outputs, size, seed)
        wanted_loss = eager_loss(artifact, reference, x, y)
        torch.autograd.backward(wanted_loss)
        with Session.open(artifact.native, state, batch_size=size) as session:
            loss_value, gradients = session.gradients(x.numpy(), y.numpy())
        assert loss_value == pytest.approx(wanted_loss.item(), rel=TOLERANCE)
        compare_gradients(state, reference, gradients)


def compare_gradients(
    state: State, reference: nn.Module, gradients: dict[str, array[float]]
) -> None:
    wanted = {}
    for tensor in state.tensors:
        if tensor.name in gradients:
            dense = reference.get_parameter(tensor.name).grad
            assert dense is not None
            wanted[tensor.name] = stored(tensor, dense)
    assert gradients.keys() == {name for name, _ in reference.named_parameters()}
    floor = ROUNDING * torch.cat(list(wanted.values())).norm().item()
    for name, gradient in wanted.items():
        error = (torch.tensor(gradients[name], dtype=torch.float64) - gradient).norm().item()
        assert error <= TOLERANCE * max(gradient.norm().item(), floor), name


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_native_steps_follow_the_eager_reference(family: str, density: float | str) -> None:
    artifact, outputs = compiled(family, 3, "cross_entropy")
    state = random_state(artifact.model, density, 3)
    reference = eager(artifact, state)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, weight_decay=1e-3)
    with Session.open(artifact.native, state, batch_size=9) as session:
        for step in range(20):
            x, y = batch(artifact, outputs, 3 + step % 7, step)
            optimizer.zero_grad()
            loss = eager_loss(artifact, reference, x, y)
            torch.autograd.backward(loss)
            optimizer.step()
            native = session.step(x.numpy(), y.numpy(), learning_rate=0.05, weight_decay=1e-3)
            assert native == pytest.approx(loss.item(), rel=TOLERANCE)
        trained = session.state()
    assert trained.support_id == state.support_id
    values = dict(reference.state_dict())
    for tensor in trained.tensors:
        dense = values[tensor.name]
        wanted = stored(tensor, dense)
        if isinstance(tensor, SparseTensor):
            assert torch.count_nonzero(dense) == tensor.count
        error = (torch.tensor(tensor.value, dtype=torch.float64) - wanted).norm()
        assert error <= TOLERANCE * wanted.norm(), tensor.name


@pytest.mark.parametrize("family", FAMILIES)
def test_native_evaluation_equals_the_served_model(family: str) -> None:
    artifact, outputs = compiled(family, 4, "cross_entropy")
    state = random_state(artifact.model, 0.1, 4)
    served = export.to_inference(artifact.model, state, beta=artifact.beta)
    x, y = batch(artifact, outputs, 40, 4)
    with torch.no_grad():
        logits = served(x)
    with Session.open(artifact.native, state, batch_size=16) as session:
        loss, correct = session.evaluate(x.numpy(), y.numpy())
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=TOLERANCE)
    assert correct == int((logits.argmax(1) == y).sum())
