"""The manifest of an export: what a program without our code needs to know to train with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsyfed.edge_runtime.graph_names import GRADIENT, NEW_STATE, STATE
from sparsyfed.edge_runtime.kept_inputs import input_sizes
from sparsyfed.export.gate import Verification
from sparsyfed.export.joint_graph import JointGraph
from sparsyfed.export.training_artifact import TrainingArtifact

FORMAT = 1
"""Version of the manifest; it changes when a field changes its meaning."""


KEEP_RULE = "ceil(stored * batch * input_elements / positions)"
"""How many inputs a layer keeps, in exact integers; see `kept_inputs.keep_count`."""

_PARAMETER_ROLES = {
    STATE: "value",
    NEW_STATE: "new value",
    GRADIENT: "gradient",
}
_ROLES = {
    "x": "examples",
    "y": "labels or targets",
    "keep": "inputs kept by each layer",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "loss": "mean loss of the batch",
    "correct": "right answers",
}


def manifest(artifact: TrainingArtifact, target: str, engine: dict[str, str]) -> dict[str, Any]:
    """Return the description of an export, without its files and before it is verified.

    `engine` maps the packages that the target was written with to their versions. `layers` lists the prunable weights
    in the order of the input `keep`, whose `rule` says how many inputs of a batch each of them keeps; `stored` is the
    number of entries that the state has of the layer's weight.
    """
    return {
        "format": FORMAT,
        "target": target,
        "artifact": artifact.native.identity,
        "engine": engine,
        "beta": artifact.beta,
        "loss": artifact.loss,
        "batch": "any",
        **interface(artifact),
        "verified": None,
    }


def interface(artifact: TrainingArtifact) -> dict[str, Any]:
    """Return what a step takes, whatever the target: x, y, keep, the parameters and the prunable layers."""
    native = artifact.native
    output = native.tensors[native.output]
    cross_entropy = artifact.loss == "cross_entropy"
    shapes = artifact.model.state_dict()
    layers = [native.parameters[index] for index in native.prunable]
    return {
        "x": {
            "type": "float32" if native.quantization is None else "int8",
            "shape": ["batch", *artifact.input_shape],
            **({} if native.quantization is None else asdict(native.quantization)),
        },
        "y": {
            "type": "int64" if cross_entropy else "float32",
            "shape": ["batch"] if cross_entropy else ["batch", *output.shape],
        },
        "keep": {"type": "int64", "shape": [len(layers)], "rule": KEEP_RULE},
        "parameters": [
            {
                "name": parameter.name,
                "kind": parameter.kind.name.lower(),
                "shape": list(shapes[parameter.name].shape),
            }
            for parameter in native.parameters
        ],
        "layers": [
            {"name": layer.name, "positions": layer.count, "input_elements": size}
            for layer, size in zip(layers, input_sizes(native), strict=True)
        ],
    }


def signature(inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Return names and roles of what a graph or method takes and gives, in order, for the field `graphs`."""
    return {"inputs": list(map(_port, inputs)), "outputs": list(map(_port, outputs))}


def _port(name: str) -> dict[str, str]:
    for prefix, role in _PARAMETER_ROLES.items():
        if name.startswith(prefix):
            return {"name": name, "role": role, "parameter": name.removeprefix(prefix)}
    return {"name": name, "role": _ROLES[name]}


def verification_record(verified: Verification) -> dict[str, float | str]:
    """Return what the gate measured, for the field `verified`."""
    return {
        "loss_error": verified.loss_error,
        "median_gradient_error": verified.median_error,
        "worst_gradient_error": verified.worst_error,
        "worst_parameter": verified.worst_parameter,
        "median_float32_noise": verified.median_noise,
        "worst_float32_noise": verified.worst_noise,
    }


def operators(graph: JointGraph) -> dict[str, int]:
    """Return how often each operator stands in a graph, by name."""
    counts: dict[str, int] = {}
    for node in graph.module.graph.nodes:
        if node.op == "call_function":
            counts[str(node.target)] = counts.get(str(node.target), 0) + 1
    return dict(sorted(counts.items()))


def file_record(path: Path) -> dict[str, Any]:
    """Return name, size and hash of a file."""
    data = path.read_bytes()
    return {
        "name": path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def encode(record: dict[str, Any]) -> bytes:
    """Return the bytes of a manifest: JSON, the same for the same content."""
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
