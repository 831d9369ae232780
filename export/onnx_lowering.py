"""From a joint graph to an ONNX model, and from parameters to a model that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from sparsyfed.edge_runtime import onnxruntime_library
from sparsyfed.edge_runtime.errors import UnsupportedOperationError
from sparsyfed.edge_runtime.graph_names import STATE
from sparsyfed.export.joint_graph import JointGraph
from sparsyfed.export.onnx_graph import CORE, IR_VERSION, OPSET, Lowering, OnnxGraph, value_info
from sparsyfed.export.onnx_operations import RULES

_POWERPROP = (
    torch.ops.sparsyfed.powerprop.default,
    torch.ops.sparsyfed.powerprop_backward.default,
)
VERSIONS = {"onnx": onnx.__version__, "opset": str(OPSET), "ir": str(IR_VERSION)}
"""What the models are written with."""
EXTERNAL_BYTES = 1024
"""Tensors of the parameter file from this size on lie beside it."""


def lowered(graph: JointGraph, name: str) -> onnx.ModelProto:
    """Return the ONNX model of a joint graph, its inputs and outputs called and ordered as there.

    Raises UnsupportedOperationError for an operator without a rule.
    """
    onnx_graph = OnnxGraph(name)
    lowering = Lowering(onnx_graph)
    for key, node in graph.placeholders.items():
        lowering.names[node] = key
    layer = ""
    for node in graph.module.graph.nodes:
        if node.op != "call_function" or node.target is torch.ops.aten.sym_size.int:
            continue  # a batch size: Reshape and Expand find it themselves
        rule = RULES.get(node.target)
        if rule is None:
            raise UnsupportedOperationError(
                f"{node.target} near layer {layer!r} has no rule for ONNX; targets that run it: native, torchscript"
            )
        if node.target in _POWERPROP:
            layer = lowering.name(node.args[0]).removeprefix(STATE)
        lowering.names[node] = rule(lowering, node)
    for key, node in zip(graph.outputs, graph.results, strict=True):
        onnx_graph.rename(lowering.name(node), key)
    inputs = [_declared(key, node.meta["val"]) for key, node in graph.placeholders.items()]
    outputs = [
        _declared(key, node.meta["val"])
        for key, node in zip(graph.outputs, graph.results, strict=True)
    ]
    return onnx_graph.model(inputs, outputs)


def model_files(graphs: Mapping[str, JointGraph]) -> dict[str, bytes]:
    """The ONNX files of joint graphs by name, `<name>.onnx`."""
    return {
        f"{name}.onnx": lowered(graph, name).SerializeToString() for name, graph in graphs.items()
    }


def needs(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What a session must have loaded for files that call the core's operators."""
    models = [onnx.load_from_string(data) for data in files.values()]
    called = {node.op_type for m in models for node in m.graph.node if node.domain == CORE}
    return {"domain": CORE, "operators": sorted(called), "library": onnxruntime_library.NAME}


def parameter_files(values: Mapping[str, Tensor]) -> dict[str, bytes]:
    """A model whose outputs are the parameters, and its external data."""
    graph = OnnxGraph("parameters")
    outputs = []
    for name, value in values.items():
        graph.rename(graph.constant(value.numpy()), STATE + name)
        outputs.append(_declared(STATE + name, value))
    model = graph.model([], outputs)
    data = bytearray()
    for tensor in model.graph.initializer:
        raw = numpy_helper.to_array(tensor).tobytes()
        if len(raw) < EXTERNAL_BYTES:
            continue
        data += bytes(-len(data) % 4096)  # so that a file can be mapped into memory
        onnx.external_data_helper.set_external_data(
            tensor, "parameters.bin", offset=len(data), length=len(raw)
        )
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        data += raw
    return {"parameters.onnx": model.SerializeToString(), "parameters.bin": bytes(data)}


def _declared(name: str, value: Tensor) -> onnx.ValueInfoProto:
    sizes: list[Any] = list(value.shape)
    shape = [size if isinstance(size, int) else "batch" for size in sizes]
    return value_info(name, str(value.dtype).removeprefix("torch."), shape)
