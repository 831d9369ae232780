"""What the step of the method takes in eager PyTorch, measured in a process of its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sparsyfed import export
from sparsyfed.edge_runtime import State
from sparsyfed.edge_runtime.process_memory import peak_rss_bytes, reset_peak_rss, rss_bytes
from sparsyfed.tools.bench_dense import dense_step
from sparsyfed.tools.engine_memory import STEPS


def measure(
    model: str, *, beta: float, state: str, batch_size: int, shape: Sequence[int], classes: int
) -> dict[str, int | None]:
    """Resident bytes with PyTorch loaded, before the model, and at most over some steps."""
    torch.set_num_threads(1)
    base = rss_bytes()
    reset_peak_rss()
    module = export.models.load_model(model)
    export.load_state(module, State.decode(Path(state).read_bytes()))
    generator = np.random.default_rng(0)
    x = generator.standard_normal((batch_size, *shape), dtype=np.float32)
    y = generator.integers(0, classes, batch_size).astype(np.int32)
    step = dense_step(export.reference(module, beta), x, y, "contiguous")
    for _ in range(STEPS):
        step()
    return {"base_bytes": base, "peak_bytes": peak_rss_bytes()}
