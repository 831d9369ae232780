"""The ExecuTorch program trains as the eager reference does, in the runtime of the executorch package."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import (
    GraphTrainer,
    batch,
    compiled,
    follow_at_all_densities,
    gate_cases,
    state_at,
    traced,
)
from torch import Tensor, nn

from sparsyfed import export
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.backends import executorch_engine, executorch_library
from sparsyfed.edge_runtime.errors import (
    BackendError,
    InputError,
    UnsupportedOperationError,
    VerificationError,
)
from sparsyfed.edge_runtime.kept_inputs import kept_inputs
from sparsyfed.export import (
    core_kernels,
    core_rules,
    executorch_program,
    executorch_stock,
    gate,
)
from sparsyfed.export.joint_graph import JointGraph, add_sgd, joint_graph
from sparsyfed.export.powerprop import keep_largest
from sparsyfed.export.states import dense_tensors

# By its full name, since `export.to_executorch` is the function.
target = importlib.import_module("sparsyfed.export.to_executorch")

pytestmark = pytest.mark.long

Files = Callable[[str], Path]


def lowered(graph: JointGraph, name: str, kernels: str, path: Path) -> gate.Run:
    """One method alone, in the runtime."""
    own = core_kernels.with_kernels(graph) if kernels == "sparsyfed" else graph
    ruled = executorch_program.written(own, executorch_stock.DECOMPOSITIONS, executorch_stock.PLAIN)
    methods = {name: executorch_program.exported(ruled, 16)}
    path.write_bytes(executorch_program.Program(methods).encode({}))
    return loaded(path, name, graph)


def loaded(path: Path, name: str, graph: JointGraph) -> gate.Run:
    executorch_library.load_operators()
    run: gate.Run = target.runner(executorch_engine.loaded(path), name, graph)
    return run


@pytest.mark.parametrize("name", ["mlp", "odd_net", "signal_net"])
def test_twenty_steps_follow_the_eager_reference(name: str, executorch_file: Files) -> None:
    train = loaded(executorch_file(name), "train", add_sgd(traced(name)))
    follow_at_all_densities(name, train)


def test_the_step_of_a_deep_net_is_right(tmp_path: Path) -> None:
    """The method `train` alone: to write all of them takes twice as long."""
    name = "resnet18_batch"
    train = lowered(add_sgd(traced(name)), "train", "sparsyfed", tmp_path / "m.pte")
    gradients = gate.gradients_of_sgd(compiled(name), train)
    result = gate.verify(gate_cases(name), gradients, "executorch train")
    assert result.median_error <= 1e-5
    assert result.worst_error <= 1e-5
    follow_at_all_densities(name, train)


def small_net() -> nn.Module:
    """Few operators, since each takes a while to export, and those that stock kernels get wrong or lack."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.MaxPool2d(3, 2, 1),
        nn.SiLU(),
        nn.AvgPool2d(2, 1, count_include_pad=False),
        nn.Flatten(),
        nn.Linear(6 * 2 * 2, 3),
    )


@pytest.fixture(scope="module")
def small() -> tuple[export.TrainingArtifact, gate.Cases, JointGraph]:
    torch.manual_seed(0)
    artifact = export.compile(small_net(), torch.zeros(1, 2, 6, 6))
    return artifact, gate.Cases(artifact), joint_graph(artifact)


def test_a_program_of_stock_operators_passes_the_gate(small: Any, tmp_path: Path) -> None:
    artifact, _, _ = small
    record = export.to_executorch(artifact, tmp_path / "m.pte", kernels="stock")
    assert record["verified"]["worst_gradient_error"] <= 1e-5
    assert b"sparsyfed::" not in (tmp_path / "m.pte").read_bytes()


def test_a_program_with_the_cores_operators_passes_the_gate(small: Any, tmp_path: Path) -> None:
    artifact, _, _ = small
    state = export.initial_state(artifact.model, sparsity=0.5)
    record = export.to_executorch(artifact, tmp_path / "m.pte", state, batch_size=7)
    assert record["verified"]["worst_gradient_error"] <= 1e-5
    assert b"aten::convolution" not in (tmp_path / "m.pte").read_bytes()
    module = executorch_engine.loaded(tmp_path / "m.pte")
    described = json.loads(module.run_method("manifest", [])[0].numpy().tobytes())
    assert described == record
    assert described["batch"] == {"least": 1, "most": 7}
    assert described["memory"]["train"] >= described["memory"]["evaluate"] > 0
    structure = Artifact.decode(module.run_method("artifact", [])[0].numpy().tobytes())
    assert structure.identity == described["artifact"]
    wanted = dense_tensors(artifact.model, state)
    for value, got in zip(wanted.values(), module.run_method("parameters", []), strict=True):
        assert torch.equal(value, got)


def folded(v: Tensor, beta: float) -> Tensor:
    """A weight that was computed when the program was written."""
    del beta
    return torch.full_like(v, 0.1)


def unpruned(x: Tensor, count: Tensor, layer: str) -> Tensor:
    del count, layer
    return x


def naive_backward(v: Tensor, d_weight: Tensor, beta: float) -> Tensor:
    """β·|v|^β/|v|: 0/0 at v = 0."""
    size = torch.abs(v)
    return torch.pow(size, beta) / size * d_weight * beta


def with_running_statistics(x: Tensor, *arguments: Any) -> Any:
    """A batch norm in inference mode."""
    weight, bias, mean, variance, _, _, epsilon = arguments
    inverse = torch.rsqrt(variance + epsilon)
    y = (x - mean.reshape(1, -1, 1, 1)) * (inverse * weight).reshape(1, -1, 1, 1)
    return y + bias.reshape(1, -1, 1, 1), mean, inverse, mean * 1.0, variance * 1.0


@pytest.mark.parametrize(
    ("replaced", "rule", "message"),
    [
        (torch.ops.sparsyfed.powerprop.default, folded, "relative error"),
        (torch.ops.sparsyfed.prune.default, unpruned, "weight has a relative error"),
        (torch.ops.sparsyfed.powerprop_backward.default, naive_backward, "not finite"),
        (
            torch.ops.aten._native_batch_norm_legit_functional.default,
            with_running_statistics,
            "relative error",
        ),
    ],
)
def test_a_fault_of_a_decomposition_is_caught(  # noqa: PLR0917 - what pytest gives
    replaced: Any,
    rule: Any,
    message: str,
    small: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    _, cases, graph = small
    monkeypatch.setitem(executorch_stock.DECOMPOSITIONS, replaced, rule)
    run = lowered(graph, "gradients", "stock", tmp_path / "m.pte")
    with pytest.raises(VerificationError, match=message):
        gate.verify(cases, run, "executorch")


def test_a_layer_that_prunes_by_the_count_of_another_is_caught(small: Any, tmp_path: Path) -> None:
    _, cases, graph = small
    swapped = JointGraph(graph.module, graph.inputs, graph.outputs, graph.layers[::-1])
    run = lowered(swapped, "gradients", "sparsyfed", tmp_path / "m.pte")
    with pytest.raises(VerificationError, match="weight has a relative error"):
        gate.verify(cases, run, "executorch")


def test_an_activation_in_the_wrong_order_is_caught(
    small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, cases, graph = small
    monkeypatch.setattr(core_kernels._Order, "_convert", lambda *_, **__: None)
    run = lowered(graph, "gradients", "sparsyfed", tmp_path / "m.pte")
    with pytest.raises(VerificationError, match="relative error"):
        gate.verify(cases, run, "executorch")


def test_a_failing_gate_leaves_no_file(
    small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    artifact, _, _ = small

    def stale(d_y: Tensor, *_: Any) -> Any:
        return d_y * 1.01

    monkeypatch.setitem(core_rules.RULES, torch.ops.aten.silu_backward.default, stale)
    with pytest.raises(VerificationError, match="executorch train: gradient"):
        export.to_executorch(artifact, tmp_path / "m.pte")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", ["distinct", "equal", "few", "rectified"])
def test_stock_pruning_is_that_of_the_reference(values: str) -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    x = {
        "distinct": x,
        "equal": torch.ones_like(x),
        "few": x.round(),
        "rectified": x.relu(),
    }[values]
    for count in (0, 1, 2, 7, 29, 30, 59, 60, 61):
        got = executorch_stock.DECOMPOSITIONS[torch.ops.sparsyfed.prune.default](
            x, torch.tensor(count), "layer"
        )
        assert torch.equal(got, keep_largest(x, count)), count


@pytest.mark.parametrize("examples", [1, 2, 15, 16])
def test_every_batch_size_up_to_the_limit_runs(examples: int, executorch_file: Files) -> None:
    artifact, state = compiled("signal_net"), state_at(compiled("signal_net"), 0.5)
    train = loaded(executorch_file("signal_net"), "train", add_sgd(traced("signal_net")))
    trainer = GraphTrainer(train, artifact, state)
    x, y = batch(artifact, examples, seed=1)
    keep = torch.tensor([10**6] * 3)
    model = export.reference(artifact.model, artifact.beta)
    export.load_state(model, state)
    with torch.no_grad():
        wanted = float(nn.functional.mse_loss(model(x), y))
    assert trainer.step(x, y, keep, 0.1, 0.0) == pytest.approx(wanted, rel=1e-5)


def test_an_operator_without_a_rule_is_named_with_its_layer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    silu = torch.ops.aten.silu.default
    monkeypatch.delitem(executorch_stock.DECOMPOSITIONS, silu)
    monkeypatch.delitem(core_rules.RULES, silu)
    message = r"aten\.silu\.default near layer 'head\.0\.weight'.*native, torchscript"
    with pytest.raises(UnsupportedOperationError, match=message):
        export.to_executorch(compiled("odd_net"), tmp_path / "m.pte")


def test_arguments_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'fast', wanted one of sparsyfed, stock"):
        export.to_executorch(compiled("mlp"), tmp_path / "m.pte", kernels="fast")
    with pytest.raises(InputError, match="got batch_size 2, wanted 5 to 65535"):
        export.to_executorch(compiled("mlp"), tmp_path / "m.pte", batch_size=2)


def test_without_a_compiler_the_error_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load = executorch_library.load_operators.__wrapped__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendError, match=r"no C\+\+20 compiler.*kernels='stock'"):
        load()
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(BackendError, match="do not compile"):
        load()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_batch_without_examples_is_refused(executorch_file: Files) -> None:
    artifact = compiled("mlp")
    engine = executorch_engine.load(executorch_file("mlp"), 1)
    x, y = (tensor.numpy() for tensor in batch(artifact, 3, seed=0))
    assert engine.evaluate(x, y)[0] > 0
    with pytest.raises(RuntimeError, match="0x12"):  # InvalidArgument
        engine.evaluate(x[:0], y[:0])


def test_a_count_below_0_is_refused(executorch_file: Files) -> None:
    artifact = compiled("mlp")
    engine = executorch_engine.load(executorch_file("mlp"), 1)
    x, y = (tensor.numpy() for tensor in batch(artifact, 3, seed=0))
    keep = np.array(kept_inputs(artifact.native, state_at(artifact, 0.5), len(x)))
    engine.gradients(x, y, keep)
    keep[-1] = -1
    with pytest.raises(RuntimeError, match="0x12"):  # InvalidArgument
        engine.gradients(x, y, keep)
