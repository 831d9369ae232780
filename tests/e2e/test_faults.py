"""Real processes, a real broker, real faults: the coordinator, a device and the broker are killed in mid-round."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsyfed.edge_runtime import State
from sparsyfed.tools.broker import PrivateBroker

pytest.importorskip("torch")

FEATURES, CLASSES = 64, 5
EXAMPLES = {"quick-1": 200, "quick-2": 330, "slow": 16_000}
ROUNDS = 3
PATIENCE_S = 60.0

Result = tuple[list[dict[str, Any]], bytes]  # figures of the rounds, final state

CONFIG = """
[job]
name = "faults"
rounds = {rounds}
seed = 11
artifact = "model.sfd"
state = "model.sfs"
sparsity = 0.9

[training]
learning_rate = 0.05

[round]
minimum_devices = 3
quorum = 0.6
deadline_s = {deadline_s}
offer_timeout_s = 4
retry_delay_s = 0.2

[broker]
port = {port}

[evaluation]
x = "x.npy"
y = "y.npy"

[store]
directory = "store"
"""


def task(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Points around fixed centres, one centre a class."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, FEATURES))
    generator = np.random.default_rng(seed)
    y = generator.integers(0, CLASSES, count).astype(np.int32)
    x = centres[y] + 2.0 * generator.normal(size=(count, FEATURES))
    return x.astype(np.float32), y


def save_task(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    x, y = task(count, seed)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with model.sfd and model.sfs, compiled from PyTorch."""
    import torch
    from torch import nn

    from sparsyfed import export

    torch.set_num_threads(1)
    net = nn.Sequential(
        nn.Linear(FEATURES, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, CLASSES)
    )
    folder = tmp_path_factory.mktemp("model")
    export.compile(net, torch.zeros(2, FEATURES)).save(folder / "model.sfd")
    export.initial_state(net, seed=4).save(folder / "model.sfs")
    return folder


class Fleet:
    """A coordinator and three devices, each a process of its own."""

    def __init__(self, folder: Path, model: Path, port: int, deadline_s: float = 120.0) -> None:
        self.folder = folder
        self.port = port
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        save_task(folder, 500, seed=99)
        for name in ("model.sfd", "model.sfs"):
            (folder / name).write_bytes((model / name).read_bytes())
        text = CONFIG.format(rounds=ROUNDS, port=port, deadline_s=deadline_s)
        (folder / "job.toml").write_text(text)
        for seed, (device, count) in enumerate(EXAMPLES.items()):
            save_task(folder / device, count, seed)

    def _start(self, name: str, *arguments: str | Path) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        command = [sys.executable, "-m", "sparsyfed.tools", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with log, (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command, stdout=out, stderr=log, env=environment
            )

    def start_coordinator(self) -> None:
        job, final = self.folder / "job.toml", self.folder / "final.sfs"
        self._start("coordinator", "coordinator", "run", job, "--json", "--state-out", final)

    def start_device(self, device: str) -> None:
        data, directory = self.folder / device, self.folder / f"{device}-kept"
        self._start(
            device, "device", "run", "--id", device, "--broker", f"127.0.0.1:{self.port}",
            "--data", data, "--directory", directory, "--exit-on-finish",
        )  # fmt: skip

    def start(self) -> None:
        self.start_coordinator()
        for device in EXAMPLES:
            self.start_device(device)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a process and return its exit status."""
        process = self.processes[name]
        process.send_signal(number)
        return process.wait(PATIENCE_S)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def query(self, text: str, *values: object) -> list[tuple[Any, ...]]:
        path = self.folder / "store" / "job.sqlite"
        if not path.exists():
            return []
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as journal:
                return journal.execute(text, values).fetchall()
        except sqlite3.OperationalError:  # the coordinator is about to make the tables
            return []

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.processes["coordinator"].poll() is None, self.log("coordinator")
            assert time.monotonic() < end, f"{what}: not in time\n{self.log('coordinator')}"
            time.sleep(0.01)

    def wait_for_updates(self, count: int, round_number: int) -> None:
        """Return while `count` updates of the round count and it is still open."""
        counted = "SELECT count(*) FROM committed WHERE round = ?"
        self.wait_until(lambda: self.query(counted, round_number) == [(count,)], f"{count} updates")
        assert self.query("SELECT max(round) FROM state") == [(round_number,)]

    def finish(self) -> Result:
        """Rounds that the journal holds and the final state, once the coordinator has ended well."""
        assert self.processes["coordinator"].wait(PATIENCE_S) == 0, self.log("coordinator")
        rounds = [
            json.loads(text) for (text,) in self.query("SELECT content FROM metric ORDER BY 1")
        ]
        return sorted(rounds, key=lambda entry: entry["round"]), (
            self.folder / "final.sfs"
        ).read_bytes()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-4000:]


NewFleet = Callable[..., Fleet]


@pytest.fixture
def new_fleet(tmp_path: Path, model: Path, broker: PrivateBroker) -> Iterator[NewFleet]:
    fleets = []

    def make(deadline_s: float = 120.0) -> Fleet:
        fleet = Fleet(tmp_path / "fleet", model, broker.port, deadline_s)
        fleets.append(fleet)
        return fleet

    yield make
    for fleet in fleets:
        fleet.stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Result:
    """Rounds and final state of the same job without any fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with PrivateBroker(folder / "broker") as broker:
        fleet = Fleet(folder, model, broker.port)
        try:
            fleet.start()
            result = fleet.finish()
            for device in EXAMPLES:
                assert fleet.processes[device].wait(PATIENCE_S) == 0, fleet.log(device)
        finally:
            fleet.stop()
    return result


def test_undisturbed_run(undisturbed: Result) -> None:
    rounds, final = undisturbed
    assert [entry["round"] for entry in rounds] == list(range(1, ROUNDS + 1))
    assert rounds[0]["density_down"] == 1.0
    assert all(entry["devices"] == 3 for entry in rounds)
    assert all(entry["examples"] == sum(EXAMPLES.values()) for entry in rounds)
    # Each device pulls each state, and sends each update, at least once.
    dense = 4 * FEATURES * 128
    assert rounds[0]["bytes_down"] > 3 * dense
    assert rounds[0]["bytes_up"] >= 3 * rounds[0]["update_bytes"] * 0.9
    assert rounds[-1]["accuracy"] > 0.8
    state = State.decode(final)
    assert state.round == ROUNDS + 1
    assert state.density < 0.3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_coordinator_killed_in_mid_round_gives_the_same_model(
    new_fleet: NewFleet, undisturbed: Result, number: signal.Signals
) -> None:
    fleet = new_fleet()
    fleet.start()
    fleet.wait_for_updates(2, round_number=1)
    status = fleet.kill("coordinator", number)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    counted = fleet.query("SELECT device, sha256 FROM committed ORDER BY device")
    assert [device for device, _ in counted] == ["quick-1", "quick-2"]
    fleet.start_coordinator()
    rounds, final = fleet.finish()

    expected_rounds, expected = undisturbed
    assert final == expected
    # The same updates counted, each once, and all in the first attempt.
    assert [entry["examples"] for entry in rounds] == [e["examples"] for e in expected_rounds]
    assert [entry["accuracy"] for entry in rounds] == [e["accuracy"] for e in expected_rounds]
    assert all(entry["attempts"] == 1 for entry in rounds)
    # What the round took before the restart is in its figures.
    assert rounds[0]["bytes_up"] >= 3 * rounds[0]["update_bytes"] * 0.9
    after = fleet.query("SELECT device, sha256 FROM committed WHERE round = 1 ORDER BY device")
    assert after[:2] == counted


def test_killed_device_is_done_without(new_fleet: NewFleet) -> None:
    fleet = new_fleet(deadline_s=6.0)
    fleet.start()
    fleet.wait_for_updates(2, round_number=1)
    fleet.kill("slow")
    rounds, _ = fleet.finish()
    assert [entry["devices"] for entry in rounds] == [2] * ROUNDS
    assert rounds[0]["examples"] == EXAMPLES["quick-1"] + EXAMPLES["quick-2"]
    assert rounds[0]["attempts"] == 1


def test_device_killed_and_started_again_still_counts(
    new_fleet: NewFleet, undisturbed: Result
) -> None:
    fleet = new_fleet()
    fleet.start()
    fleet.wait_for_updates(2, round_number=1)
    fleet.kill("slow")
    fleet.start_device("slow")
    _, final = fleet.finish()
    assert final == undisturbed[1]


def test_run_completes_after_the_broker_was_killed(
    new_fleet: NewFleet, broker: PrivateBroker, undisturbed: Result
) -> None:
    fleet = new_fleet()
    fleet.start()
    fleet.wait_for_updates(2, round_number=1)
    broker.kill()
    broker.start()
    rounds, final = fleet.finish()
    assert [entry["devices"] for entry in rounds] == [3] * ROUNDS
    assert final == undisturbed[1]
