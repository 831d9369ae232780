"""The two systems that the demo compares, on the smartwatch data: SparsyFed and dense FedAvg."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType

import torch

from sparsyfed.coordinator.compile import compile_model
from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.virtual import VirtualDevice
from sparsyfed.edge_runtime import Artifact, DenseTensor, State
from sparsyfed.tools.in_process import FederatedJob, FinishedRound, run_federation

MODEL = "watch_cnn"
ROUNDS = 30
BETA = 1.25
SPARSITY = 0.95
DEVICE_PROFILE = "watch"
ENGINE_PROFILE = "phone_midrange"
"""Of a device with another engine than the native core, which takes more than a watch has."""

LEARNING_RATE = 0.3
FINAL_LEARNING_RATE = 0.05

LAST_ROUNDS = 5


def sparse_job(rounds: int, seed: int, sparsity: float = SPARSITY) -> FederatedJob:
    """SparsyFed at this sparsity."""
    return FederatedJob(rounds, seed, sparsity, LEARNING_RATE, FINAL_LEARNING_RATE)


def dense_job(rounds: int, seed: int) -> FederatedJob:
    """Dense FedAvg: nothing is pruned. Compile its model with beta = 1."""
    return FederatedJob(rounds, seed, 0.0, LEARNING_RATE, FINAL_LEARNING_RATE)


def compile_watch(beta: float, seed: int, sparsity: float = 0.0) -> tuple[Artifact, State]:
    """The model for this exponent and its initial state, ready for round 1.

    The state is dense, or holds the Top-K of the initial |v| at this sparsity.
    """
    return compile_model(MODEL, seed=seed, beta=beta, sparsity=sparsity)


def run_virtually(
    job: FederatedJob,
    beta: float,
    folders: Mapping[str, Path],
    memory_bytes: int,
    *,
    workers: int,
    start_sparsity: float = 0.0,
    first_rounds: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[FinishedRound]:
    """Runs the job on virtual devices in this process and yields each round as it ends.

    `folders` are those of `FleetData.save`; each device declares `memory_bytes`;
    `start_sparsity` is that of the initial state; `first_rounds` has devices that join later than round 1.
    """
    torch.set_num_threads(1)
    artifact, state = compile_watch(beta, job.seed, start_sparsity)
    with ExitStack() as stack:
        data = {name: stack.enter_context(closing(Dataset(path))) for name, path in folders.items()}
        held_out = data.pop("held-out")
        devices = [
            VirtualDevice(name, dataset, memory_bytes, first_rounds.get(name, 1))
            for name, dataset in data.items()
        ]
        yield from run_federation(artifact, state, job, devices, held_out, workers=workers)


def accuracy_definition(rounds: int) -> str:
    """What `final_accuracy` of so many rounds is, in words."""
    return f"mean over the last {min(rounds, LAST_ROUNDS)} rounds on the held-out wearers"


def final_accuracy(accuracies: Sequence[float]) -> float:
    """The accuracy that stands for a run: the mean over its last five rounds, or all if fewer."""
    last = accuracies[-LAST_ROUNDS:]
    return sum(last) / len(last)


def dense_bytes(state: State) -> int:
    """Bytes of all values of the model as 32-bit floats: an update when nothing is sparse."""
    dense = sum(t.count for t in state.tensors if isinstance(t, DenseTensor))
    return 4 * (state.positions + dense)
