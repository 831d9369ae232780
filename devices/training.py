"""One local round: the same function for a device over MQTT and one of a simulation."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsyfed.devices.dataset import Dataset
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.format import Loss
from sparsyfed.edge_runtime.messages import DeviceProfileReport, MultiplyAddsReport, Offer
from sparsyfed.edge_runtime.process_memory import peak_rss_bytes
from sparsyfed.edge_runtime.session import Session


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
        """Measured speed of the whole round, loading and encoding included; None if the clock stood still."""
        work = self.profile.multiply_adds
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
    clock: Callable[[], float] = time.perf_counter,
    should_stop: Callable[[], bool] = lambda: False,
) -> LocalResult:
    """Train `state` on the data of a device and encode the update.

    `memory_bytes` is what the arena of the session may take: where not all activations fit, some are
    computed again. `clock` gives seconds, `should_stop` is asked before each step. The update depends on
    the artifact, the state, the data and `work` alone.

    Raises ArenaError if no plan fits `memory_bytes`, ConfigurationError if the data does not fit the model,
    TrainingStopped if `should_stop` said so, and what `Session` raises.
    """
    structure = Artifact.of(artifact)
    require_fitting_data(structure, dataset)
    started = clock()
    loss_sum = 0.0
    with Session.open(
        structure, state, batch_size=work.batch_size, arena_bytes=memory_bytes
    ) as session:
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
        profile = measured_profile(session)
    examples = len(dataset)
    return LocalResult(
        update=update,
        loss=loss_sum / (examples * work.epochs),
        examples=examples,
        seconds=clock() - started,
        profile=profile,
    )


def measured_profile(session: Session) -> DeviceProfileReport:
    """What the session has taken so far, as measured. The forward has what was computed again, too."""
    done = session.counters
    memory = session.memory
    return DeviceProfileReport(
        planned_arena_bytes=memory.arena_bytes,
        arena_peak_bytes=memory.arena_peak_bytes,
        peak_rss_bytes=peak_rss_bytes(),
        multiply_adds=MultiplyAddsReport(
            forward=done.forward + done.recomputed, d_input=done.d_input, d_weight=done.d_weight
        ),
    )


def require_fitting_data(artifact: Artifact, dataset: Dataset) -> None:
    """Raise ConfigurationError unless examples and targets are what the model takes."""
    wanted = artifact.tensors[0].shape
    if dataset.example_shape != wanted:
        raise ConfigurationError(
            f"{dataset.directory}: got examples of shape {dataset.example_shape}, the model takes {wanted}"
        )
    if artifact.loss is Loss.CROSS_ENTROPY:
        if dataset.target_type == "f":
            raise ConfigurationError(
                f"{dataset.directory}: got float32 targets, the model takes int32 or int64 labels"
            )
        return
    outputs = artifact.tensors[artifact.output].size
    if dataset.target_type != "f" or dataset.target_size != outputs:
        raise ConfigurationError(
            f"{dataset.directory}: got {dataset.target_size} values of type {dataset.target_type!r} a target, "
            f"the model takes {outputs} float32 values"
        )
