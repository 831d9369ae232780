"""One local round: the same function for a device over MQTT and one of a simulation."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsyfed.devices.dataset import Dataset
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.backends import load_engine
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.format import Loss
from sparsyfed.edge_runtime.messages import DeviceProfileReport, MultiplyAddsReport, Offer
from sparsyfed.edge_runtime.process_memory import peak_rss_bytes, rss_bytes
from sparsyfed.edge_runtime.session import Session

if TYPE_CHECKING:
    from sparsyfed.edge_runtime.backends.engine_session import EngineSession


class TrainingStopped(Exception):  # noqa: N818 - an order that was followed, not an error
    """The round was called off before its last step."""


@dataclass(frozen=True, slots=True)
class LocalRound:
    """What to do in one local round. `seed` is the device's own: see `shuffle_seed`."""

    round: int
    batch_size: int
    epochs: int
    learning_rate: float
    weight_decay: float
    sparsity: float
    budget: str | Mapping[str, int]
    seed: int

    @classmethod
    def of_offer(cls, offer: Offer, device: str) -> "LocalRound":
        """The local round that an offer asks of this device."""
        return cls(
            round=offer.round,
            batch_size=offer.batch_size,
            epochs=offer.epochs,
            learning_rate=offer.learning_rate,
            weight_decay=offer.weight_decay,
            sparsity=offer.sparsity,
            budget=offer.budget,
            seed=shuffle_seed(offer.seed, offer.round, device),
        )


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """What a device trains with, as in `Session.open`.

    `base_rss_bytes` is what the process had resident with the engine loaded, before any model; None where that is not
    known.
    """

    backend: str = "native"
    base_rss_bytes: int | None = None

    @classmethod
    def load(cls, backend: str) -> "LocalEngine":
        """Load the engine into this process and measure. Raises BackendError where it is not there."""
        load_engine(backend)
        return cls(backend, rss_bytes())

    def __str__(self) -> str:
        base = "unknown" if self.base_rss_bytes is None else f"{self.base_rss_bytes:,} bytes"
        return f"trains with {self.backend}; resident before any model: {base}"


@dataclass(frozen=True, slots=True)
class LocalResult:
    """The encoded update of a local round, and what it took.

    `loss` is the mean over all examples of all epochs, each at the step that trained on it. `examples` is the size of
    the data set: the weight of this update in the average.
    """

    update: bytes
    loss: float
    examples: int
    seconds: float
    profile: DeviceProfileReport

    @property
    def multiply_adds_per_second(self) -> float | None:
        """Measured speed of the whole round, loading and encoding included.

        None if the clock stood still, or the engine does not count.
        """
        work = self.profile.multiply_adds
        if work is None:
            return None
        total = work.forward + work.d_input + work.d_weight
        return total / self.seconds if self.seconds > 0 and total > 0 else None


def shuffle_seed(seed: int, round: int, device: str) -> int:
    """Seed of a device's shuffle in a round: first 8 bytes of a sha256, little-endian.

    A device that trains a round twice gets the same update, byte by byte.
    """
    return int.from_bytes(
        hashlib.sha256(f"{seed}/{round}/{device}".encode()).digest()[:8], "little"
    )


def train_locally(
    artifact: str | Path | bytes | Artifact,
    state: bytes,
    dataset: Dataset,
    work: LocalRound,
    *,
    memory_bytes: int,
    engine: LocalEngine = LocalEngine(),
    clock: Callable[[], float] = time.perf_counter,
    should_stop: Callable[[], bool] = lambda: False,
) -> LocalResult:
    """Train `state` on the data of a device and encode the update.

    `artifact` is what a session on `engine` opens: for other engines than the native core the path of an export.
    `memory_bytes` is what the arena of a native session may take: where not all activations fit, some are computed
    again. Other engines take what they want. `clock` gives seconds, `should_stop` is asked before each step. The update
    depends on the artifact, the state, the data, `work` and the engine alone.

    Raises ArenaError if no plan fits `memory_bytes`, ConfigurationError if the data does not fit the model,
    TrainingStopped if `should_stop` said so, and what `Session` raises.
    """
    started = clock()
    loss_sum = 0.0
    with open_session(artifact, state, work.batch_size, memory_bytes, engine) as session:
        require_fitting_data(session.artifact, dataset)
        for epoch in range(work.epochs):
            for batch in dataset.batches(work.batch_size, work.seed, epoch):
                if should_stop():
                    raise TrainingStopped
                loss = session.step(
                    batch.x,
                    batch.y,
                    learning_rate=work.learning_rate,
                    weight_decay=work.weight_decay,
                )
                loss_sum += loss * batch.count
        update = session.update(work.sparsity, work.budget, round=work.round).encode()
        profile = measured_profile(session, engine)
    examples = len(dataset)
    return LocalResult(
        update=update,
        loss=loss_sum / (examples * work.epochs),
        examples=examples,
        seconds=clock() - started,
        profile=profile,
    )


def open_session(
    artifact: str | Path | bytes | Artifact,
    state: bytes,
    batch_size: int,
    memory_bytes: int | None,
    engine: LocalEngine,
) -> "Session | EngineSession":
    """A session on the device's engine; a native one in an arena of at most `memory_bytes`, if given."""
    if engine.backend == "native":
        return Session.open(artifact, state, batch_size, arena_bytes=memory_bytes)
    return Session.open(artifact, state, batch_size, engine.backend)


def measured_profile(
    session: "Session | EngineSession", engine: LocalEngine
) -> DeviceProfileReport:
    """What the session has taken so far, as measured. The forward has what was computed again, too."""
    arena_bytes = arena_peak_bytes = work = None
    if isinstance(session, Session):
        done, memory = session.counters, session.memory
        arena_bytes, arena_peak_bytes = memory.arena_bytes, memory.arena_peak_bytes
        work = MultiplyAddsReport(done.forward + done.recomputed, done.d_input, done.d_weight)
    return DeviceProfileReport(
        planned_arena_bytes=arena_bytes,
        arena_peak_bytes=arena_peak_bytes,
        peak_rss_bytes=peak_rss_bytes(),
        multiply_adds=work,
        base_rss_bytes=engine.base_rss_bytes,
        backend=engine.backend,
        engine=session.kernels,
    )


def require_fitting_data(artifact: Artifact, dataset: Dataset) -> None:
    """Raise ConfigurationError unless examples and targets are what the model takes.

    int8 examples are taken to be of the model's quantization: nothing in the file says of which they are.
    """
    wanted = artifact.tensors[0].shape
    if dataset.example_shape != wanted:
        raise ConfigurationError(
            f"{dataset.directory}: got examples of shape {dataset.example_shape}, the model takes {wanted}"
        )
    if dataset.example_type == "b" and artifact.quantization is None:
        raise ConfigurationError(
            f"{dataset.directory}: got int8 examples, the model takes float32: export it for int8 inputs"
        )
    outputs = artifact.tensors[artifact.output].size
    if artifact.loss is Loss.CROSS_ENTROPY:
        if dataset.target_type == "f":
            raise ConfigurationError(
                f"{dataset.directory}: got float32 targets, the model takes int32 or int64 labels"
            )
        if dataset.largest_label >= outputs:
            raise ConfigurationError(
                f"{dataset.directory}: got label {dataset.largest_label}, the model takes 0 to {outputs - 1}"
            )
        return
    if dataset.target_type != "f" or dataset.target_size != outputs:
        raise ConfigurationError(
            f"{dataset.directory}: got {dataset.target_size} values of type {dataset.target_type!r} a target, "
            f"the model takes {outputs} float32 values"
        )
