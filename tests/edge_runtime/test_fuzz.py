"""The C core under sanitizers: random models of odd geometry, and mutations of their files."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter, Tensor
from sparsyfed.edge_runtime.format import (
    FLAG_COUNT_PADDING,
    FLAG_GELU_TANH,
    Loss,
    OperationKind,
    ParameterKind,
)
from sparsyfed.edge_runtime.reference import ReferenceModel
from sparsyfed.edge_runtime.session import Session
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State
from sparsyfed.edge_runtime.update import SparseUpdate

ROOT = Path(__file__).parents[2]
CORE = ROOT / "edge_runtime" / "csrc"
HARNESS = [ROOT / "tests" / "c" / name for name in ("fuzz_mutations.c", "mutate.c")]
SANITIZED = (
    "-std=c99 -Wall -Wextra -Wpedantic -Werror -O1 -g -ffp-contract=off -fno-omit-frame-pointer "
    "-fsanitize=address,undefined -fno-sanitize-recover=all"
)
MUTATIONS = 3400
"""Of each of the three files of a model."""

Shape = tuple[int, ...]
Fields = dict[str, Any]


class Builder:
    """Collects a model's parameters, tensors and operations; each operation reads the last tensor."""

    def __init__(self, *shape: int) -> None:
        self.parameters: list[Parameter] = []
        self.operations: list[Operation] = []
        self.shapes: list[Shape] = [shape]

    @property
    def last(self) -> int:
        return len(self.shapes) - 1

    @property
    def shape(self) -> Shape:
        return self.shapes[-1]

    def parameter(self, kind: ParameterKind, name: str, *shape: int) -> int:
        out, *rest = shape
        if len(shape) == 3:
            rest.insert(1, 1)
        inner, height, width = (*rest, 1, 1, 1)[:3]
        self.parameters.append(Parameter(kind, len(shape), (out, inner, height, width), name))
        return len(self.parameters) - 1

    def add(self, kind: OperationKind, shape: Shape | None = None, **fields: Any) -> None:
        """Append an operation, by default one that keeps the shape."""
        fields.setdefault("inputs", (self.last,))
        name = f"{kind.name.lower()}{self.last}"
        self.shapes.append(self.shape if shape is None else shape)
        self.operations.append(Operation(kind, output=self.last, name=name, **fields))

    def linear(self, outputs: int, *, bias: bool = True) -> None:
        size = make_tensor(self.shape).size
        name = f"linear{self.last}"
        fields = {"weight": self.parameter(ParameterKind.WEIGHT, f"{name}.weight", outputs, size)}
        if bias:
            fields["bias"] = self.parameter(ParameterKind.DENSE, f"{name}.bias", outputs)
        self.add(OperationKind.LINEAR, (outputs,), **fields)

    def window(self, kind: OperationKind, outputs: int, window: Fields, **fields: Any) -> None:
        """Append a convolution or pool with the output shape that the window gives."""
        extents = self.shape[1:]
        result = tuple(
            (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for extent, kernel, stride, padding, dilation in zip(
                extents,
                *(window[name] for name in ("kernel", "stride", "padding")),
                window.get("dilation", (1,) * len(extents)),
                strict=True,
            )
        )
        if min(result) < 1:
            return
        # A signal's window has height 1.
        fill = {"kernel": 1, "stride": 1, "padding": 0, "dilation": 1}
        full = {name: (fill[name], *two)[-2:] for name, two in window.items()}
        if kind is OperationKind.CONVOLUTION:
            inner = self.shape[0] // fields["groups"]
            name = f"convolution{self.last}"
            shape = (outputs, inner, *window["kernel"])
            fields["weight"] = self.parameter(ParameterKind.WEIGHT, f"{name}.weight", *shape)
            fields["bias"] = self.parameter(ParameterKind.DENSE, f"{name}.bias", outputs)
        self.add(kind, (outputs, *result), **full, **fields)

    def norm(self, kind: OperationKind, size: int, *, tracked: bool = True, **fields: Any) -> None:
        name = f"norm{self.last}"
        if kind is OperationKind.BATCH_NORM and tracked:
            fields["mean"] = self.parameter(ParameterKind.STATISTIC, f"{name}.mean", size)
            fields["variance"] = self.parameter(ParameterKind.STATISTIC, f"{name}.variance", size)
        fields["weight"] = self.parameter(ParameterKind.DENSE, f"{name}.weight", size)
        fields["bias"] = self.parameter(ParameterKind.DENSE, f"{name}.bias", size)
        self.add(kind, epsilon=1e-5, **fields)

    def build(self, loss: Loss, beta: float) -> Artifact:
        tensors = tuple(map(make_tensor, self.shapes))
        return Artifact(
            tuple(self.parameters), tensors, tuple(self.operations), loss, self.last, beta
        )


def make_tensor(shape: Shape) -> Tensor:
    channels, *extents = shape
    height, width = (1, 1, *extents)[-2:]
    return Tensor(channels, height, width, len(shape))


def image_model() -> Artifact:
    """Every operation, with groups, dilation and a residual connection."""
    kinds = OperationKind
    model = Builder(2, 9, 8)
    near: Fields = {"stride": (1, 1), "padding": (1, 1)}
    window: Fields = {"kernel": (3, 3), **near}
    flat: Fields = {**window, "dilation": (1, 1)}
    model.window(kinds.CONVOLUTION, 4, flat, groups=1)
    model.norm(kinds.BATCH_NORM, 4, momentum=0.1)
    model.add(kinds.RELU)
    model.window(kinds.CONVOLUTION, 4, {**flat, "dilation": (2, 1), "padding": (2, 1)}, groups=2)
    model.norm(kinds.GROUP_NORM, 4, groups=2)
    model.add(kinds.ADD, inputs=(5, 3))
    model.add(kinds.GELU, flags=FLAG_GELU_TANH)
    model.window(kinds.MAX_POOL, 4, {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0)})
    model.add(kinds.RELU6)
    model.window(kinds.AVERAGE_POOL, 4, window, flags=FLAG_COUNT_PADDING)
    model.add(kinds.SILU)
    model.add(kinds.ADAPTIVE_AVERAGE_POOL, (4, 2, 3))
    model.add(kinds.RESHAPE, (24,))
    model.norm(kinds.LAYER_NORM, 24, normalized=24)
    model.linear(5)
    return model.build(Loss.CROSS_ENTROPY, 1.25)


def signal_model() -> Artifact:
    """Convolution and pool of a 1-D signal, mean squared error."""
    model = Builder(3, 16)
    window: Fields = {"kernel": (3,), "stride": (2,), "padding": (1,), "dilation": (1,)}
    model.window(OperationKind.CONVOLUTION, 4, window, groups=1)
    model.add(OperationKind.GELU)
    model.window(OperationKind.MAX_POOL, 4, {"kernel": (2,), "stride": (2,), "padding": (0,)})
    model.linear(2)
    return model.build(Loss.MEAN_SQUARED_ERROR, 2.0)


def random_window(numbers: random.Random, axes: int, *, pool: bool) -> Fields:
    """A window of any geometry: steps over inputs, dilated, wider than its input, deep in the padding."""
    kernel = tuple(numbers.randint(1, 4) for _ in range(axes))
    window: Fields = {"kernel": kernel}
    window["stride"] = tuple(numbers.choice([1, 1, 2, 3, 5]) for _ in range(axes))
    most = (size // 2 if pool else 4 for size in kernel)
    window["padding"] = tuple(numbers.randint(0, size) for size in most)
    if not pool:
        window["dilation"] = tuple(numbers.choice([1, 1, 2, 3]) for _ in range(axes))
    return window


def append_random_operation(model: Builder, numbers: random.Random) -> None:
    kinds = OperationKind
    channels, *extents = model.shape
    axes = len(extents)
    kind = numbers.choice([kind for kind in kinds if kind is not kinds.LINEAR])
    match kind:
        case kinds.CONVOLUTION:
            groups = numbers.choice([g for g in range(1, channels + 1) if channels % g == 0])
            outputs = groups * numbers.randint(1, 3)
            window = random_window(numbers, axes, pool=False)
            model.window(kind, outputs, window, groups=groups)
        case kinds.MAX_POOL:
            model.window(kind, channels, random_window(numbers, axes, pool=True))
        case kinds.AVERAGE_POOL:
            flags = numbers.choice([0, FLAG_COUNT_PADDING])
            model.window(kind, channels, random_window(numbers, axes, pool=True), flags=flags)
        case kinds.ADAPTIVE_AVERAGE_POOL:
            model.add(kind, (channels, *(numbers.randint(1, extent + 2) for extent in extents)))
        case kinds.BATCH_NORM:
            model.norm(kind, channels, tracked=numbers.random() < 0.8, momentum=0.1)
        case kinds.GROUP_NORM:
            groups = numbers.choice([g for g in range(1, channels + 1) if channels % g == 0])
            model.norm(kind, channels, groups=groups)
        case kinds.LAYER_NORM:
            size = numbers.choice([extents[-1], make_tensor(model.shape).size])
            model.norm(kind, size, normalized=size)
        case kinds.ADD:
            fitting = [i for i, shape in enumerate(model.shapes) if shape == model.shape]
            model.add(kind, inputs=(model.last, numbers.choice(fitting)))
        case kinds.GELU:
            model.add(kind, flags=numbers.choice([0, FLAG_GELU_TANH]))
        case kinds.RESHAPE:
            if axes == 2 and extents[0] > 1:
                model.add(kind, (channels * extents[0], 1, extents[1]))
        case _:
            model.add(kind)


def random_model(seed: int) -> Artifact:
    """A model of up to 8 operations, then a linear layer with cross-entropy or any output with squared error."""
    numbers = random.Random(seed)
    model = Builder(numbers.randint(1, 4), *(numbers.randint(1, 8) for _ in range(1 + seed % 2)))
    for _ in range(numbers.randint(1, 8)):
        append_random_operation(model, numbers)
    loss = numbers.choice(list(Loss))
    if loss is Loss.CROSS_ENTROPY or model.last == 0 or not model.parameters:
        model.linear(numbers.randint(1, 4), bias=numbers.random() < 0.5)
    return model.build(loss, numbers.choice([1.0, 1.25, 2.0, 16.0]))


def make_state(artifact: Artifact, density: float) -> State:
    """A state with random values, of which about `density` lie in the support."""
    numbers = random.Random(len(artifact.operations))
    tensors: list[SparseTensor | DenseTensor] = []
    for parameter in artifact.parameters:
        values = array("f", (numbers.uniform(-1.0, 1.0) for _ in range(parameter.count)))
        if parameter.kind is ParameterKind.WEIGHT:
            kept = array("f", (v if numbers.random() < density else 0.0 for v in values))
            shape = (parameter.rows, parameter.columns)
            tensors.append(SparseTensor.from_dense(parameter.name, *shape, kept, keep_zeros=False))
        else:
            tensors.append(
                DenseTensor(parameter.name, parameter.kind, array("f", map(abs, values)))
            )
    return State(tuple(tensors), round=3)


def make_update(state: State) -> SparseUpdate:
    """An update with the first half of each row of the state."""
    tensors: list[SparseTensor | DenseTensor] = []
    for tensor in state.tensors:
        if isinstance(tensor, DenseTensor):
            tensors.append(tensor)
            continue
        pointer, column, value = array("I", [0]), tensor.column[:0], array("f")
        for start, end in zip(tensor.row_pointer, tensor.row_pointer[1:], strict=False):
            middle = (start + end + 1) // 2
            column += tensor.column[start:middle]
            value += tensor.value[start:middle]
            pointer.append(len(column))
        shape = (tensor.rows, tensor.columns)
        tensors.append(SparseTensor(tensor.name, *shape, pointer, column, value))
    return SparseUpdate(tuple(tensors), state.round, state.support_id)


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fuzz harness with the sources of the core, under sanitizers."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc here to build the sanitized core with")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz_mutations"
    sources = [*HARNESS, *sorted(CORE.glob("*.c"))]
    command = [compiler, *SANITIZED.split(), f"-I{CORE}", *map(str, sources), "-lm"]
    command += ["-o", str(program)]
    subprocess.run(command, check=True, timeout=300)
    return program


def run_harness(
    program: Path, folder: Path, artifact: Artifact, *, density: float, seed: int, count: int
) -> dict[str, str]:
    """The harness's line for each file, once it ran without a complaint."""
    state = make_state(artifact, density)
    contents = {
        "model.sfd": artifact.encode(),
        "state.sfs": state.encode(),
        "update.sfs": make_update(state).encode(),
    }
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    command = [str(program), *(str(folder / file) for file in contents), str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = {line.split(":")[0]: line for line in done.stdout.splitlines()}
    assert set(lines) == {"artifact", "state", "update"}
    return lines


def number(line: str, word: str) -> int:
    found = re.search(rf"(\d+) {word}", line)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("build", [image_model, signal_model])
def test_mutated_files_neither_crash_nor_break_a_promise(
    harness: Path, tmp_path: Path, build: Any
) -> None:
    lines = run_harness(harness, tmp_path, build(), density=0.6, seed=20250, count=MUTATIONS)
    for line in lines.values():
        assert number(line, "accepted") + number(line, "refused") == MUTATIONS
        assert number(line, "accepted") > 50
    for file in ("artifact", "state"):
        assert number(lines[file], "trained") > 50
    codes = {file: set(map(int, re.findall(r"(-\d+)=", line))) for file, line in lines.items()}
    length, magic, version, crc, structure, limit, index, value, support, codec = (
        *(-2, -3, -4, -5, -6, -7, -10, -11, -16, -17),
    )
    assert codes["artifact"] >= {length, magic, version, crc, structure}
    assert codes["state"] >= {length, magic, version, crc, structure, index, value, codec}
    assert codes["update"] >= {length, magic, version, crc, structure, index, support}
    assert limit in codes["artifact"] | codes["state"] | codes["update"]


@pytest.mark.parametrize("seed", range(40))
def test_random_models_train_in_bounds(harness: Path, tmp_path: Path, seed: int) -> None:
    density = (1.0, 0.5, 0.1, 0.0)[seed % 4]
    run_harness(harness, tmp_path, random_model(seed), density=density, seed=seed, count=20)


def test_the_same_seed_makes_the_same_mutations(harness: Path, tmp_path: Path) -> None:
    first, second, other = (
        run_harness(harness, tmp_path, signal_model(), density=0.6, seed=seed, count=300)
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize("seed", range(40))
def test_random_models_have_the_gradients_of_the_reference(seed: int) -> None:
    artifact = random_model(seed)
    state = make_state(artifact, (1.0, 0.5)[seed % 2])
    numbers = np.random.default_rng(seed)
    output = artifact.tensors[artifact.output]
    x = numbers.standard_normal((3, *artifact.tensors[0].shape)).astype(np.float32)
    labels = numbers.integers(0, output.channels, 3, dtype=np.int32)
    targets = numbers.standard_normal((3, *output.shape)).astype(np.float32)
    y: Any = labels if artifact.loss is Loss.CROSS_ENTROPY else targets
    reference = ReferenceModel(artifact, state)
    wanted_loss, wanted = reference.gradients(x, y)
    with Session.open(artifact, state, batch_size=4) as session:
        loss, gradients = session.gradients(x, y)
        evaluation, correct = session.evaluate(x, y)
    assert loss == pytest.approx(wanted_loss, rel=1e-4, abs=1e-6)
    wanted_evaluation, wanted_correct = reference.evaluate(x, y)
    assert evaluation == pytest.approx(wanted_evaluation, rel=1e-4, abs=1e-6)
    assert correct == wanted_correct
    # What cancels to zero in exact arithmetic leaves rounding errors of the size of its terms.
    largest = max(float(np.abs(gradient).max(initial=0.0)) for gradient in wanted.values())
    for index, parameter in enumerate(artifact.parameters):
        if parameter.kind is not ParameterKind.STATISTIC:
            support = reference.supports[index]
            exact = wanted[parameter.name]
            exact = exact if support is None else exact[support]
            np.testing.assert_allclose(
                gradients[parameter.name], exact.ravel(), rtol=2e-3, atol=1e-4 * max(largest, 1e-2)
            )
