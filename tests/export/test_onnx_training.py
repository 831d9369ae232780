"""The training artifacts do in onnxruntime-training what the eager reference does, without torch and our package."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from engine_cases import (
    BUILDERS,
    compiled,
    follow_at_all_densities,
    gate_cases,
    state_at,
    traced,
)
from onnx import numpy_helper
from onnx_faults import FAULTS
from torch import Tensor

from sparsyfed import export
from sparsyfed.edge_runtime.errors import BackendError, VerificationError
from sparsyfed.export import gate, onnx_operations, onnx_training, training_worker
from sparsyfed.export.joint_graph import evaluation_graph
from sparsyfed.export.onnx_lowering import lowered
from sparsyfed.export.states import dense_tensors
from sparsyfed.export.training_worker import TrainingWorker

ARTIFACTS = ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint")
Edit = Callable[[onnx.ModelProto], None]


def start(name: str) -> dict[str, Tensor]:
    return dense_tensors(compiled(name).model, state_at(compiled(name), 0.1))


@contextmanager
def working(name: str, edit: Edit = lambda _: None) -> Iterator[TrainingWorker]:
    """A worker that has the artifacts of a model, the training model changed by `edit`."""
    artifact = compiled(name)
    evaluate = lowered(evaluation_graph(artifact), "evaluate").SerializeToString()
    with training_worker.training_worker() as worker:
        plain = {"evaluate.onnx": evaluate}
        onnx_training.training_files(artifact, traced(name), plain, start(name), worker)
        path = worker.folder / "training_model.onnx"
        model = onnx.load(path)
        edit(model)
        onnx.save(model, path)
        yield worker


def verify(name: str, worker: TrainingWorker) -> gate.Verification:
    return onnx_training.verify_training(compiled(name), gate_cases(name), start(name), worker)


@pytest.mark.usefixtures("training_python")
@pytest.mark.parametrize("name", BUILDERS)
def test_twenty_steps_follow_the_eager_reference(name: str) -> None:
    with working(name) as worker:
        follow_at_all_densities(name, onnx_training._runner(worker, "train"))


@pytest.mark.usefixtures("training_python")
@pytest.mark.parametrize(
    "name",
    [
        "odd_net",
        "signal_net",
        "narrow_net",
        "resnet18_batch",
        "resnet18_group",
    ],
)
def test_right_artifacts_pass_strictly(name: str) -> None:
    with working(name) as worker:
        result = verify(name, worker)
    assert result.loss_error <= gate.STRICT
    assert result.median_error <= gate.STRICT
    assert result.worst_error <= gate.STRICT


@pytest.mark.usefixtures("training_python")
def test_an_export_writes_verified_artifacts_the_same_each_time(tmp_path: Path) -> None:
    artifact, state = compiled("signal_net"), state_at(compiled("signal_net"), 0.1)
    record = export.to_onnx(artifact, tmp_path / "one", state, training=True)
    export.to_onnx(artifact, tmp_path / "other", state, training=True)
    assert record["verified_training"]["worst_gradient_error"] <= 1e-5
    assert record["engine"]["onnxruntime-training"] == "1.19.2"
    assert json.loads((tmp_path / "one" / "manifest.json").read_text()) == record
    assert {file["name"] for file in record["files"]} > set(ARTIFACTS)
    for name in ARTIFACTS:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    model = onnx.load(tmp_path / "one" / "training_model.onnx")
    names = [value.name for value in model.graph.input]
    assert names[:5] == ["x", "y", "keep", "weight_decay", "state.0.weight"]
    assert names[-2:] == ["state.6.bias_grad.accumulation.buffer", "lazy_reset_grad"]


@pytest.mark.usefixtures("training_python")
@pytest.mark.parametrize(("operator", "rule", "message"), FAULTS)
def test_a_fault_of_a_rule_is_caught(
    operator: Any, rule: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(onnx_operations.RULES, operator, rule)
    with working("odd_net") as worker, pytest.raises(VerificationError, match=message):
        verify("odd_net", worker)


def accumulators(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The nodes that write gradients and statistics, by what they write to."""
    return {
        node.input[0].removeprefix("state."): node
        for node in model.graph.node
        if node.op_type == "InPlaceAccumulatorV2"
    }


def swap_layers(model: onnx.ModelProto) -> None:
    writers = accumulators(model)
    one, other = (
        writers[f"layer1.0.conv{place}.weight_grad.accumulation.buffer"] for place in (1, 2)
    )
    one.input[1], other.input[1] = other.input[1], one.input[1]


def add_statistics_up(model: onnx.ModelProto) -> None:
    (always,) = (tensor for tensor in model.graph.initializer if tensor.name == "always")
    always.CopyFrom(numpy_helper.from_array(np.array([False]), "always"))


def leave_statistics(model: onnx.ModelProto) -> None:
    writers = accumulators(model)
    writers["bn1.running_var"].input[1] = "state.bn1.running_var"


def keep_old_gradients(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([False]), "never"))
    for name, node in accumulators(model).items():
        if name.endswith("buffer"):
            node.input[2] = "never"


def forget_decay(model: onnx.ModelProto) -> None:
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    model.graph.initializer.append(zero)
    for node in model.graph.node:
        if "weight_decay" in node.input:
            node.input[1] = "zero"


@pytest.mark.usefixtures("training_python")
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap_layers, r"gradient\.layer1\.0\.conv[12]\.weight"),
        (add_statistics_up, r"running_(mean|var) has a relative error"),
        (leave_statistics, r"new_state\.bn1\.running_var has a relative error"),
        (keep_old_gradients, r"is not zero everywhere v is"),
        (forget_decay, "optimizer_model.onnx.*has a relative error"),
    ],
)
def test_a_fault_of_the_training_model_is_caught(edit: Edit, message: str) -> None:
    with (
        working("resnet8", edit) as worker,
        pytest.raises(VerificationError, match=f"onnx .*{message}"),
    ):
        verify("resnet8", worker)


@pytest.mark.usefixtures("training_python")
def test_a_checkpoint_with_other_values_is_caught() -> None:
    other = start("mlp") | {"3.bias": torch.zeros(128)}
    with working("mlp") as worker, pytest.raises(VerificationError, match=r"checkpoint: 3\.bias"):
        onnx_training.verify_training(compiled("mlp"), gate_cases("mlp"), other, worker)


def test_an_export_without_the_engine_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    artifact, state = compiled("mlp"), state_at(compiled("mlp"), 0.1)
    wanted = (
        r"install sparsyfed-edge\[onnxruntime-training\].*SPARSYFED_ONNXRUNTIME_TRAINING_PYTHON$"
    )
    monkeypatch.setenv(training_worker.PYTHON_VARIABLE, str(tmp_path / "no" / "python"))
    with pytest.raises(BackendError, match=f"No such file.*{wanted}"):
        export.to_onnx(artifact, tmp_path / "out", state, training=True)
    monkeypatch.delenv(training_worker.PYTHON_VARIABLE)
    with pytest.raises(BackendError, match=rf"there is onnxruntime \d.*{wanted}"):
        export.to_onnx(artifact, tmp_path / "out", state, training=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("training_python")
def test_an_engine_that_fails_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with working("mlp") as worker:
        checkpoint = (worker.folder / "checkpoint").read_bytes()
        (worker.folder / "checkpoint").write_bytes(b"damaged")
        with pytest.raises(BackendError, match="onnxruntime-training: values: "):
            worker.call("values", {})
        (worker.folder / "checkpoint").write_bytes(checkpoint)
        assert worker.call("values", {}).keys() == {f"state.{name}" for name in start("mlp")}
        os.kill(worker._process.pid, signal.SIGSTOP)
        monkeypatch.setattr(training_worker, "LIMIT_SECONDS", 0.2)
        with pytest.raises(BackendError, match=r"the process ended, or took over 0\.2 s"):
            worker.call("values", {})
