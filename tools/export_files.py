"""A compiled model as files: artifact, initial state, and a manifest that names them by hash."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sparsyfed
from sparsyfed.coordinator.compile import compile_model
from sparsyfed.edge_runtime import SparseTensor
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.files import write_atomic

ARTIFACT_NAME = "model.sfd"
STATE_NAME = "initial.sfs"
MANIFEST_NAME = "manifest.json"


def export_files(
    model: str,
    folder: Path,
    *,
    input_shape: Sequence[int] | None = None,
    beta: float = 1.25,
    loss: str = "cross_entropy",
    sparsity: float = 0.0,
    budget: str | Mapping[str, int] = "global",
    seed: int = 0,
) -> dict[str, Any]:
    """Compiles a model, writes model.sfd, initial.sfs and manifest.json, returns the manifest.

    The arguments and errors are those of `compile_model`; a negative seed is a ConfigurationError.
    """
    if not 0 <= seed < 2**63:
        raise ConfigurationError(f"got seed {seed}, wanted 0 or more, less than 2^63")
    artifact, state = compile_model(
        model,
        seed=seed,
        input_shape=input_shape,
        beta=beta,
        loss=loss,
        sparsity=sparsity,
        budget=budget,
    )
    folder.mkdir(parents=True, exist_ok=True)
    files = {ARTIFACT_NAME: artifact.encode(), STATE_NAME: state.encode()}
    manifest: dict[str, Any] = {
        "sparsyfed": sparsyfed.__version__,
        "model": model,
        "input_shape": list(artifact.tensors[0].shape),
        "beta": beta,
        "loss": loss,
        "seed": seed,
        "sparsity": sparsity,
        "budget": budget if isinstance(budget, str) else dict(budget),
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
        "layers": [_layer(tensor) for tensor in state.tensors if isinstance(tensor, SparseTensor)],
        "dense_values": sum(
            tensor.count for tensor in state.tensors if not isinstance(tensor, SparseTensor)
        ),
    }
    for name, data in files.items():
        write_atomic(folder / name, data)
    write_atomic(folder / MANIFEST_NAME, (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The manifest as a table of layers and a list of files."""
    layers = manifest["layers"]
    width = max([len(layer["name"]) for layer in layers] + [len("layer")])
    lines = [f"{'layer':<{width}}  {'rows':>8}  {'columns':>8}  {'stored':>12}  density"]
    lines += [
        f"{layer['name']:<{width}}  {layer['rows']:>8,}  {layer['columns']:>8,}  "
        f"{layer['stored']:>12,}  {layer['stored'] / (layer['rows'] * layer['columns']):7.2%}"
        for layer in layers
    ]
    stored = sum(layer["stored"] for layer in layers)
    whole = sum(layer["rows"] * layer["columns"] for layer in layers)
    lines.append(
        f"{stored:,} of {whole:,} prunable weights are stored; {manifest['dense_values']:,} values "
        "of biases and norms are dense."
    )
    lines += [
        f"{name}: {file['bytes']:,} bytes, SHA-256 {file['sha256']}"
        for name, file in manifest["files"].items()
    ]
    return "\n".join(lines)


def _layer(tensor: SparseTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "rows": tensor.rows,
        "columns": tensor.columns,
        "stored": tensor.count,
    }
