"""Random models for tests: artifacts with states, built directly, without PyTorch.

A model is drawn from a NumPy generator, so that a seed names it. `ModelBuilder` is for single
operations too.
"""

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter, Tensor
from sparsyfed.edge_runtime.format import (
    FLAG_COUNT_PADDING,
    FLAG_GELU_TANH,
    Loss,
    OperationKind,
    ParameterKind,
)
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State

Floats = NDArray[np.float32]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Model:
    """An artifact with a state that belongs to it."""

    artifact: Artifact
    state: State

    def batch(self, rng: np.random.Generator, examples: int) -> tuple[Floats, NDArray[Any]]:
        """Return random inputs, and labels (int32) or target values (float32)."""
        entry, output = self.artifact.tensors[0], self.artifact.tensors[self.artifact.output]
        x = rng.standard_normal((examples, *entry.shape)).astype(np.float32)
        if self.artifact.loss is Loss.CROSS_ENTROPY:
            return x, rng.integers(0, output.size, examples, dtype=np.int32)
        return x, rng.standard_normal((examples, *output.shape)).astype(np.float32)


class ModelBuilder:
    """Collects operations; each method returns the tensor that its operation writes."""

    def __init__(self, entry: Tensor) -> None:
        self.parameters: list[Parameter] = []
        self.tensors = [entry]
        self.operations: list[Operation] = []

    def finish(self, loss: Loss = Loss.CROSS_ENTROPY, beta: float = 1.25) -> Artifact:
        """Return the artifact; its output is the last tensor."""
        return Artifact(
            tuple(self.parameters),
            tuple(self.tensors),
            tuple(self.operations),
            loss,
            len(self.tensors) - 1,
            beta,
        )

    def convolution(
        self,
        source: int,
        channels: int,
        kernel: Pair,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        bias: bool = False,
    ) -> int:
        x = self.tensors[source]
        name = f"conv{len(self.operations)}"
        dimensions = (channels, x.channels // groups, *kernel)
        return self._append(
            Operation(
                OperationKind.CONVOLUTION,
                (source,),
                len(self.tensors),
                name,
                weight=self._parameter(
                    ParameterKind.WEIGHT, f"{name}.weight", dimensions, x.rank + 1
                ),
                bias=self._vector(f"{name}.bias", channels) if bias else None,
                groups=groups,
                kernel=kernel,
                stride=stride,
                padding=padding,
                dilation=dilation,
            ),
            replace(x, channels=channels, **_extent(x, kernel, stride, padding, dilation)),
        )

    def linear(self, source: int, features: int, *, bias: bool = True) -> int:
        name = f"linear{len(self.operations)}"
        dimensions = (features, self.tensors[source].size, 1, 1)
        return self._append(
            Operation(
                OperationKind.LINEAR,
                (source,),
                len(self.tensors),
                name,
                weight=self._parameter(ParameterKind.WEIGHT, f"{name}.weight", dimensions, 2),
                bias=self._vector(f"{name}.bias", features) if bias else None,
            ),
            Tensor(features, 1, 1, 1),
        )

    def batch_norm(
        self, source: int, *, affine: bool = True, tracked: bool = True, momentum: float = 0.125
    ) -> int:
        name, channels = f"norm{len(self.operations)}", self.tensors[source].channels
        kind = ParameterKind.STATISTIC
        operation = Operation(
            OperationKind.BATCH_NORM,
            (source,),
            len(self.tensors),
            name,
            weight=self._vector(f"{name}.weight", channels) if affine else None,
            bias=self._vector(f"{name}.bias", channels) if affine else None,
            mean=self._vector(f"{name}.running_mean", channels, kind) if tracked else None,
            variance=self._vector(f"{name}.running_var", channels, kind) if tracked else None,
            epsilon=float(np.float32(1e-5)),
            momentum=momentum,
        )
        return self._append(operation, self.tensors[source])

    def group_norm(self, source: int, groups: int, *, affine: bool = True) -> int:
        name, channels = f"norm{len(self.operations)}", self.tensors[source].channels
        operation = Operation(
            OperationKind.GROUP_NORM,
            (source,),
            len(self.tensors),
            name,
            weight=self._vector(f"{name}.weight", channels) if affine else None,
            bias=self._vector(f"{name}.bias", channels) if affine else None,
            groups=groups,
            epsilon=float(np.float32(1e-5)),
        )
        return self._append(operation, self.tensors[source])

    def layer_norm(self, source: int, normalized: int, *, affine: bool = True) -> int:
        name = f"norm{len(self.operations)}"
        operation = Operation(
            OperationKind.LAYER_NORM,
            (source,),
            len(self.tensors),
            name,
            weight=self._vector(f"{name}.weight", normalized) if affine else None,
            bias=self._vector(f"{name}.bias", normalized) if affine else None,
            epsilon=float(np.float32(1e-5)),
            normalized=normalized,
        )
        return self._append(operation, self.tensors[source])

    def activation(self, source: int, kind: OperationKind, *, tanh: bool = False) -> int:
        name, flags = f"activation{len(self.operations)}", FLAG_GELU_TANH if tanh else 0
        operation = Operation(kind, (source,), len(self.tensors), name, flags)
        return self._append(operation, self.tensors[source])

    def pool(
        self,
        source: int,
        kind: OperationKind,
        kernel: Pair,
        *,
        stride: Pair,
        padding: Pair = (0, 0),
        count_padding: bool = False,
    ) -> int:
        x = self.tensors[source]
        operation = Operation(
            kind,
            (source,),
            len(self.tensors),
            f"pool{len(self.operations)}",
            FLAG_COUNT_PADDING if count_padding else 0,
            kernel=kernel,
            stride=stride,
            padding=padding,
        )
        return self._append(operation, replace(x, **_extent(x, kernel, stride, padding, (1, 1))))

    def adaptive_pool(self, source: int, height: int, width: int) -> int:
        return self._simple(
            OperationKind.ADAPTIVE_AVERAGE_POOL,
            (source,),
            replace(self.tensors[source], height=height, width=width),
        )

    def add(self, first: int, second: int) -> int:
        return self._simple(OperationKind.ADD, (first, second), self.tensors[first])

    def reshape(self, source: int, shape: Tensor | None = None) -> int:
        """Return the source in another shape; by default flat."""
        flat = Tensor(self.tensors[source].size, 1, 1, 1)
        return self._simple(OperationKind.RESHAPE, (source,), shape or flat)

    def _simple(self, kind: OperationKind, inputs: tuple[int, ...], output: Tensor) -> int:
        name = f"{kind.name.lower()}{len(self.operations)}"
        return self._append(Operation(kind, inputs, len(self.tensors), name), output)

    def _append(self, operation: Operation, output: Tensor) -> int:
        self.operations.append(operation)
        self.tensors.append(output)
        return len(self.tensors) - 1

    def _vector(self, name: str, size: int, kind: ParameterKind = ParameterKind.DENSE) -> int:
        return self._parameter(kind, name, (size, 1, 1, 1), 1)

    def _parameter(
        self, kind: ParameterKind, name: str, dimensions: tuple[int, int, int, int], rank: int
    ) -> int:
        self.parameters.append(Parameter(kind, rank, dimensions, name))
        return len(self.parameters) - 1


def _extent(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> dict[str, int]:
    height, width = (
        (size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, size in enumerate((x.height, x.width))
    )
    return {"height": height, "width": width}


def random_state(
    artifact: Artifact,
    rng: np.random.Generator,
    density: float | Sequence[float],
    *,
    stored_zeros: bool = False,
) -> State:
    """Return a state with random supports of that density, one for all weights or one for each.

    A weight of a density above 0 has at least one entry. The values of v have the spread that keeps
    activations of the order of 1 at any density. With `stored_zeros` one stored value of each
    weight is zero.
    """
    densities = iter([density] * len(artifact.prunable) if isinstance(density, float) else density)
    tensors: list[SparseTensor | DenseTensor] = []
    for parameter in artifact.parameters:
        if parameter.kind is ParameterKind.WEIGHT:
            tensors.append(_random_weight(artifact, parameter, rng, next(densities), stored_zeros))
            continue
        values = rng.normal(0, 0.3, parameter.count)
        if parameter.name.endswith("running_var"):
            values = rng.uniform(0.5, 2, parameter.count)
        elif parameter.name.startswith("norm") and parameter.name.endswith("weight"):
            values = rng.uniform(0.5, 1.5, parameter.count)
        stored = array("f", values.astype(np.float32).tobytes())
        tensors.append(DenseTensor(parameter.name, parameter.kind, stored))
    return State(tuple(tensors))


def _random_weight(
    artifact: Artifact,
    parameter: Parameter,
    rng: np.random.Generator,
    density: float,
    stored_zeros: bool,
) -> SparseTensor:
    count = max(round(density * parameter.count), 1 if density > 0 else 0)
    positions = np.sort(rng.permutation(parameter.count)[:count])
    deviation = 1 / math.sqrt(max(1.0, parameter.columns * density))  # of a random walk along a row
    u = rng.uniform(0.3, 1.7, count) * rng.choice([-deviation, deviation], count)
    v = np.sign(u) * np.abs(u) ** (1 / artifact.beta)
    if stored_zeros and count > 1:
        v[rng.integers(count)] = 0
    rows = np.bincount(positions // parameter.columns, minlength=parameter.rows)
    return SparseTensor(
        parameter.name,
        parameter.rows,
        parameter.columns,
        array("I", [0, *np.cumsum(rows).tolist()]),
        array("H" if parameter.columns <= 65536 else "I", (positions % parameter.columns).tolist()),
        array("f", v.astype(np.float32).tobytes()),
    )


def residual_cnn(rng: np.random.Generator) -> Artifact:
    """Draw a residual CNN with batch norm, ReLU, max pool, and a strided 1 x 1 shortcut."""
    net = ModelBuilder(
        Tensor(int(rng.integers(1, 4)), int(rng.integers(7, 11)), int(rng.integers(7, 11)), 3)
    )
    width = 4 * int(rng.integers(1, 3))
    x = net.convolution(0, width, (3, 3), padding=(1, 1))
    x = net.activation(net.batch_norm(x), OperationKind.RELU)
    if rng.random() < 0.5:
        x = net.pool(x, OperationKind.MAX_POOL, (3, 3), stride=(1, 1), padding=(1, 1))
    for channels, stride in ((width, 1), (2 * width, 2)):
        y = net.convolution(x, channels, (3, 3), stride=(stride, stride), padding=(1, 1))
        y = net.activation(net.batch_norm(y), OperationKind.RELU)
        y = net.batch_norm(net.convolution(y, channels, (3, 3), padding=(1, 1)))
        if stride > 1:
            x = net.batch_norm(net.convolution(x, channels, (1, 1), stride=(stride, stride)))
        x = net.activation(net.add(y, x), OperationKind.RELU)
    x = net.reshape(net.adaptive_pool(x, 1, 1))
    net.linear(x, int(rng.integers(3, 11)))
    return net.finish()


def depthwise_cnn(rng: np.random.Generator) -> Artifact:
    """Draw a depthwise-separable CNN with group norm, ReLU6, dilation and an average pool."""
    net = ModelBuilder(
        Tensor(int(rng.integers(1, 3)), int(rng.integers(9, 13)), int(rng.integers(8, 12)), 3)
    )
    width = 4 * int(rng.integers(3, 6))
    kernel = (int(rng.integers(2, 5)), int(rng.integers(2, 4)))
    x = net.convolution(0, width, kernel, stride=(2, 1), padding=(2, 1), bias=True)
    x = net.activation(net.group_norm(x, 4), OperationKind.RELU6)
    dilation = int(rng.integers(1, 3))
    for _ in range(2):
        x = net.convolution(
            x,
            width,
            (3, 3),
            padding=(dilation, dilation),
            dilation=(dilation, dilation),
            groups=width,
        )
        x = net.activation(net.group_norm(x, 2), OperationKind.RELU6)
        x = net.convolution(x, width, (1, 1), groups=int(rng.choice([1, 2])), bias=True)
        x = net.activation(net.group_norm(x, 2), OperationKind.RELU6)
    x = net.pool(
        x,
        OperationKind.AVERAGE_POOL,
        (2, 2),
        stride=(2, 2),
        padding=(1, 1),
        count_padding=bool(rng.random() < 0.5),
    )
    x = net.adaptive_pool(x, 1, 1)
    net.linear(net.reshape(x), int(rng.integers(3, 11)))
    return net.finish()


def signal_cnn(rng: np.random.Generator) -> Artifact:
    """Draw a 1-D CNN with group norm, ReLU and max pools, trained for regression."""
    net = ModelBuilder(Tensor(int(rng.integers(2, 7)), 1, int(rng.integers(64, 80)), 2))
    x, width = 0, 4 * int(rng.integers(2, 4))
    for _ in range(2):
        kernel, padding = int(rng.integers(3, 6)), int(rng.integers(0, 3))
        dilation = int(rng.integers(1, 3))
        x = net.convolution(
            x,
            width,
            (1, kernel),
            stride=(1, int(rng.integers(1, 3))),
            padding=(0, padding),
            dilation=(1, dilation),
        )
        x = net.activation(net.group_norm(x, 4), OperationKind.RELU)
        x = net.pool(x, OperationKind.MAX_POOL, (1, 2), stride=(1, 2))
    x = net.reshape(net.adaptive_pool(x, 1, 2))
    net.linear(x, int(rng.integers(2, 6)))
    return net.finish(Loss.MEAN_SQUARED_ERROR)


def mlp(rng: np.random.Generator) -> Artifact:
    """Draw an MLP with layer norm, GELU of both forms, SiLU and a residual addition."""
    net = ModelBuilder(Tensor(int(rng.integers(10, 40)), 1, 1, 1))
    width = 8 * int(rng.integers(2, 5))
    x = net.layer_norm(net.linear(0, width), width)
    x = net.activation(x, OperationKind.GELU, tanh=bool(rng.random() < 0.5))
    y = net.layer_norm(net.linear(x, width), width // 2)
    y = net.activation(y, OperationKind.SILU)
    y = net.activation(net.linear(y, width, bias=False), OperationKind.GELU)
    net.linear(net.add(x, y), int(rng.integers(2, 12)))
    return net.finish(beta=float(rng.choice([1.0, 1.25, 2.0])))


ARCHITECTURES: dict[str, Callable[[np.random.Generator], Artifact]] = {
    "residual": residual_cnn,
    "depthwise": depthwise_cnn,
    "signal": signal_cnn,
    "mlp": mlp,
}


def random_model(architecture: str, seed: int, density: float, *, empty: bool = False) -> Model:
    """Return a model of a named architecture; with `empty` its second weight has no entry."""
    rng = np.random.default_rng(seed)
    artifact = ARCHITECTURES[architecture](rng)
    densities = [density] * len(artifact.prunable)
    if empty:
        densities[1] = 0.0
    return Model(artifact, random_state(artifact, rng, densities))
