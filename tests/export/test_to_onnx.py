"""The ONNX files train in ONNX Runtime as the eager reference does, without our code and without torch."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from engine_cases import (
    BUILDERS,
    EagerTrainer,
    batch,
    compiled,
    follow_at_all_densities,
    state_at,
    traced,
)
from onnx_faults import FAULTS
from torch.fx import Graph, GraphModule

from sparsyfed import export
from sparsyfed.edge_runtime import graph_names
from sparsyfed.edge_runtime.errors import UnsupportedOperationError, VerificationError
from sparsyfed.edge_runtime.kept_inputs import kept_inputs
from sparsyfed.export import onnx_operations
from sparsyfed.export.joint_graph import JointGraph, add_sgd, evaluation_graph
from sparsyfed.export.onnx_lowering import lowered
from sparsyfed.export.powerprop import keep_largest
from sparsyfed.export.states import dense_tensors

# By its full name, since `export.to_onnx` is the function.
target = importlib.import_module("sparsyfed.export.to_onnx")

STRANGER = """
import sys
import numpy as np, onnxruntime
def session(name):
    return onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
parameters, train = session("parameters.onnx"), session("train.onnx")
state = dict(zip([o.name for o in parameters.get_outputs()], parameters.run(None, {})))
names = [o.name for o in train.get_outputs()]
rates = {"learning_rate": np.array(0.1, np.float32), "weight_decay": np.array(1e-3, np.float32)}
with np.load("batch.npz") as batch:
    batch = dict(batch)
for _ in range(3):
    results = dict(zip(names, train.run(None, {**state, **batch, **rates})))
    print(float(results.pop("loss")))
    state = {name.removeprefix("new_"): value for name, value in results.items()}
assert not [name for name in sys.modules if name in ("torch", "sparsyfed")]
"""


WITHOUT_ONNX = """
import sys
sys.modules["onnx"] = None
import torch
from sparsyfed import export
from sparsyfed.edge_runtime import BackendError
artifact = export.compile(torch.nn.Linear(3, 2), torch.zeros(1, 3))
export.to_torchscript(artifact, "m.pt", verify=False)
try:
    export.to_onnx(artifact, "out")
except BackendError as error:
    print(error)
"""


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_twenty_steps_follow_the_eager_reference(name: str) -> None:
    train = session(lowered(add_sgd(traced(name)), "train"))
    follow_at_all_densities(name, target.runner(train))


@pytest.mark.parametrize("name", ["odd_net", "signal_net"])
def test_the_written_files_pass_the_gate(name: str, tmp_path: Path) -> None:
    record = export.to_onnx(compiled(name), tmp_path / "out")
    assert record["verified"]["median_gradient_error"] <= 1e-5
    assert record["verified"]["worst_gradient_error"] <= 1e-5


def test_a_process_with_onnx_runtime_alone_trains(tmp_path: Path) -> None:
    artifact, state = compiled("kws_dscnn"), state_at(compiled("kws_dscnn"), 0.1)
    export.to_onnx(artifact, tmp_path, state, verify=False)
    x, y = batch(artifact, 6, seed=3)
    keep = np.array(kept_inputs(artifact.native, state, 6))
    np.savez(tmp_path / "batch.npz", x=x.numpy(), y=y.numpy(), keep=keep)
    answer = subprocess.run(
        [sys.executable, "-c", STRANGER], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    oracle = EagerTrainer(artifact, state)
    wanted = [oracle.step(x, y, torch.from_numpy(keep), 0.1, 1e-3) for _ in range(3)]
    assert [float(line) for line in answer.stdout.split()] == pytest.approx(wanted, rel=1e-5)


def test_what_is_missing_is_named_and_the_other_targets_do_without_it(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_ONNX]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "install sparsyfed-edge[onnx]" in answer.stdout


def test_evaluation_is_that_of_the_served_model() -> None:
    for name in ("odd_net", "resnet18_group"):
        artifact, state = compiled(name), state_at(compiled(name), 0.1)
        graph = evaluation_graph(artifact)
        run = target.runner(session(lowered(graph, "evaluate")))
        named = {f"state.{n}": v for n, v in dense_tensors(artifact.model, state).items()}
        x, y = batch(artifact, 33, seed=4)
        results = run({**named, "x": x, "y": y})
        logits = export.to_inference(artifact.model, state)(x)
        torch.testing.assert_close(results["loss"], torch.nn.functional.cross_entropy(logits, y))
        assert int(results["correct"]) == int((logits.argmax(1) == y).sum())


@pytest.mark.parametrize("values", ["distinct", "equal", "few", "rectified"])
def test_pruning_is_that_of_the_reference(values: str) -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    x = {
        "distinct": x,
        "equal": torch.ones_like(x),
        "few": x.round(),
        "rectified": x.relu(),
    }[values]
    graph = Graph()
    nodes = [graph.placeholder(name) for name in ("x", "keep")]
    count = graph.call_function(torch.ops.aten.select.int, (nodes[1], 0, 1))
    prune = graph.call_function(torch.ops.sparsyfed.prune.default, (nodes[0], count, "layer"))
    graph.output((prune,))
    metas = (x, torch.zeros(2, dtype=torch.int64), torch.tensor(0), x)
    for node, value in zip((*nodes, count, prune), metas, strict=True):
        node.meta["val"] = value
    source = JointGraph(GraphModule({}, graph), ("x", "keep"), ("pruned",), ("other", "layer"))
    run = target.runner(session(lowered(source, "prune")))
    for kept in (0, 1, 2, 7, 29, 30, 59, 60, 61):
        got = run({"x": x, "keep": torch.tensor([3, kept])})["pruned"]
        assert torch.equal(got, keep_largest(x, kept)), kept


@pytest.mark.parametrize("beta", [1.0, 1.15, 1.25, 1.5, 2.0, 3.75, 16.0])
def test_any_exponent_passes_the_gate(beta: float, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))
    artifact = export.compile(model, torch.zeros(1, 6), beta=beta)
    record = export.to_onnx(artifact, tmp_path)
    assert record["verified"]["worst_gradient_error"] <= 1e-5


@pytest.mark.parametrize(("operator", "rule", "message"), FAULTS)
def test_a_fault_of_a_rule_stops_the_export(
    operator: Any, rule: Any, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(onnx_operations.RULES, operator, rule)
    with pytest.raises(VerificationError, match=message):
        export.to_onnx(compiled("odd_net"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_operator_without_a_rule_is_named_with_its_layer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(onnx_operations.RULES, torch.ops.aten.silu.default)
    message = r"aten\.silu\.default near layer 'head\.0\.weight'.*native, torchscript"
    with pytest.raises(UnsupportedOperationError, match=message):
        export.to_onnx(compiled("odd_net"), tmp_path)


def test_the_same_model_gives_the_same_files_described_by_the_manifest(tmp_path: Path) -> None:
    artifact, state = compiled("signal_net"), state_at(compiled("signal_net"), 1.0)
    for name in ("one", "other"):
        export.to_onnx(artifact, tmp_path / name, state, verify=False)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    record = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert sorted(["manifest.json", *(file["name"] for file in record["files"])]) == names
    for name in names:
        one, other = ((tmp_path / run / name).read_bytes() for run in ("one", "other"))
        assert one == other, name
    assert record["batch"] == "any"
    assert record["x"] == {"type": "float32", "shape": ["batch", 3, 45]}
    assert record["keep"]["rule"] == "ceil(stored * batch * input_elements / positions)"
    for file, graph in record["graphs"].items():
        declared = onnx.load(tmp_path / "one" / file).graph
        assert [port["name"] for port in graph["inputs"]] == [v.name for v in declared.input]
        assert [port["name"] for port in graph["outputs"]] == [v.name for v in declared.output]
    assert record["graphs"].keys() == {"train.onnx", "gradients.onnx", "evaluate.onnx"}
    parameter = record["graphs"]["train.onnx"]["outputs"][1]
    assert parameter == {"name": "new_state.0.weight", "role": "new value", "parameter": "0.weight"}
    model = onnx.load(tmp_path / "one" / "train.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert [value.name for value in model.graph.input][-5:] == [
        *("x", "y", "keep", "learning_rate", "weight_decay")
    ]


def test_an_export_over_an_older_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    """Nothing but what the manifest has: the parameters are those of the initial state then."""
    artifact, folder = compiled("signal_net"), tmp_path / "out"
    export.to_onnx(artifact, folder, state_at(artifact, 0.1), verify=False)
    for name in target.TRAINING_FILES:
        (folder / name).write_bytes(b"of an older export")
    record = export.to_onnx(artifact, folder, verify=False)
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        *(file["name"] for file in record["files"]),
    }
    state = export.initial_state(artifact.model, artifact.beta)
    export.to_onnx(artifact, tmp_path / "other", state, verify=False)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


def test_large_parameters_lie_outside_the_model_file(tmp_path: Path) -> None:
    export.to_onnx(compiled("mlp"), tmp_path, state_at(compiled("mlp"), 0.1), verify=False)
    model = onnx.load(tmp_path / "parameters.onnx", load_external_data=False)
    places = {len(t.raw_data): t.data_location for t in model.graph.initializer}
    assert places[0] == onnx.TensorProto.EXTERNAL
    assert (tmp_path / "parameters.onnx").stat().st_size < 4096


def test_the_program_for_onnxruntime_training_has_the_same_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It can import nothing of ours, and is not imported where onnxruntime is the plain one."""
    monkeypatch.setattr("onnxruntime.capi._pybind_state.Module", object, raising=False)
    path = Path(graph_names.__file__).parent / "backends" / "onnx_training_module.py"
    names = runpy.run_path(str(path), run_name="onnx_training_module")
    assert names["FILES"] == target.TRAINING_FILES
    for name in ("STATE", "NEW_STATE", "GRADIENT", "TRAINED", "STATISTIC"):
        assert names[name] == getattr(graph_names, name), name
