"""ONNX files that call the core's operators train as the eager reference does."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from engine_cases import (
    BUILDERS,
    batch,
    compiled,
    follow_at_all_densities,
    gate_cases,
    state_at,
    traced,
)

from sparsyfed import export
from sparsyfed.edge_runtime import Session, onnxruntime_library
from sparsyfed.edge_runtime.backends import onnx_engine
from sparsyfed.edge_runtime.errors import BackendError, InputError, VerificationError
from sparsyfed.export import gate, onnx_kernels, onnx_operations
from sparsyfed.export.joint_graph import JointGraph, add_sgd
from sparsyfed.export.onnx_graph import CORE, Lowering
from sparsyfed.export.onnx_lowering import lowered

# By its full name, since `export.to_onnx` is the function.
target = importlib.import_module("sparsyfed.export.to_onnx")


@pytest.mark.parametrize("name", ["odd_net", "narrow_net"])
def test_the_written_files_pass_the_gate(name: str, tmp_path: Path) -> None:
    record = export.to_onnx(compiled(name), tmp_path, kernels="sparsyfed")
    assert record["kernels"] == "sparsyfed"
    assert record["verified"]["median_gradient_error"] <= 1e-5
    assert record["verified"]["worst_gradient_error"] <= 2e-2


def test_sessions_of_both_kernels_agree_at_any_batch_size(tmp_path: Path) -> None:
    artifact = compiled("signal_net")
    state = state_at(artifact, 0.1)
    for kernels in ("stock", "sparsyfed"):
        export.to_onnx(artifact, tmp_path / kernels, kernels=kernels, verify=False)
    for examples in (1, 16, 17, 40):
        x, y = (tensor.numpy() for tensor in batch(artifact, examples, seed=5))
        losses = {}
        for kernels in ("stock", "sparsyfed"):
            with Session.open(tmp_path / kernels, state, examples, "onnxruntime") as session:
                losses[kernels] = [session.step(x, y, learning_rate=0.05) for _ in range(5)]
        assert losses["sparsyfed"] == pytest.approx(losses["stock"], rel=1e-4), examples


def test_no_layer_is_left_to_the_engine() -> None:
    model = lowered(onnx_kernels.with_operators(traced("kws_dscnn")), "gradients")
    own = {node.op_type for node in model.graph.node if node.domain == CORE}
    assert {"layer", "layer_backward", "batch_norm", "batch_norm_backward"} <= own
    assert not {node.op_type for node in model.graph.node} & {"Conv", "ConvTranspose", "TopK"}


def test_a_session_without_the_operators_names_them(tmp_path: Path) -> None:
    export.to_onnx(compiled("mlp"), tmp_path, kernels="sparsyfed", verify=False)
    with pytest.raises(Exception, match=CORE):
        onnxruntime.InferenceSession(tmp_path / "train.onnx", providers=["CPUExecutionProvider"])


def test_without_the_library_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = compiled("mlp")
    export.to_onnx(artifact, tmp_path, kernels="sparsyfed", verify=False)
    monkeypatch.setattr(onnxruntime_library, "NAME", "absent.so")
    message = r"absent\.so is not there: install the package again.*kernels 'stock'$"
    with pytest.raises(BackendError, match=message):
        Session.open(tmp_path, state_at(artifact, 0.5), backend="onnxruntime")
    with pytest.raises(BackendError, match=message):
        export.to_onnx(artifact, tmp_path / "other", kernels="sparsyfed")


def run_of(graph: JointGraph, name: str) -> gate.Run:
    model = lowered(onnx_kernels.with_operators(graph), name).SerializeToString()
    run: gate.Run = target.runner(onnx_engine.session(model, threads=1, kernels="sparsyfed"))
    return run


@pytest.mark.parametrize("name", BUILDERS)
def test_twenty_steps_follow_the_eager_reference(name: str) -> None:
    follow_at_all_densities(name, run_of(add_sgd(traced(name)), "train"))


LAYER, BACKWARD, BATCH_NORM = (
    torch.ops.sparsyfed.layer.default,
    torch.ops.sparsyfed.layer_backward.default,
    torch.ops.sparsyfed.batch_norm.default,
)
right = dict(onnx_kernels.RULES)


def with_input(low: Lowering, node: Any, place: int, name: str) -> Any:
    """A call with another input."""
    source = node.args[place]
    held, low.names[source] = low.names[source], name
    result = right[node.target](low, node)
    low.names[source] = held
    return result


def unpruned(low: Lowering, node: Any) -> Any:
    """One of the layers keeps all inputs."""
    if node.args[4] != 1:
        return right[BACKWARD](low, node)
    return with_input(low, node, 3, low.graph.integers([2**31] * 8))


def folded(low: Lowering, node: Any) -> Any:
    """A weight that has become a constant, right for one of the gate's batches."""
    if low.name(node.args[1]) != "state.stem.weight":
        return right[LAYER](low, node)
    v = gate_cases("odd_net").case(0, 0).inputs["state.stem.weight"]
    return with_input(low, node, 1, low.graph.constant(v.numpy()))


def evaluated(low: Lowering, node: Any) -> Any:
    """A batch norm that uses the running statistics."""
    inputs = [low.name(source) for source in node.args[:5]]
    attributes = {"integers": [0], "numbers": [1e-5], "shape": [0]}
    y = low.graph.call("batch_norm_evaluated", *inputs, domain=CORE, **attributes)
    return y, *right[BATCH_NORM](low, node)[1:]


def swapped(low: Lowering, node: Any) -> Any:
    """Layers that prune by the counts of others."""
    count = node.args[3].meta["val"].shape[0]
    other = low.graph.call("Gather", "keep", low.graph.integers(range(count)[::-1]))
    return with_input(low, node, 3, other)


def naive(low: Lowering, node: Any) -> Any:
    """A gradient by way of dL/dv · v / v: 0/0 at v = 0."""
    g, v = low.graph, low.name(node.args[2])
    d_x, d_v, d_bias = right[BACKWARD](low, node)
    return d_x, g.call("Div", g.mul(d_v, v), v), d_bias


@pytest.mark.parametrize(
    ("operator", "rule", "message"),
    [
        (BACKWARD, unpruned, "depthwise.weight has a relative error"),
        (LAYER, folded, "relative error"),
        (BATCH_NORM, evaluated, "relative error"),
        (BACKWARD, swapped, "weight has a relative error"),
        (BACKWARD, naive, "not finite"),
    ],
)
def test_the_gate_catches_a_fault_of_a_rule(
    operator: Any, rule: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(onnx_operations.RULES, operator, rule)
    with pytest.raises(VerificationError, match=message):
        gate.verify(gate_cases("odd_net"), run_of(traced("odd_net"), "gradients"), "onnx")


def test_a_fault_of_a_rule_stops_the_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    operator = next(op for op in onnx_kernels.RULES if "rectifier_backward" in str(op))

    def passed(low: Lowering, node: object) -> str:
        return low.name(node.args[0])  # type: ignore[attr-defined]

    monkeypatch.setitem(onnx_operations.RULES, operator, passed)
    with pytest.raises(VerificationError, match=r"gradient\.1\.weight"):
        export.to_onnx(compiled("mlp"), tmp_path / "out", kernels="sparsyfed")
    assert not (tmp_path / "out").exists()


def test_kernels_are_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stock"):
        export.to_onnx(compiled("mlp"), tmp_path, kernels="fast")
    with pytest.raises(InputError, match="training"):
        export.to_onnx(compiled("mlp"), tmp_path, kernels="sparsyfed", training=True)
