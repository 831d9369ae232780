"""The pruned training step on every engine: `sparsyfed bench engines`.

`eager` is PyTorch doing the step that the native core does, `dense` eager PyTorch without powerprop
and pruning, in the better memory format; the other engines run exports of the same step.
All take the same batches, in turns in one process on one thread. An engine that excludes another one
from its environment takes turns with the native core there, and its ratio to eager is the product of
two ratios of medians. An engine that runs the step by our kernels or by its own is there twice, except
ExecuTorch: by its own, a step of a large model takes minutes. Memory is that of a process of its own,
which has nothing in it but the engine.
"""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsyfed import export
from sparsyfed.coordinator.bundle import NATIVE
from sparsyfed.edge_runtime import Session, State
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.export.targets import TARGETS, Target
from sparsyfed.tools.bench_dense import dense_step, fast_reference, memory_formats
from sparsyfed.tools.bench_models import BETA, BenchModel
from sparsyfed.tools.bench_process import measure_apart, say
from sparsyfed.tools.bench_session import session_step
from sparsyfed.tools.bench_timing import Side, Spread, best_of, ratio, take_turns
from sparsyfed.tools.quantities import byte_text

STATE_NAME = "state.sfs"
UNMEASURED = {("executorch", "stock")}
"""Targets and kernels that are left out."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What to measure: every combination. `targets` empty: all whose packages are here."""

    models: Sequence[str]
    input_shape: Sequence[int] | None = None
    batch_sizes: Sequence[int] = (16,)
    sparsities: Sequence[float] = (0.9, 0.95, 0.99)
    targets: Sequence[str] = ()
    turns: int = 11


@dataclass(frozen=True, slots=True)
class Exported:
    """A target in a folder of its own, with one of its sets of kernels."""

    target: Target
    kernels: str
    path: Path

    @property
    def name(self) -> str:
        """Of the engine in the rows."""
        backend = self.target.backend
        return f"{backend} ({self.kernels})" if len(self.target.kernels) > 1 else backend

    @property
    def bytes(self) -> int:
        """Of the files that a device trains with; the values of the model come by themselves."""
        folder = self.path.parent if self.target.file else self.path
        files = (file for file in folder.iterdir() if file.name not in self.target.kept_back)
        return sum(file.stat().st_size for file in files)


def run(settings: EngineSettings) -> dict[str, list[dict[str, Any]]]:
    """Rows of all combinations, with random masks.

    Raises ConfigurationError for a target that is asked for and whose packages are not there.
    """
    for name in settings.targets:
        if name not in TARGETS:
            raise ConfigurationError(f"got target {name!r}, wanted some of {', '.join(TARGETS)}")
        TARGETS[name].require()
    return {"engines": measure_apart("bench_engines", {"settings": asdict(settings)})}


def measure(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows, measured in this process."""
    torch.set_num_threads(1)
    chosen = EngineSettings(**settings)
    names = {NATIVE, *(chosen.targets or TARGETS)}
    targets = [t for name, t in TARGETS.items() if name in names and not t.missing()]
    rows = []
    for name in chosen.models:
        model = BenchModel.load(name, chosen.input_shape)
        with tempfile.TemporaryDirectory(prefix="sparsyfed-bench-") as folder:
            exports = _exports(model, targets, chosen, Path(folder))
            for batch_size in chosen.batch_sizes:
                rows += _rows_of_batch(model, batch_size, exports, chosen, Path(folder))
    return rows


def _exports(
    model: BenchModel, targets: Sequence[Target], settings: EngineSettings, folder: Path
) -> list[Exported]:
    """Exports of the step. They are not verified: no figure depends on that, and tests do it."""
    x, _ = model.batch(1)
    artifact = export.compile(model.module, torch.from_numpy(x), beta=BETA, loss="cross_entropy")
    exports = []
    for target, kernels in _ways(targets):
        exported = Exported(target, kernels, target.path(folder / f"{target.name}-{kernels}"))
        say(f"{model.name}: export for {exported.name}")
        exported.path.parent.mkdir(exist_ok=True)
        target.write(
            artifact,
            exported.path,
            model.dense,
            batch_size=max(settings.batch_sizes),
            kernels=kernels,
            verify=False,
        )
        exports.append(exported)
    return exports


def _ways(targets: Sequence[Target]) -> list[tuple[Target, str]]:
    """The targets by each of their kernels."""
    return [
        (target, kernels)
        for target in targets
        for kernels in target.kernels
        if (target.name, kernels) not in UNMEASURED
    ]


def _rows_of_batch(
    model: BenchModel,
    batch_size: int,
    exports: Sequence[Exported],
    settings: EngineSettings,
    folder: Path,
) -> list[dict[str, Any]]:
    """Rows of all sparsities. Engines that hold everything dense are measured once, where they take most memory.

    At another sparsity nothing differs but the scratch of the core's operators, which do the work of the nonzeros
    alone.
    """
    native, *others = exports
    rows = []
    dense = {"eager": _eager_memory(model, batch_size, folder)}
    dense |= {each.name: _memory(each, model.dense, batch_size, folder) for each in others}
    for sparsity in settings.sparsities:
        say(f"{model.name}, batch {batch_size}, {sparsity:.2%} random masks")
        state = model.masked("random", sparsity, "global", None)
        memory = {**dense, NATIVE: _memory(native, state, batch_size, folder)}
        same = {"model": model.name, "batch_size": batch_size, "sparsity": sparsity}
        times = _times(model, batch_size, state, exports, settings.turns)
        medians = {row["engine"]: row["seconds"]["median"] for row in times}
        times += [
            _times_apart(
                each,
                native,
                folder / STATE_NAME,  # saved for the measurement of memory
                batch_size=batch_size,
                turns=settings.turns,
                native_over_eager=medians[NATIVE] / medians["eager"],
            )
            for each in others
            if each.target.python_variable
        ]
        sizes = {each.name: each.bytes for each in exports}
        rows += [
            same
            | row
            | {"memory": memory.get(row["engine"]), "file_bytes": sizes.get(row["engine"])}
            for row in times
        ]
    return rows


def _memory(exported: Exported, state: State, batch_size: int, folder: Path) -> dict[str, Any]:
    """What a process takes that does nothing but train on this engine."""
    file = folder / STATE_NAME
    state.save(file)
    settings = {
        "backend": exported.target.backend,
        "artifact": str(exported.path),
        "state": str(file),
        "batch_size": batch_size,
    }
    say(f"{exported.name}: memory of a process of its own")
    found: dict[str, Any] = measure_apart("engine_memory", settings, python=exported.target.python)
    return found


def _eager_memory(model: BenchModel, batch_size: int, folder: Path) -> dict[str, Any]:
    file = folder / STATE_NAME
    model.dense.save(file)
    settings = {
        "model": model.name,
        "beta": BETA,
        "state": str(file),
        "batch_size": batch_size,
        "shape": list(model.input_shape),
        "classes": model.classes,
    }
    say("eager: memory of a process of its own")
    found: dict[str, Any] = measure_apart("eager_memory", settings)
    return found


def _times(
    model: BenchModel, batch_size: int, state: State, exports: Sequence[Exported], turns: int
) -> list[dict[str, Any]]:
    """One row an engine: all of them in turns."""
    x, y = model.batch(batch_size)
    formats = memory_formats(x)
    sides = {name: dense_step(copy.deepcopy(model.module), x, y, name) for name in formats}
    sides["eager"] = _eager_step(model, state, x, y)
    sessions = {
        each.name: Session.open(each.path, state, batch_size, each.target.backend)
        for each in exports
        if not each.target.python_variable
    }
    sides |= {name: session_step(session, x, y) for name, session in sessions.items()}
    taken = take_turns(sides, turns)
    versions = {name: session.kernels for name, session in sessions.items()}
    for session in sessions.values():
        session.close()
    engines = {"dense": taken[best_of({name: taken[name] for name in formats})]}
    engines |= {name: taken[name] for name in ("eager", *sessions)}
    return [
        {
            "engine": name,
            "version": versions.get(name),
            "seconds": asdict(Spread.of(seconds)),
            "over_eager": asdict(ratio(seconds, taken["eager"])),
            "over_native": asdict(ratio(seconds, taken[NATIVE])),
        }
        for name, seconds in engines.items()
    ]


def _times_apart(
    exported: Exported,
    native: Exported,
    state: Path,
    *,
    batch_size: int,
    turns: int,
    native_over_eager: float,
) -> dict[str, Any]:
    """The row of an engine that has a Python for itself."""
    settings = {
        "backend": exported.target.backend,
        "artifact": str(exported.path),
        "native": str(native.path),
        "state": str(state),
        "batch_size": batch_size,
        "turns": turns,
    }
    taken = measure_apart("engine_times", settings, python=exported.target.python)
    over_native = ratio(taken["engine"], taken["native"])
    over_eager = {name: native_over_eager * value for name, value in asdict(over_native).items()}
    return {
        "engine": exported.name,
        "version": None,
        "seconds": asdict(Spread.of(taken["engine"])),
        "over_eager": over_eager,
        "over_native": asdict(over_native),
    }


def _eager_step(
    model: BenchModel, state: State, x: NDArray[np.float32], y: NDArray[np.int32]
) -> Side:
    """The step of the method in eager PyTorch, on the values of a state."""
    pruned = copy.deepcopy(model.module)
    export.load_state(pruned, state)
    return dense_step(fast_reference(pruned, BETA), x, y, "contiguous")


HEADING = (
    *("model", "batch", "sparsity", "engine", "ms", "over eager", "quartiles", "over native"),
    *("process, base", "process, peak", "files"),
)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table on the terminal."""
    eager, memory = row["over_eager"], row["memory"]
    return [
        *(row["model"], str(row["batch_size"]), f"{row['sparsity']:.2%}", row["engine"]),
        f"{1e3 * row['seconds']['median']:.3g}",
        f"{eager['median']:.2f}",
        f"{eager['low']:.2f}-{eager['high']:.2f}",
        f"{row['over_native']['median']:.2f}",
        *(
            ["", ""]
            if memory is None
            else map(byte_text, (memory["base_bytes"], memory["peak_bytes"]))
        ),
        "" if row["file_bytes"] is None else byte_text(row["file_bytes"]),
    ]
