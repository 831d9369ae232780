"""Memory of a training step against dense PyTorch: `sparsyfed bench memory`.

Each side runs in a process of its own, on one thread, with the allocator's settings as they are. Its
high-water mark over some steps (VmHWM, reset through /proc/self/clear_refs) is set against what was
resident before the model was made, and when it was loaded: dense, the module with its optimiser;
ours, the open session. A session touches its whole arena when it is opened, and its steps add next to
nothing; what compares with the growth of the dense step is the transient part of the arena, which
only a step needs.

How high dense PyTorch goes depends on where its allocations happen to fall: from 163 to 209 MiB over
16 processes with ResNet-18. It gets several processes, of which the median counts.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from sparsyfed.edge_runtime import State, plan
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.process_memory import CLEAR_REFERENCES
from sparsyfed.tools.bench_dense import memory_formats
from sparsyfed.tools.bench_models import BenchModel
from sparsyfed.tools.bench_process import measure_apart, say
from sparsyfed.tools.bench_session import session_options
from sparsyfed.tools.quantities import byte_text

# Odd, so that the median is one of them.
DENSE_PROCESSES = 5


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What to measure: every combination. `memory` are choices of the plan, None the runtime's."""

    models: Sequence[str]
    input_shape: Sequence[int] | None = None
    batch_sizes: Sequence[int] = (16,)
    sparsities: Sequence[float] = (0.9, 0.95, 0.99)
    memory: Sequence[str | None] = (None,)


def run(settings: MemorySettings) -> dict[str, list[dict[str, Any]]]:
    """Rows of all combinations, with random masks.

    Raises ConfigurationError where the system has no high-water mark that can be reset.
    """
    if not CLEAR_REFERENCES.exists():
        raise ConfigurationError(
            f"{CLEAR_REFERENCES} is not there: memory is measured on Linux only"
        )
    rows = []
    for name, batch_size in product(settings.models, settings.batch_sizes):
        model = BenchModel.load(name, settings.input_shape)
        say(f"{name}, batch {batch_size}: dense")
        dense = _dense(model, batch_size)
        for sparsity, memory in product(settings.sparsities, settings.memory):
            say(f"{name}, batch {batch_size}, {sparsity:.2%}: session")
            state = model.masked("random", sparsity, "global", None)
            ours = _session(model, state, batch_size, memory)
            same = {"model": name, "batch_size": batch_size, "sparsity": sparsity, "memory": memory}
            rows.append({**same, "dense": dense, "session": ours, **smaller_by(dense, ours)})
    return {"memory": rows}


def _dense(model: BenchModel, batch_size: int) -> dict[str, Any]:
    """The median process of the memory format that takes less."""
    medians = []
    for name in memory_formats(np.empty((batch_size, *model.input_shape), np.float32)):
        settings = {**_batch(model, name, batch_size), "model": model.name}
        measured = [measure_apart("bench_resident", settings) for _ in range(DENSE_PROCESSES)]
        median = sorted(measured, key=growth)[DENSE_PROCESSES // 2]
        medians.append({"format": name, "processes": DENSE_PROCESSES, **median})
    return min(medians, key=growth)


def _session(
    model: BenchModel, state: State, batch_size: int, memory: str | None
) -> dict[str, Any]:
    planned = plan(model.artifact, state, batch_size, **session_options(None, memory))
    with tempfile.TemporaryDirectory(prefix="sparsyfed-bench-") as folder:
        files = {"artifact": f"{folder}/model.sfd", "state": f"{folder}/state.sfs"}
        model.artifact.save(files["artifact"])
        state.save(files["state"])
        settings = {**_batch(model, "session", batch_size), **files, "memory": memory}
        measured: dict[str, Any] = measure_apart("bench_resident", settings)
    return measured | {
        "planned_bytes": planned.arena_bytes,
        "transient_bytes": planned.transient_bytes,
    }


def _batch(model: BenchModel, side: str, batch_size: int) -> dict[str, Any]:
    shape = list(model.input_shape)
    return {"side": side, "batch_size": batch_size, "shape": shape, "classes": model.classes}


def smaller_by(dense: Mapping[str, int], ours: Mapping[str, int]) -> dict[str, float]:
    """How many times smaller: with the model, and what the steps alone take."""
    step = dense["peak_bytes"] - dense["loaded_bytes"]
    grown = max(ours["peak_bytes"] - ours["loaded_bytes"], ours["transient_bytes"])
    return {
        "smaller_with_model": growth(dense) / growth(ours),
        "smaller_step": step / grown,
    }


def growth(figures: Mapping[str, int]) -> int:
    """Bytes by which a process grew from before the model to the peak of its steps."""
    return figures["peak_bytes"] - figures["before_bytes"]


HEADING = (
    *("model", "batch", "sparsity", "memory", "dense with model", "ours with model", "smaller"),
    *("dense step", "ours transient", "smaller", "arena planned", "arena touched"),
)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table on the terminal."""
    dense, ours = row["dense"], row["session"]
    return [
        *(
            row["model"],
            str(row["batch_size"]),
            f"{row['sparsity']:.2%}",
            row["memory"] or "default",
        ),
        *(byte_text(growth(dense)), byte_text(growth(ours)), f"{row['smaller_with_model']:.2f}"),
        *(
            byte_text(dense["peak_bytes"] - dense["loaded_bytes"]),
            byte_text(ours["transient_bytes"]),
        ),
        *(
            f"{row['smaller_step']:.2f}",
            f"{ours['planned_bytes']:,}",
            f"{ours['arena_peak_bytes']:,}",
        ),
    ]
