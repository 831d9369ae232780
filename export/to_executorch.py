"""The joint graph as an ExecuTorch program: train, gradient and evaluation methods in one file.

The parameters are inputs and outputs of the methods, so that a new state needs no new export.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsyfed.edge_runtime.errors import BackendError, InputError
from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.edge_runtime.state import State
from sparsyfed.export import gate
from sparsyfed.export.core_kernels import KERNELS
from sparsyfed.export.joint_graph import JointGraph, add_sgd, evaluation_graph, joint_graph
from sparsyfed.export.manifest import encode, manifest, operators, verification_record
from sparsyfed.export.states import dense_tensors
from sparsyfed.export.training_artifact import TrainingArtifact

SMALLEST_LIMIT, LARGEST_LIMIT = 5, 65535
"""What the largest batch can be: the gate's batches have up to five examples."""


def to_executorch(
    artifact: TrainingArtifact,
    path: str | Path,
    state: State | None = None,
    *,
    kernels: str = "sparsyfed",
    batch_size: int = 16,
    verify: bool = True,
) -> dict[str, Any]:
    """Write the training step of `artifact` as an ExecuTorch program, by convention `.pte`; return its manifest.

    Methods, with inputs and outputs in this order:

    * `train`: `state.<parameter>` for all parameters, `x`, `y`, `keep`, `learning_rate`, `weight_decay` to `loss` and
      `new_state.<parameter>`, which is the next `state.<parameter>`: one step of SGD;
    * `gradients`: the same without rates to `loss`, `gradient.<parameter>` and `new_state.<statistic>`;
    * `evaluate`: `state.<parameter>`, `x`, `y` to `loss` and, for cross-entropy, `correct`;
    * without inputs: `manifest` and `artifact`, uint8 tensors with the JSON text and the bytes of the `.sfd`, and, if a
      `state` is given, `parameters`: its `state.<parameter>`.

    x is float32 (batch, ...), y int64 labels or float32 targets, `keep` int64 with one count for each prunable weight,
    the rates float32 without dimensions. Batches have 1 to `batch_size` examples; the memory of a method, planned in
    the file, is that of the largest.

    `kernels` "sparsyfed" calls the core's operators (`edge_runtime/executorch`), which the runtime must have loaded;
    "stock" uses ExecuTorch's own alone: a reference that any runtime runs, slowly.

    With `verify` the written program runs through the gate in the runtime of the executorch package, which raises
    VerificationError before the file is written; without it a fault of the exporter or of the runtime would be found
    by the devices. Raises BackendError if executorch is not installed, or if the operators do not compile here.
    """
    if kernels not in KERNELS:
        raise InputError(f"got kernels {kernels!r}, wanted one of {', '.join(KERNELS)}")
    if not SMALLEST_LIMIT <= batch_size <= LARGEST_LIMIT:
        raise InputError(
            f"got batch_size {batch_size}, wanted {SMALLEST_LIMIT} to {LARGEST_LIMIT}: smaller batches run too"
        )
    try:
        from sparsyfed.export import (  # noqa: PLC0415 - the other targets need no executorch
            core_kernels,
            executorch_program,
            executorch_stock,
        )
    except ImportError as error:
        raise BackendError(
            f"cannot write ExecuTorch: {error}; install sparsyfed-edge[executorch]"
        ) from error
    graph = joint_graph(artifact)
    graphs = {"train": add_sgd(graph), "gradients": graph, "evaluate": evaluation_graph(artifact)}
    if kernels == "sparsyfed":
        graphs = {name: core_kernels.with_kernels(source) for name, source in graphs.items()}
    methods = {
        name: executorch_program.exported(
            executorch_program.written(
                source, executorch_stock.DECOMPOSITIONS, executorch_stock.PLAIN
            ),
            batch_size,
        )
        for name, source in graphs.items()
    }
    program = executorch_program.Program(methods)
    record = manifest(
        artifact,
        "executorch",
        {"executorch": version("executorch"), "torch": torch.__version__},
    )
    record["batch"] = {"least": 1, "most": batch_size}
    record["kernels"] = kernels
    record["memory"] = program.memory
    record["operators"] = operators(graph)
    if verify:
        checked = _verified(artifact, program.encode({}), graphs, kernels)
        record["verified"] = verification_record(checked)
    constants: dict[str, Any] = {
        "manifest": _bytes_tensor(encode(record)),
        "artifact": _bytes_tensor(artifact.encode()),
    }
    if state is not None:
        constants["parameters"] = tuple(dense_tensors(artifact.model, state).values())
    write_atomic(path, program.encode(constants))
    return record


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def runner(module: Any, name: str, graph: JointGraph) -> gate.Run:
    """Return a method of a loaded program as the gate wants it."""

    def run(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results = module.run_method(name, [named[key] for key in graph.inputs])
        return dict(zip(graph.outputs, results, strict=True))

    return run


def _verified(
    artifact: TrainingArtifact, data: bytes, graphs: Mapping[str, JointGraph], kernels: str
) -> gate.Verification:
    from sparsyfed.edge_runtime.backends import (  # noqa: PLC0415 - they need executorch
        executorch_engine,
        executorch_library,
    )

    if kernels == "sparsyfed":
        executorch_library.load_operators()
    with tempfile.TemporaryDirectory(prefix="sparsyfed-") as folder:
        path = Path(folder) / "model.pte"
        path.write_bytes(data)
        module = executorch_engine.loaded(path)
    runs = {name: runner(module, name, graph) for name, graph in graphs.items()}
    cases = gate.Cases(artifact)
    gate.verify_evaluation(artifact, cases, runs["evaluate"], "executorch evaluate")
    gate.verify(cases, gate.gradients_of_sgd(artifact, runs["train"]), "executorch train")
    return gate.verify(cases, runs["gradients"], "executorch gradients")
