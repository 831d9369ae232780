"""The joint graph as ONNX: graphs that any current ONNX Runtime trains with, and artifacts of onnxruntime-training.

The parameters are inputs and outputs of the graphs, not part of them: nothing can be folded, and the files are small.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sparsyfed.edge_runtime.errors import BackendError, InputError
from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.edge_runtime.state import State
from sparsyfed.export import gate
from sparsyfed.export.core_kernels import KERNELS
from sparsyfed.export.joint_graph import add_sgd, evaluation_graph, joint_graph
from sparsyfed.export.manifest import (
    encode,
    file_record,
    manifest,
    operators,
    signature,
    verification_record,
)
from sparsyfed.export.states import dense_tensors, initial_state
from sparsyfed.export.training_artifact import TrainingArtifact
from sparsyfed.export.training_worker import training_worker

if TYPE_CHECKING:
    import onnxruntime


TRAINING_FILES = ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint")
"""What an export holds for onnxruntime-training alone."""


def to_onnx(
    artifact: TrainingArtifact,
    directory: str | Path,
    state: State | None = None,
    *,
    kernels: str = "stock",
    training: bool = False,
    verify: bool = True,
) -> dict[str, Any]:
    """Write the training step of `artifact` as ONNX files to a folder, made if need be; return its manifest.

    * `train.onnx`: one step of SGD. Inputs `state.<parameter>`, `x`, `y`, `keep`, `learning_rate`, `weight_decay`;
      outputs `loss` and `new_state.<parameter>`, to be fed as `state.<parameter>` next.
    * `gradients.onnx`: the same without rates; outputs `loss`, `gradient.<parameter>`, `new_state.<statistic>`.
    * `evaluate.onnx`: inputs `state.<parameter>`, `x`, `y`; outputs `loss` and, for cross-entropy, `correct`.
    * `parameters.onnx` with `parameters.bin`: a graph without inputs whose outputs are `state.<parameter>`, the values
      of `state` (by default `initial_state` of the model), large tensors as external data.
    * `training_model.onnx`, `eval_model.onnx`, `optimizer_model.onnx` and `checkpoint`, if `training`: artifacts for
      onnxruntime-training 1.19.2. A training step takes `x`, `y`, `keep` and `weight_decay`, the optimizer is SGD, and
      the parameters in the checkpoint are called `state.<parameter>`. Without it those of an older export go.
    * `model.sfd` and `manifest.json`, which is written last.

    `kernels` "stock" uses ONNX Runtime's own operators alone: any ONNX Runtime runs the files. "sparsyfed" calls the
    core's (`edge_runtime/onnxruntime`), several times faster on sparse states; a session must have loaded them with
    `SessionOptions.register_custom_ops_library`, the training artifacts can't. What it must have loaded is the field
    `needs` of the manifest: the operators, their domain and the library.

    x is float32 (batch, ...), y int64 labels or float32 targets, `keep` int64 with one count for each prunable weight,
    the rates float32 without dimensions. Any batch size will do.

    With `verify` the written graphs run through the gate in ONNX Runtime, which raises VerificationError (BackendError
    if it is not installed) before any file is written; without it a fault of the exporter would be found by the
    devices. The training artifacts run in onnxruntime-training, which also writes the checkpoint: in the Python that
    the environment variable SPARSYFED_ONNXRUNTIME_TRAINING_PYTHON names, since one environment can't hold it and
    onnxruntime. Raises BackendError where it is not there.
    """
    if kernels not in KERNELS:
        raise InputError(f"got kernels {kernels!r}, wanted one of {', '.join(KERNELS)}")
    if training and kernels != "stock":
        raise InputError(f"got kernels {kernels!r} and training, which takes stock kernels alone")
    try:
        # The other targets need no onnx.
        from sparsyfed.export import onnx_kernels, onnx_lowering, onnx_training  # noqa: PLC0415
    except ImportError as error:
        raise BackendError(f"cannot write ONNX: {error}; install sparsyfed-edge[onnx]") from error
    record = manifest(artifact, "onnx", {**onnx_lowering.VERSIONS, "torch": torch.__version__})
    if state is None:
        state = initial_state(artifact.model, artifact.beta)
    values = dense_tensors(artifact.model, state)
    cases = gate.Cases(artifact) if verify else None
    with training_worker() if training else nullcontext() as worker:
        graph = joint_graph(artifact)
        record["operators"] = operators(graph)
        graphs = {
            "train": add_sgd(graph),
            "gradients": graph,
            "evaluate": evaluation_graph(artifact),
        }
        record["kernels"] = kernels
        record["graphs"] = {
            f"{name}.onnx": signature(source.inputs, source.outputs)
            for name, source in graphs.items()
        }
        if kernels == "sparsyfed":
            graphs = {name: onnx_kernels.with_operators(each) for name, each in graphs.items()}
        files = onnx_lowering.model_files(graphs)
        if kernels == "sparsyfed":
            record["needs"] = onnx_lowering.needs(files)
        if cases:
            verified = _verified(artifact, cases, files, record)
            record["verified"] = verification_record(verified)
        files |= onnx_lowering.parameter_files(values)
        if worker:
            files |= onnx_training.training_files(artifact, graph, files, values, worker)
            record["engine"]["onnxruntime-training"] = worker.version
            record["verified_training"] = None
            if cases:
                verified = onnx_training.verify_training(artifact, cases, values, worker)
                record["verified_training"] = verification_record(verified)
    files["model.sfd"] = artifact.encode()
    _write(Path(directory), files, record)
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


def _write(folder: Path, files: Mapping[str, bytes], record: dict[str, Any]) -> None:
    """Write the files, and last the manifest, which `record` becomes by listing them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomic(folder / name, data)
    for name in TRAINING_FILES:
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    record["files"] = [file_record(folder / name) for name in sorted(files)]
    write_atomic(folder / "manifest.json", encode(record))


def _verified(
    artifact: TrainingArtifact,
    cases: gate.Cases,
    files: Mapping[str, bytes],
    record: dict[str, Any],
) -> gate.Verification:
    try:
        # An export that is not verified needs none.
        import onnxruntime  # noqa: PLC0415

        from sparsyfed.edge_runtime.backends import onnx_engine  # noqa: PLC0415
    except ImportError as error:
        raise BackendError(
            "onnxruntime, which the export is verified with, is not there: install sparsyfed-edge[onnx], "
            "or export with verify=False and verify elsewhere"
        ) from error
    record["engine"]["onnxruntime"] = onnxruntime.__version__
    train, gradients, evaluate = (
        runner(onnx_engine.session(files[name], kernels=record["kernels"]))
        for name in ("train.onnx", "gradients.onnx", "evaluate.onnx")
    )
    gate.verify_evaluation(artifact, cases, evaluate, "onnx evaluate.onnx")
    gate.verify(cases, gate.gradients_of_sgd(artifact, train), "onnx train.onnx")
    return gate.verify(cases, gradients, "onnx gradients.onnx")
