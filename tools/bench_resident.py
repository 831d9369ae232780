"""Resident memory of one side of `bench_memory`, measured in the process that runs it."""

# ruff: noqa: PLC0415 - a session is measured in a process without PyTorch

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime import Artifact
from sparsyfed.edge_runtime.process_memory import peak_rss_bytes, reset_peak_rss, rss_bytes
from sparsyfed.tools.bench_session import open_session, session_step
from sparsyfed.tools.bench_timing import Side

STEPS = 3

Batch = tuple[NDArray[np.float32], NDArray[np.int32]]


def measure(
    side: str, batch_size: int, shape: Sequence[int], classes: int, **settings: Any
) -> dict[str, int]:
    """Bytes resident before the model was made and when it was loaded, and the peak of some steps."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((batch_size, *shape), dtype=np.float32)
    y = generator.integers(0, classes, batch_size).astype(np.int32)
    return _session((x, y), **settings) if side == "session" else _dense((x, y), side, **settings)


def _session(batch: Batch, artifact: str, state: str, memory: str | None) -> dict[str, int]:
    before = resident_bytes()
    session = open_session(
        Artifact.load(artifact), Path(state).read_bytes(), len(batch[0]), memory=memory
    )
    figures = _over_steps(before, session_step(session, *batch))
    measured = session.memory
    return figures | {
        "arena_bytes": measured.arena_bytes,
        "arena_peak_bytes": measured.arena_peak_bytes,
    }


def _dense(batch: Batch, memory_format: str, model: str) -> dict[str, int]:
    import torch

    from sparsyfed import export
    from sparsyfed.tools.bench_dense import dense_step

    torch.set_num_threads(1)
    # What the libraries allocate once, for any model, is not the model's.
    small = torch.nn.Sequential(
        torch.nn.Conv2d(1, 1, 3), torch.nn.Flatten(), torch.nn.Linear(36, 2)
    )
    x = np.zeros((1, 1, 8, 8), np.float32)
    dense_step(small, x, np.zeros(1, np.int32), memory_format)()
    del small
    before = resident_bytes()
    return _over_steps(before, dense_step(export.models.load_model(model), *batch, memory_format))


def _over_steps(before: int, step: Side) -> dict[str, int]:
    gc.collect()
    loaded = resident_bytes()
    reset_peak_rss()
    for _ in range(STEPS):
        step()
    return {"before_bytes": before, "loaded_bytes": loaded, "peak_bytes": _known(peak_rss_bytes())}


def resident_bytes() -> int:
    """Resident memory of this process now."""
    gc.collect()
    return _known(rss_bytes())


def _known(count: int | None) -> int:
    assert count is not None  # the benchmark asked for it before
    return count
