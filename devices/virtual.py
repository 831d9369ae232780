"""Devices inside one process: many local rounds on the native runtime, without a broker."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.training import LocalResult, LocalRound, shuffle_seed, train_locally
from sparsyfed.edge_runtime.artifact import Artifact


@dataclass(frozen=True, slots=True)
class VirtualDevice:
    """A device that lives in this process: its name, its data, and the bytes that training may use.

    It joins for `first_round` of a job.
    """

    name: str
    dataset: Dataset
    memory_bytes: int
    first_round: int = 1


def train_devices(
    devices: Iterable[VirtualDevice],
    artifact: str | Path | bytes | Artifact,
    state: bytes,
    work: LocalRound,
    *,
    clock: Callable[[], float],
    workers: int = 1,
) -> Iterator[tuple[VirtualDevice, LocalResult]]:
    """Train each device on the same state and yield the results in the order of the devices.

    `work.seed` is the job's: each device shuffles by `shuffle_seed(work.seed, work.round, name)`, as a
    device over MQTT does, so that its update has the same bytes. Up to `workers` devices train at a
    time; each holds one arena. Errors are those of `train_locally`.
    """
    structure = Artifact.of(artifact)

    def train(device: VirtualDevice) -> tuple[VirtualDevice, LocalResult]:
        own = replace(work, seed=shuffle_seed(work.seed, work.round, device.name))
        result = train_locally(
            structure, state, device.dataset, own, memory_bytes=device.memory_bytes, clock=clock
        )
        return device, result

    if workers == 1:
        yield from map(train, devices)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(train, devices)
