import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_strategies import random_model

from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.training import (
    LocalRound,
    TrainingStopped,
    shuffle_seed,
    train_locally,
)
from sparsyfed.devices.virtual import VirtualDevice, train_devices
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import ArenaError, ConfigurationError
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.session import Session
from sparsyfed.edge_runtime.state import State
from sparsyfed.edge_runtime.update import SparseUpdate

MEMORY = 1 << 20
WORK = LocalRound(
    round=4,
    batch_size=8,
    epochs=2,
    learning_rate=0.1,
    weight_decay=1e-3,
    sparsity=0.5,
    budget="global",
    seed=shuffle_seed(7, 4, "watch-1"),
)


def clock() -> float:
    return 0.0


def test_the_update_is_that_of_the_same_steps_by_hand(
    artifact: Artifact, state: State, dataset: Dataset
) -> None:
    result = train_locally(artifact, state.encode(), dataset, WORK, memory_bytes=MEMORY)
    losses = []
    with Session.open(artifact, state, batch_size=8) as session:
        for epoch in range(2):
            for batch in dataset.batches(8, WORK.seed, epoch):
                loss = session.step(batch.x, batch.y, learning_rate=0.1, weight_decay=1e-3)
                losses += [loss] * batch.count
        wanted = session.update(0.5, "global", round=4)
        counters = session.counters
    assert result.update == wanted.encode()
    assert result.loss == pytest.approx(np.mean(losses))
    assert result.examples == len(dataset)
    work = result.profile.multiply_adds
    assert work is not None
    assert work.forward == counters.forward > 0
    assert result.profile.planned_arena_bytes == plan(artifact, state, 8).arena_bytes
    assert result.profile.planned_arena_bytes is not None
    assert 0 < (result.profile.arena_peak_bytes or 0) <= result.profile.planned_arena_bytes


def test_training_learns_and_prunes(artifact: Artifact, state: State, dataset: Dataset) -> None:
    first = train_locally(artifact, state.encode(), dataset, WORK, memory_bytes=MEMORY)
    longer = train_locally(
        artifact, state.encode(), dataset, replace(WORK, epochs=20), memory_bytes=MEMORY
    )
    assert longer.loss < first.loss
    update = SparseUpdate.decode(longer.update, base=state)
    assert update.nonzeros == round(0.5 * update.positions)


def test_the_same_seed_gives_the_same_bytes(
    artifact: Artifact, state: State, dataset: Dataset
) -> None:
    def train(work: LocalRound) -> bytes:
        return train_locally(artifact, state.encode(), dataset, work, memory_bytes=MEMORY).update

    assert train(WORK) == train(WORK)
    assert train(WORK) != train(replace(WORK, seed=WORK.seed + 1))


def test_seeds_differ_by_job_round_and_device() -> None:
    seeds = {shuffle_seed(*key) for key in [(7, 4, "a"), (8, 4, "a"), (7, 5, "a"), (7, 4, "b")]}
    assert len(seeds) == 4


def test_a_plan_over_the_memory_is_refused(
    artifact: Artifact, state: State, dataset: Dataset
) -> None:
    needed = plan(artifact, state, 8, memory="small").arena_bytes
    train_locally(artifact, state.encode(), dataset, WORK, memory_bytes=needed)
    with pytest.raises(ArenaError, match=f"got an arena of {needed - 1} bytes.* wants {needed} "):
        train_locally(artifact, state.encode(), dataset, WORK, memory_bytes=needed - 1)


def test_a_tight_memory_takes_more_work_for_the_same_update(tmp_path: Path) -> None:
    model = random_model("residual", 8, 0.5)
    usual, least = (
        plan(model.artifact, model.state, 8, memory=memory).arena_bytes
        for memory in ("fast", "small")
    )
    assert least < usual
    rng = np.random.default_rng(0)
    shape = (20, *model.artifact.tensors[0].shape)
    np.save(tmp_path / "x.npy", rng.normal(size=shape).astype(np.float32))
    np.save(tmp_path / "y.npy", rng.integers(0, 2, 20, dtype=np.int32))
    roomy, tight = (
        train_locally(
            model.artifact, model.state.encode(), Dataset(tmp_path), WORK, memory_bytes=memory_bytes
        )
        for memory_bytes in (usual, least)
    )
    assert tight.update == roomy.update
    assert (
        0 < (tight.profile.arena_peak_bytes or 0) <= least < (roomy.profile.arena_peak_bytes or 0)
    )
    more, less = tight.profile.multiply_adds, roomy.profile.multiply_adds
    assert more is not None
    assert less is not None
    assert more.forward > less.forward


def test_training_stops_before_the_next_step(
    artifact: Artifact, state: State, dataset: Dataset
) -> None:
    answers: Iterator[bool] = iter([False, False, True])
    with pytest.raises(TrainingStopped):
        train_locally(
            artifact,
            state.encode(),
            dataset,
            WORK,
            memory_bytes=MEMORY,
            should_stop=lambda: next(answers),
        )
    assert next(answers, None) is None


def test_the_clock_is_the_callers(artifact: Artifact, state: State, dataset: Dataset) -> None:
    times = iter([10.0, 12.5])
    result = train_locally(
        artifact, state.encode(), dataset, WORK, memory_bytes=MEMORY, clock=lambda: next(times)
    )
    assert result.seconds == 2.5


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((2, 5), np.float32), np.zeros(2, np.int32), r"shape \(5,\), the model takes"),
        (np.zeros((2, 6), np.float32), np.zeros(2, np.float32), "float32 targets"),
        (np.zeros((2, 6), np.float32), np.arange(2, 4), "got label 3, the model takes 0 to 2"),
    ],
)
def test_data_of_another_model_is_refused(  # noqa: PLR0917 - fixtures
    tmp_path: Path, artifact: Artifact, state: State, x: np.ndarray, y: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    with pytest.raises(ConfigurationError, match=message):
        train_locally(artifact, state.encode(), Dataset(tmp_path), WORK, memory_bytes=MEMORY)


def test_virtual_devices_train_as_real_ones_in_any_number_of_threads(
    artifact: Artifact, state: State, dataset: Dataset
) -> None:
    devices = [VirtualDevice(name, dataset, MEMORY) for name in ("a", "b", "c")]
    job = replace(WORK, seed=7)
    alone = list(train_devices(devices, artifact, state.encode(), job, clock=clock))
    threaded = list(train_devices(devices, artifact, state.encode(), job, clock=clock, workers=3))
    assert [device.name for device, _ in threaded] == ["a", "b", "c"]
    assert [r.update for _, r in alone] == [r.update for _, r in threaded]
    own = replace(WORK, seed=shuffle_seed(7, 4, "b"))
    by_itself = train_locally(artifact, state.encode(), dataset, own, memory_bytes=MEMORY)
    assert alone[1][1].update == by_itself.update


PROGRAM = """
import sys
from sparsyfed.devices import Dataset, LocalRound, train_locally
from sparsyfed.devices import client
work = LocalRound(1, 8, 1, 0.1, 0.0, 0.5, "global", 3)
dataset = Dataset(sys.argv[1])
result = train_locally(sys.argv[2], open(sys.argv[3], "rb").read(), dataset, work, memory_bytes=1 << 20)
assert result.update
print(sorted({name.split(".")[0] for name in sys.modules} & {"numpy", "scipy", "torch"}))
"""


def test_a_device_trains_without_numpy_scipy_and_torch(
    tmp_path: Path, artifact: Artifact, state: State, data_directory: Path
) -> None:
    artifact.save(tmp_path / "model.sfd")
    state.save(tmp_path / "state.sfs")
    command = [sys.executable, "-c", PROGRAM, str(data_directory)]
    command += [str(tmp_path / "model.sfd"), str(tmp_path / "state.sfs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
