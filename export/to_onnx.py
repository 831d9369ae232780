"""The joint graph as plain ONNX: train, gradient and evaluation graphs that any current ONNX Runtime runs.

The parameters are inputs and outputs of the graphs, not part of them: nothing can be folded, and the files are small.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.edge_runtime.state import State
from sparsyfed.export import gate
from sparsyfed.export.joint_graph import add_sgd, evaluation_graph, joint_graph
from sparsyfed.export.manifest import (
    encode,
    file_record,
    manifest,
    operators,
    verification_record,
)
from sparsyfed.export.states import dense_tensors
from sparsyfed.export.training_artifact import TrainingArtifact

if TYPE_CHECKING:
    import onnxruntime


def to_onnx(
    artifact: TrainingArtifact,
    directory: str | Path,
    state: State | None = None,
    *,
    verify: bool = True,
) -> dict[str, Any]:
    """Write the training step of `artifact` as ONNX files to a folder, made if need be; return its manifest.

    * `train.onnx`: one step of SGD. Inputs `state.<parameter>`, `x`, `y`, `keep`, `learning_rate`, `weight_decay`;
      outputs `loss` and `new_state.<parameter>`, to be fed as `state.<parameter>` next.
    * `gradients.onnx`: the same without rates; outputs `loss`, `gradient.<parameter>`, `new_state.<statistic>`.
    * `evaluate.onnx`: inputs `state.<parameter>`, `x`, `y`; outputs `loss` and, for cross-entropy, `correct`.
    * `parameters.onnx` with `parameters.bin`, if a `state` is given: a graph without inputs whose outputs are
      `state.<parameter>`, large tensors as external data.
    * `model.sfd` and `manifest.json`, which is written last.

    x is float32 (batch, ...), y int64 labels or float32 targets, `keep` int64 with one count for each prunable weight,
    the rates float32 without dimensions. Any batch size will do.

    With `verify` the written graphs run through the gate in ONNX Runtime, which raises VerificationError (BackendError
    if it is not installed) before any file is written; without it a fault of the exporter would be found by the
    devices.
    """
    try:
        from sparsyfed.export import onnx_lowering  # noqa: PLC0415 - the other targets need no onnx
    except ImportError as error:
        raise BackendError(f"cannot write ONNX: {error}; install sparsyfed-edge[onnx]") from error
    graph = joint_graph(artifact)
    graphs = {"train": add_sgd(graph), "gradients": graph, "evaluate": evaluation_graph(artifact)}
    files = {
        f"{name}.onnx": onnx_lowering.lowered(source, name).SerializeToString()
        for name, source in graphs.items()
    }
    record = manifest(artifact, "onnx", {**onnx_lowering.VERSIONS, "torch": torch.__version__})
    record["operators"] = operators(graph)
    if verify:
        record["verified"] = verification_record(_verified(artifact, files, record["engine"]))
    files["model.sfd"] = artifact.encode()
    if state is not None:
        files |= onnx_lowering.parameter_files(dense_tensors(artifact.model, state))
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomic(folder / name, data)
    record["files"] = [file_record(folder / name) for name in sorted(files)]
    write_atomic(folder / "manifest.json", encode(record))
    return record


def runner(session: onnxruntime.InferenceSession) -> gate.Run:
    """Return an ONNX graph in ONNX Runtime as the gate wants it."""
    inputs = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]

    def run(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results = session.run(outputs, {name: named[name].numpy() for name in inputs})
        return {
            name: torch.from_numpy(np.asarray(value))
            for name, value in zip(outputs, results, strict=True)
        }

    return run


def _verified(
    artifact: TrainingArtifact,
    files: Mapping[str, bytes],
    engine: dict[str, str],
) -> gate.Verification:
    try:
        import onnxruntime  # noqa: PLC0415 - an export that is not verified needs none
    except ImportError as error:
        raise BackendError(
            "onnxruntime, which the export is verified with, is not there: install sparsyfed-edge[onnx], "
            "or export with verify=False and verify elsewhere"
        ) from error
    engine["onnxruntime"] = onnxruntime.__version__
    providers = ["CPUExecutionProvider"]
    train, gradients, evaluate = (
        runner(onnxruntime.InferenceSession(files[name], providers=providers))
        for name in ("train.onnx", "gradients.onnx", "evaluate.onnx")
    )
    cases = gate.Cases(artifact)
    gate.verify_evaluation(artifact, cases, evaluate, "onnx evaluate.onnx")
    gate.verify(cases, gate.gradients_of_sgd(artifact, train), "onnx train.onnx")
    return gate.verify(cases, gradients, "onnx gradients.onnx")
