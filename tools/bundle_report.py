"""What `sparsyfed export` prints of a bundle."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsyfed.coordinator.bundle import NATIVE
from sparsyfed.tools.bench_report import aligned
from sparsyfed.tools.bundle import Bundle
from sparsyfed.tools.quantities import byte_text


def bundle_text(bundle: Bundle) -> str:
    """Tables of layers, files and targets."""
    manifest = bundle.manifest
    parts = [_layers(manifest), _files(manifest), _targets(bundle)]
    if "board" in manifest:
        parts.append(_board(manifest["board"]))
    return "\n\n".join(parts)


def _board(record: Mapping[str, Any]) -> str:
    batch, left = record["batch_size"], record["memory_bytes"] - record["arena_bytes"]
    own = 0 if record["model_in"] == "flash" else record["artifact_bytes"]
    left -= own + record["examples_bytes"]
    return (
        f"{record['name']}: {record['memory_bytes']:,} bytes for training; batch {batch} takes "
        f"{record['arena_bytes']:,} of arena, {record['examples_bytes']:,} of examples"
        f"{f', {own:,} of artifact' if own else ''}: {left:,} left.\n"
        f"The model is in {record['model_in']}: artifact {record['artifact_bytes']:,} bytes, state "
        f"{record['state_bytes']:,}."
    )


def _layers(manifest: Mapping[str, Any]) -> str:
    layers = manifest["layers"]
    heading = ["layer", "rows", "columns", "stored", "density"]
    rows = [
        [
            layer["name"],
            *(f"{layer[key]:,}" for key in ("rows", "columns", "stored")),
            f"{layer['stored'] / (layer['rows'] * layer['columns']):.2%}",
        ]
        for layer in layers
    ]
    stored = sum(layer["stored"] for layer in layers)
    whole = sum(layer["rows"] * layer["columns"] for layer in layers)
    empty = [layer["name"] for layer in layers if not layer["stored"]]
    return (
        f"{aligned(heading, rows)}\n{stored:,} of {whole:,} prunable weights are stored; "
        f"{manifest['dense_values']:,} values of biases and norms are dense."
        f"{_warning(empty) if empty else ''}"
    )


def _warning(empty: Sequence[str]) -> str:
    """What is zero stays zero: such a layer trains its bias alone."""
    return (
        f"\nNothing passes {', '.join(empty)}, which stores no weight, and layers that lead only there do not learn: "
        "choose a higher density, or --budget erk, which leaves each layer some."
    )


def _files(manifest: Mapping[str, Any]) -> str:
    rows = [[name, f"{f['bytes']:,}", f["sha256"]] for name, f in manifest["files"].items()]
    return aligned(["file", "bytes", "SHA-256"], rows)


def _targets(bundle: Bundle) -> str:
    heading = ["target", "engine", "files", "size", "worst gradient error", "memory of a step"]
    rows = [_target(bundle, name, record) for name, record in bundle.manifest["targets"].items()]
    planned = bundle.manifest["planned"]
    where = "without a limit"
    if planned["device"]:
        where = f"for {planned['device']}, {planned['memory_bytes']:,} bytes"
    note = (
        f"Memory at batch {planned['batch_size']}: native, the arena planned {where}, "
        f"{planned['kernels']} kernels, density {planned['density']:.1%}; other engines, measured on "
        "this machine beside program and engine."
    )
    return f"{aligned(heading, rows)}\n{note}"


def _target(bundle: Bundle, name: str, record: Mapping[str, Any]) -> list[str]:
    manifest = bundle.manifest
    size = sum(manifest["files"][file]["bytes"] for file in record["files"])
    verified = record["verified"]
    if name == NATIVE:
        error = "by its tests"
    else:
        error = "not verified" if verified is None else f"{verified['worst_gradient_error']:.1e}"
    memory = manifest["planned"]["arena_bytes"]
    if name in bundle.measured:
        memory = bundle.measured[name]["growth_bytes"]
    engine = bundle.measured.get(name, record).get("engine")
    engine = engine if isinstance(engine, str) else record["backend"]
    return [name, engine, str(len(record["files"])), byte_text(size), error, byte_text(memory)]
