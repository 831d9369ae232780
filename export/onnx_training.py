"""The joint graph as training artifacts of ONNX Runtime: what its `TrainingSession` and `Module` load.

They are written from the joint graph, not by ONNX Runtime's own generator, which has no gradient for some operators,
inserts no pruning, and updates running statistics otherwise than PyTorch. What a training graph has to look like is in
onnxruntime 1.19.2, orttraining/training_api/module.cc: inputs of the user, parameters as in the checkpoint,
a buffer for each gradient, and whether to overwrite these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from sparsyfed.edge_runtime.errors import VerificationError
from sparsyfed.edge_runtime.format import ParameterKind
from sparsyfed.edge_runtime.graph_names import GRADIENT, NEW_STATE, STATE, STATISTIC, TRAINED
from sparsyfed.export import gate
from sparsyfed.export.joint_graph import (
    JointGraph,
    add_weight_decay,
)
from sparsyfed.export.onnx_graph import IR_VERSION, OPSET
from sparsyfed.export.onnx_lowering import lowered
from sparsyfed.export.training_artifact import TrainingArtifact
from sparsyfed.export.training_worker import TrainingWorker

_DOMAIN = "com.microsoft"
_RESET = "lazy_reset_grad"
_ALWAYS = "always"


def training_model(graph: JointGraph) -> onnx.ModelProto:
    """Return the training graph: `lowered`, with gradients and running statistics written to memory of the caller.

    Inputs of the user: `x`, `y`, `keep` and `weight_decay`, which is part of each gradient. Output: `loss`.
    """
    model = lowered(add_weight_decay(graph), "training")
    results = {value.name: value for value in model.graph.output}
    parameters = [value for value in model.graph.input if value.name.startswith(STATE)]
    user = [value for value in model.graph.input if not value.name.startswith(STATE)]
    buffers, flags = [], []
    for parameter in parameters:
        name = parameter.name.removeprefix(STATE)
        flags.append(_flag(f"{parameter.name}_grad.accumulation.out"))
        if GRADIENT + name in results:
            buffers.append(_renamed(parameter, f"{parameter.name}_grad.accumulation.buffer"))
            inputs = [buffers[-1].name, GRADIENT + name, _RESET]
        else:  # a running statistic: the new one over the old one
            inputs = [parameter.name, NEW_STATE + name, _ALWAYS]
        accumulator = helper.make_node(
            "InPlaceAccumulatorV2", inputs, [flags[-1].name], domain=_DOMAIN
        )
        model.graph.node.append(accumulator)
    if len(buffers) < len(parameters):
        model.graph.initializer.append(numpy_helper.from_array(np.array([True]), _ALWAYS))
    del model.graph.input[:], model.graph.output[:]
    model.graph.input.extend([*user, *parameters, *buffers, _flag(_RESET)])
    model.graph.output.extend([results["loss"], *flags])
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    onnx.checker.check_model(model)
    return model


def optimizer_model() -> onnx.ModelProto:
    """Return the graph of SGD, p - learning_rate · gradient for all parameters at once; the same for every model."""
    sequences = ("params", "gradients", "first_order_moments")
    node = helper.make_node(
        "SGDOptimizerV2",
        ["learning_rate", "params", "gradients"],
        ["update_completed"],
        domain=_DOMAIN,
    )
    graph = helper.make_graph(
        [node],
        "optimizer",
        [
            helper.make_tensor_value_info("learning_rate", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("step", TensorProto.INT64, [1]),
            *(
                helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)
                for name in sequences
            ),
        ],
        [_flag("update_completed")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_DOMAIN, 1)]
    return helper.make_model(
        graph, producer_name="sparsyfed", opset_imports=opsets, ir_version=IR_VERSION
    )


def training_files(
    artifact: TrainingArtifact,
    graph: JointGraph,
    plain: Mapping[str, bytes],
    values: Mapping[str, Tensor],
    worker: TrainingWorker,
) -> dict[str, bytes]:
    """Return the training artifacts by file name, which lie in the worker's folder then.

    `values` are those of the checkpoint. Of the `plain` graphs `evaluate.onnx` has the inputs that an eval model needs.
    """
    files = {
        "training_model.onnx": training_model(graph).SerializeToString(),
        "eval_model.onnx": plain["evaluate.onnx"],
        "optimizer_model.onnx": optimizer_model().SerializeToString(),
    }
    for name, data in files.items():
        (worker.folder / name).write_bytes(data)
    worker.call("checkpoint", _parameters(artifact, values))
    return {**files, "checkpoint": (worker.folder / "checkpoint").read_bytes()}


def verify_training(
    artifact: TrainingArtifact,
    cases: gate.Cases,
    values: Mapping[str, Tensor],
    worker: TrainingWorker,
) -> gate.Verification:
    """Run the artifacts in the worker's folder through the gate: `gate.verify` of the training model's gradients.

    Raises VerificationError, also if the checkpoint does not hold `values`.
    """
    stored = worker.call("values", {})
    for name, value in values.items():
        if STATE + name not in stored or not np.array_equal(stored[STATE + name], value.numpy()):
            raise VerificationError(
                f"onnx checkpoint: {name} does not have the values of the state"
            )
    evaluate, train, gradients = (
        _runner(worker, action) for action in ("evaluate", "train", "gradients")
    )
    gate.verify_evaluation(artifact, cases, evaluate, "onnx eval_model.onnx")
    gate.verify(cases, gate.gradients_of_sgd(artifact, train), "onnx optimizer_model.onnx")
    return gate.verify(cases, gradients, "onnx training_model.onnx")


def _runner(worker: TrainingWorker, action: str) -> gate.Run:
    def run(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results = worker.call(action, {name: value.numpy() for name, value in named.items()})
        return {name: torch.from_numpy(value) for name, value in results.items()}

    return run


def _parameters(
    artifact: TrainingArtifact, values: Mapping[str, Tensor]
) -> dict[str, NDArray[Any]]:
    """The checkpoint's tensors as the worker takes them."""
    parameters = {}
    for parameter in artifact.native.parameters:
        tensor = numpy_helper.from_array(values[parameter.name].numpy(), STATE + parameter.name)
        kind = STATISTIC if parameter.kind is ParameterKind.STATISTIC else TRAINED
        data = tensor.SerializeToString()
        parameters[kind + parameter.name] = np.frombuffer(data, np.uint8)
    return parameters


def _flag(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.BOOL, [1])


def _renamed(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copied = onnx.ValueInfoProto()
    copied.CopyFrom(value)
    copied.name = name
    return copied
