"""A whole federation inside one process: virtual devices, the coordinator's average, no broker.

Devices train, updates are checked and averaged, and states are encoded by the code that serves
devices over MQTT, so the same job, data and seed give the same models here and there.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sparsyfed.coordinator.aggregation import FederatedAverage, UpdateRules
from sparsyfed.coordinator.pruning import pruned
from sparsyfed.coordinator.schedule import learning_rate, update_sparsity
from sparsyfed.coordinator.selection import draw_order
from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.training import LocalResult, LocalRound
from sparsyfed.devices.virtual import VirtualDevice, train_devices
from sparsyfed.edge_runtime import Artifact, Session, SparseUpdate, State
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.messages import MultiplyAddsReport


@dataclass(frozen=True, slots=True)
class FederatedJob:
    """What is trained for how long: the numbers of the tables [job] and [training]."""

    rounds: int
    seed: int
    sparsity: float
    learning_rate: float
    final_learning_rate: float
    batch_size: int = 16
    epochs: int = 1
    weight_decay: float = 1e-3
    norm_bound: float = 10.0
    budget: str = "global"
    devices_per_round: int | None = None  # None: all
    dense_rounds: int = 0

    def update_sparsity(self, number: int) -> float:
        """Sparsity of the updates of this round."""
        return update_sparsity(number, self.dense_rounds, self.sparsity)

    def local_round(self, number: int) -> LocalRound:
        """The work of every device in this round; its seed is the job's."""
        rate = learning_rate(number, self.rounds, self.learning_rate, self.final_learning_rate)
        return LocalRound(
            round=number,
            batch_size=self.batch_size,
            epochs=self.epochs,
            learning_rate=rate,
            weight_decay=self.weight_decay,
            sparsity=self.update_sparsity(number),
            budget=self.budget,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class FinishedRound:
    """One round of all devices: the accuracy after it, and what it took.

    `density_down` is that of the state sent, `density_up` the mean of the updates. Bytes are those
    of the encoded states and updates of all devices; the same holds for the multiply-adds.
    """

    round: int
    accuracy: float
    density_down: float
    density_up: float
    bytes_down: int
    update_bytes: tuple[int, ...]
    multiply_adds: MultiplyAddsReport
    seconds: float


def run_federation(
    artifact: Artifact,
    state: State,
    job: FederatedJob,
    devices: Sequence[VirtualDevice],
    held_out: Dataset,
    *,
    workers: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[FinishedRound]:
    """Runs the job and yields each round as it ends.

    Of the devices whose first round has come `job.devices_per_round` take part, drawn as the coordinator draws them.
    `workers` devices train at a time; their number does not change the result.
    """
    for number in range(1, job.rounds + 1):
        started = clock()
        rules = UpdateRules.of_job(
            artifact, job.update_sparsity(number), job.budget, job.norm_bound
        )
        average = FederatedAverage(state)
        encoded = state.encode()
        density = state.density
        updates: list[tuple[SparseUpdate, LocalResult]] = []
        work = job.local_round(number)
        for _, result in train_devices(
            _drawn(job, number, devices),
            artifact,
            encoded,
            work,
            clock=clock,
            workers=workers,
        ):
            update = rules.read(result.update, state)
            average.add(update, result.examples)
            updates.append((update, result))
        state = average.state()
        if number == job.dense_rounds:
            state = pruned(artifact, state, job.sparsity, job.budget)
        yield FinishedRound(
            round=number,
            accuracy=held_out_accuracy(artifact, state, held_out),
            density_down=density,
            density_up=sum(update.density for update, _ in updates) / len(updates),
            bytes_down=len(encoded) * len(updates),
            update_bytes=tuple(len(result.update) for _, result in updates),
            multiply_adds=total_multiply_adds([result for _, result in updates]),
            seconds=clock() - started,
        )


def _drawn(job: FederatedJob, number: int, devices: Sequence[VirtualDevice]) -> list[VirtualDevice]:
    """The devices of a round, by name."""
    there = {device.name: device for device in devices if device.first_round <= number}
    order = draw_order(there, seed=job.seed, round_number=number, attempt=1)
    return [there[name] for name in sorted(order[: job.devices_per_round])]


def held_out_accuracy(artifact: Artifact, state: State, held_out: Dataset) -> float:
    """Share of the examples that the model classifies rightly.

    Raises ConfigurationError for a model without classes.
    """
    everything = held_out.everything()
    with Session.open(artifact, state, batch_size=min(64, everything.count)) as session:
        _, correct = session.evaluate(everything.x, everything.y)
    if correct is None:
        raise ConfigurationError("a model trained by mean squared error has no accuracy")
    return correct / everything.count


def total_multiply_adds(results: Sequence[LocalResult]) -> MultiplyAddsReport:
    """Sum over these local rounds, by kind."""
    reported = (result.profile.multiply_adds for result in results)
    counts = [count for count in reported if count is not None]
    return MultiplyAddsReport(
        forward=sum(count.forward for count in counts),
        d_input=sum(count.d_input for count in counts),
        d_weight=sum(count.d_weight for count in counts),
    )
