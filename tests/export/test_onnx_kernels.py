"""ONNX files that call the core's operators train as the eager reference does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from engine_cases import batch, compiled, state_at, traced

from sparsyfed import export
from sparsyfed.edge_runtime import Session
from sparsyfed.edge_runtime.backends import onnx_engine
from sparsyfed.edge_runtime.errors import InputError, VerificationError
from sparsyfed.export import onnx_kernels, onnx_operations
from sparsyfed.export.onnx_graph import CORE, Lowering
from sparsyfed.export.onnx_lowering import lowered


@pytest.mark.parametrize("name", ["odd_net", "narrow_net", "signal_net", "mlp", "resnet18_group"])
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


def test_an_input_without_elements_is_an_error_not_a_crash() -> None:
    helper = onnx.helper
    floats = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 2]) for n in "xy"]
    node = helper.make_node(
        "to_rows", ["x"], ["y"], domain=CORE, integers=[0], numbers=[0.0], shape=[-1, 2]
    )
    model = helper.make_model(
        helper.make_graph([node], "empty", floats[:1], floats[1:]),
        opset_imports=[helper.make_opsetid(CORE, 1)],
        ir_version=10,
    )
    session = onnx_engine.session(model.SerializeToString(), kernels="sparsyfed")
    with pytest.raises(Exception, match="without elements"):
        session.run(None, {"x": np.zeros((0, 2), np.float32)})


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
