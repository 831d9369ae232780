"""The pruned step on other engines: `sparsyfed bench peers`.

Each row sets a peer against the native core. `dense` is eager PyTorch without powerprop and pruning,
in the better memory format; `eager` is PyTorch doing the very step that the core does; the engines
run the exports of the same step. All take the same batches, in turns in one process on one thread.
"""

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsyfed import export
from sparsyfed.edge_runtime import Session, State
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.export.to_executorch import SMALLEST_LIMIT
from sparsyfed.tools.bench_dense import dense_step, memory_formats
from sparsyfed.tools.bench_models import BETA, BenchModel
from sparsyfed.tools.bench_process import measure_apart, say
from sparsyfed.tools.bench_session import open_session, session_step
from sparsyfed.tools.bench_timing import Side, Spread, best_of, ratio, take_turns

NEEDED = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "torchscript": ("torch",),
    "executorch": ("executorch",),
}
"""Engines, and the packages that each needs."""
WRITERS: dict[str, Callable[..., Any]] = {
    "onnxruntime": export.to_onnx,
    "torchscript": export.to_torchscript,
    "executorch": export.to_executorch,
}


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What to measure: every combination. `engines` empty: all that are installed."""

    models: Sequence[str]
    input_shape: Sequence[int] | None = None
    batch_sizes: Sequence[int] = (16,)
    sparsities: Sequence[float] = (0.9, 0.95, 0.99)
    engines: Sequence[str] = ()
    turns: int = 11


def run(settings: PeerSettings) -> dict[str, list[dict[str, Any]]]:
    """Rows of all combinations, with random masks.

    Raises ConfigurationError for an engine that is asked for and not installed.
    """
    for engine in settings.engines:
        if not _is_installed(engine):
            raise ConfigurationError(
                f"got engine {engine!r}, which needs {' and '.join(NEEDED[engine])}: "
                f"install sparsyfed-edge[{'onnx' if engine == 'onnxruntime' else engine}]"
            )
    return {"peers": measure_apart("bench_peers", {"settings": asdict(settings)})}


def _is_installed(engine: str) -> bool:
    return all(importlib.util.find_spec(package) for package in NEEDED[engine])


def measure(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows, measured in this process."""
    torch.set_num_threads(1)
    chosen = PeerSettings(**settings)
    engines = chosen.engines or [engine for engine in NEEDED if _is_installed(engine)]
    rows = []
    for name in chosen.models:
        model = BenchModel.load(name, chosen.input_shape)
        with tempfile.TemporaryDirectory(prefix="sparsyfed-bench-") as folder:
            exports = _exports(model, engines, chosen.batch_sizes, Path(folder))
            for batch_size, sparsity in product(chosen.batch_sizes, chosen.sparsities):
                say(f"{name}, batch {batch_size}, {sparsity:.2%} random masks")
                state = model.masked("random", sparsity, "global", None)
                same = {"model": name, "batch_size": batch_size, "sparsity": sparsity}
                rows += [same | row for row in _rows(model, batch_size, state, exports, chosen)]
    return rows


def _exports(
    model: BenchModel, engines: Sequence[str], batch_sizes: Sequence[int], folder: Path
) -> dict[str, Path]:
    """Exports of the step. They are not verified: no figure depends on that, and tests do it."""
    x, _ = model.batch(1)
    artifact = export.compile(model.module, torch.from_numpy(x), beta=BETA, loss="cross_entropy")
    paths = {}
    options = {"executorch": {"batch_size": max(SMALLEST_LIMIT, *batch_sizes)}}
    for engine in engines:
        say(f"{model.name}: export for {engine}")
        paths[engine] = folder / engine
        WRITERS[engine](artifact, paths[engine], verify=False, **options.get(engine, {}))
    return paths


def _rows(
    model: BenchModel,
    batch_size: int,
    state: State,
    exports: Mapping[str, Path],
    settings: PeerSettings,
) -> list[dict[str, Any]]:
    """One row a peer: all sides in turns."""
    x, y = model.batch(batch_size)
    formats = memory_formats(x)
    native = open_session(model.artifact, state, batch_size)
    sides = {name: dense_step(copy.deepcopy(model.module), x, y, name) for name in formats}
    sides |= {"eager": _eager_step(model, state, x, y), "native": session_step(native, x, y)}
    engines = {name: Session.open(path, state, batch_size, name) for name, path in exports.items()}
    sides |= {name: session_step(session, x, y) for name, session in engines.items()}
    taken = take_turns(sides, settings.turns)
    native.close()
    for session in engines.values():
        session.close()
    best = best_of({name: taken[name] for name in formats})
    peers = {"dense": taken[best], "eager": taken["eager"]}
    peers |= {name: taken[name] for name in engines}
    return [
        {
            "peer": name,
            "seconds": asdict(Spread.of(seconds)),
            "native_seconds": asdict(Spread.of(taken["native"])),
            "over_eager": asdict(ratio(seconds, taken["eager"])),
            "speedup": asdict(ratio(seconds, taken["native"])),
        }
        for name, seconds in peers.items()
    ]


def _eager_step(
    model: BenchModel, state: State, x: NDArray[np.float32], y: NDArray[np.int32]
) -> Side:
    """The step of the method in eager PyTorch, on the values of a state."""
    pruned = copy.deepcopy(model.module)
    export.load_state(pruned, state)
    return dense_step(export.reference(pruned, BETA), x, y, "contiguous")


HEADING = (
    *("model", "batch", "sparsity", "peer", "peer ms", "native ms", "peer / eager"),
    *("peer / native", "quartiles"),
)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table on the terminal."""
    speedup = row["speedup"]
    return [
        *(row["model"], str(row["batch_size"]), f"{row['sparsity']:.2%}", row["peer"]),
        f"{1e3 * row['seconds']['median']:.3g}",
        f"{1e3 * row['native_seconds']['median']:.3g}",
        f"{row['over_eager']['median']:.2f}",
        f"{speedup['median']:.2f}",
        f"{speedup['low']:.2f}-{speedup['high']:.2f}",
    ]
