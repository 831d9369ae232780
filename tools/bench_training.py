"""A trained state for benchmarks: masks as the method leaves them, uneven over the layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.devices.dataset import Dataset
from sparsyfed.edge_runtime import Session
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.tools.bench_models import SEED, BenchModel
from sparsyfed.tools.bench_process import measure_apart

if TYPE_CHECKING:
    from sparsyfed.edge_runtime.buffers import BufferLike

BATCH_SIZE = 16
LEARNING_RATE = 0.1
WEIGHT_DECAY = 1e-3


def train_apart(
    model: str, input_shape: Sequence[int] | None, steps: int, data: str | None, out: Path
) -> dict[str, Any]:
    """Trains a model from its dense initial state, saves its state, returns how the loss went.

    `data` is a folder with x.npy and y.npy; None trains on synthetic classes. A process of its own
    trains, so that what it takes does not stay with the one that measures.
    """
    settings = {"model": model, "input_shape": input_shape, "steps": steps, "data": data}
    report: dict[str, Any] = measure_apart("bench_training", {**settings, "out": str(out)})
    return report


def measure(
    model: str, input_shape: Sequence[int] | None, steps: int, data: str | None, out: str
) -> dict[str, Any]:
    """Does what `train_apart` says, in this process."""
    loaded = BenchModel.load(model, input_shape)
    batches = _batches(loaded, data)
    losses = []
    with Session.open(loaded.artifact, loaded.dense, batch_size=BATCH_SIZE) as session:
        for x, y in itertools.islice(batches, steps):
            loss = session.step(x, y, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            losses.append(loss)
        session.state().save(out)
    tenth = max(1, steps // 10)
    return {
        "model": model,
        "steps": steps,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "data": "synthetic classes" if data is None else Path(data).name,
        "loss_of_first_tenth": float(np.mean(losses[:tenth])),
        "loss_of_last_tenth": float(np.mean(losses[-tenth:])),
    }


def _batches(model: BenchModel, data: str | None) -> Iterator[tuple[BufferLike, BufferLike]]:
    return _synthetic(model) if data is None else _recorded(model, data)


def _synthetic(model: BenchModel) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Batches of classes that can be learned: a pattern of noise each, and other noise on it."""
    generator = np.random.default_rng(SEED)
    shape = model.input_shape
    patterns = generator.standard_normal((model.classes, *shape), dtype=np.float32)
    while True:
        y = generator.integers(0, model.classes, BATCH_SIZE).astype(np.int32)
        noise = generator.standard_normal((BATCH_SIZE, *shape), dtype=np.float32)
        yield patterns[y] + noise, y


def _recorded(model: BenchModel, folder: str) -> Iterator[tuple[memoryview, memoryview]]:
    """Batches of a data set, pass after pass."""
    with closing(Dataset(folder)) as dataset:
        wanted = model.input_shape
        if dataset.example_shape != wanted or dataset.target_type == "f":
            raise ConfigurationError(
                f"{folder}: got examples of shape {dataset.example_shape} with targets of type "
                f"{dataset.target_type!r}, wanted shape {wanted} and integer labels"
            )
        dataset.require_valid_values()
        for epoch in itertools.count():
            for batch in dataset.batches(BATCH_SIZE, SEED, epoch):
                yield batch.x, batch.y
