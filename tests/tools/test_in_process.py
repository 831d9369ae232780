from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.virtual import VirtualDevice
from sparsyfed.edge_runtime import Artifact, State
from sparsyfed.edge_runtime.errors import ArenaError
from sparsyfed.tools.in_process import FederatedJob, FinishedRound, run_federation

JOB = FederatedJob(rounds=8, seed=7, sparsity=0.9, learning_rate=0.3, final_learning_rate=0.05)
FEATURES, CLASSES = 20, 3


@pytest.fixture(scope="module")
def model() -> tuple[Artifact, State]:
    pytest.importorskip("torch", reason="torch is not installed")
    import torch

    from sparsyfed import export

    net = export.models.mlp(FEATURES, (32,), CLASSES)
    artifact = export.compile(net, torch.zeros(1, FEATURES)).native
    return artifact, State(export.initial_state(net, seed=1).tensors, round=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Separable classes on three devices of unequal size, and held-out examples."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(CLASSES, FEATURES))
    root = tmp_path_factory.mktemp("data")
    sizes = {"a": 33, "b": 64, "c": 17, "held-out": 90}
    for name, size in sizes.items():
        y = random.integers(0, CLASSES, size, dtype=np.int32)
        x = (centres[y] + 0.5 * random.normal(size=(size, FEATURES))).astype(np.float32)
        (root / name).mkdir()
        np.save(root / name / "x.npy", x)
        np.save(root / name / "y.npy", y)
    return {name: root / name for name in sizes}


def federate(
    model: tuple[Artifact, State],
    folders: dict[str, Path],
    names: str = "abc",
    workers: int = 1,
    memory_bytes: int = 1 << 20,
    *,
    first_rounds: Mapping[str, int] = MappingProxyType({}),
    job: FederatedJob = JOB,
) -> list[FinishedRound]:
    devices = [
        VirtualDevice(name, Dataset(folders[name]), memory_bytes, first_rounds.get(name, 1))
        for name in names
    ]
    held_out = Dataset(folders["held-out"])
    rounds = list(
        run_federation(*model, job, devices, held_out, workers=workers, clock=lambda: 0.0)
    )
    for dataset in (held_out, *(device.dataset for device in devices)):
        dataset.close()
    return rounds


def test_the_fleet_learns_and_the_model_gets_sparse(
    model: tuple[Artifact, State], folders: dict[str, Path]
) -> None:
    rounds = federate(model, folders)
    assert [entry.round for entry in rounds] == list(range(1, 9))
    assert rounds[-1].accuracy > 0.8
    assert rounds[0].density_down == 1.0
    assert rounds[1].density_down < 0.3
    assert all(entry.density_up == pytest.approx(0.1, abs=0.001) for entry in rounds)
    assert rounds[-1].multiply_adds.forward < 0.3 * rounds[0].multiply_adds.forward


def test_a_device_that_joins_later_trains_since_its_first_round(
    model: tuple[Artifact, State], folders: dict[str, Path]
) -> None:
    rounds = federate(model, folders, first_rounds={"c": 3})
    assert [len(entry.update_bytes) for entry in rounds] == [2, 2, 3, 3, 3, 3, 3, 3]
    assert rounds[:2] == federate(model, folders, "ab")[:2]


def test_dense_rounds_end_with_a_pruned_model(
    model: tuple[Artifact, State], folders: dict[str, Path]
) -> None:
    rounds = federate(model, folders, job=replace(JOB, dense_rounds=3))
    assert [entry.density_down for entry in rounds[:3]] == [1.0] * 3
    assert all(entry.density_up > 0.99 for entry in rounds[:3])
    for entry in rounds[3:]:
        assert entry.density_down == entry.density_up == pytest.approx(0.1, abs=0.001)
    assert rounds[-1].accuracy > 0.8


def test_so_many_devices_as_asked_are_drawn_for_each_round(
    model: tuple[Artifact, State], folders: dict[str, Path]
) -> None:
    job = replace(JOB, devices_per_round=2, budget="erk")
    devices = [VirtualDevice(name, Dataset(folders[name]), 1 << 20) for name in "abc"]
    held_out = Dataset(folders["held-out"])
    rounds = list(run_federation(*model, job, devices, held_out, clock=lambda: 0.0))
    for dataset in (held_out, *(device.dataset for device in devices)):
        dataset.close()
    assert [len(entry.update_bytes) for entry in rounds] == [2] * 8
    assert rounds[-1].accuracy > 0.8


def test_neither_workers_nor_the_order_of_devices_change_the_result(
    model: tuple[Artifact, State], folders: dict[str, Path]
) -> None:
    alone = federate(model, folders)
    together = [
        replace(entry, update_bytes=alone[place].update_bytes)
        for place, entry in enumerate(federate(model, folders, "cab", workers=3))
    ]
    assert together == alone


def test_a_device_without_the_memory_is_an_error(
    model: tuple[Artifact, State], folders: dict[str, Path]
) -> None:
    with pytest.raises(ArenaError, match="got an arena of 1000 bytes"):
        federate(model, folders, memory_bytes=1000)


def test_learning_rates_fall_from_first_to_last() -> None:
    rates = [JOB.local_round(number).learning_rate for number in range(1, 9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.05)
    assert rates[0] < 0.3
