"""Boards of a fleet: emulated, behind a gateway, switched off in mid-round, over a real broker."""

import logging
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from board_machines import require_tools
from model_strategies import ModelBuilder, random_state

from sparsyfed import coordinator
from sparsyfed.coordinator import Configuration, JobResult, RoundFinished
from sparsyfed.devices.client import run_device
from sparsyfed.devices.gateway import AttachedBoard, GatewaySettings, run_gateway
from sparsyfed.devices.profiles import find_profile
from sparsyfed.devices.settings import DeviceSettings
from sparsyfed.edge_runtime.artifact import Tensor
from sparsyfed.edge_runtime.format import OperationKind
from sparsyfed.tools.broker import PrivateBroker
from sparsyfed.tools.emulator import EmulatedBoard
from sparsyfed.tools.firmware import build_firmware

BOARDS = {"porch.1": "mps2-an386", "porch.2": "mps3-an547"}
EXAMPLES = {"porch.1": 70, "porch.2": 45}
FEATURES, CLASSES = 24, 4
ROUNDS = 3
PATIENCE_S = 60.0


def save_data(folder: Path, count: int, seed: int) -> None:
    """Points around one centre a class."""
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, count)
    x = random.normal(size=(count, FEATURES)) + 2 * np.eye(FEATURES)[y]
    folder.mkdir()
    np.save(folder / "x.npy", x.astype(np.float32))
    np.save(folder / "y.npy", y)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, its dense first state, and the data of all."""
    net = ModelBuilder(Tensor(FEATURES, 1, 1, 1))
    net.linear(net.activation(net.linear(0, 40), OperationKind.RELU), CLASSES)
    artifact = net.finish()
    artifact.save(tmp_path / "model.sfd")
    random_state(artifact, np.random.default_rng(0), 1.0).save(tmp_path / "model.sfs")
    for seed, (name, count) in enumerate(EXAMPLES.items()):
        save_data(tmp_path / name, count, seed)
    save_data(tmp_path / "held-out", 60, seed=9)
    return tmp_path


def run_job(folder: Path, broker: PrivateBroker, name: str, on_round: object = None) -> JobResult:
    """The coordinator's side of a job."""
    config = Configuration.from_mapping(
        {
            "job": {
                "name": name,
                "rounds": ROUNDS,
                "artifact": "model.sfd",
                "state": "model.sfs",
                "sparsity": 0.8,
            },
            "training": {"learning_rate": 0.1, "batch_size": 8},
            "round": {"minimum_devices": 2, "quorum": 1.0, "deadline_s": 2 * PATIENCE_S},
            "broker": {"port": broker.port},
            "evaluation": {"x": "held-out/x.npy", "y": "held-out/y.npy"},
            "store": {"directory": f"store-{name}"},
        },
        folder=folder,
    )
    return coordinator.run(config, on_round)  # type: ignore[arg-type]


def by_linux_devices(folder: Path, broker: PrivateBroker) -> JobResult:
    """The same job by devices of the same names that train here."""
    threads = []
    for name in BOARDS:
        settings = DeviceSettings(
            device=name,
            host=broker.host,
            port=broker.port,
            data=folder / name,
            directory=folder / f"linux-{name}",
            profile=find_profile("linux_host"),
            memory_bytes=1 << 20,
            exit_on_finish=True,
        )
        threads.append(threading.Thread(target=run_device, args=(settings,)))
        threads[-1].start()
    result = run_job(folder, broker, "linux")
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    return result


def test_boards_train_to_the_same_bytes_though_one_loses_its_power(
    folder: Path,
    broker: PrivateBroker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    require_tools(*BOARDS.values())
    monkeypatch.setenv("SPARSYFED_KERNELS", "portable")
    wanted = by_linux_devices(folder, broker)
    with ExitStack() as stack:
        machines = [
            stack.enter_context(EmulatedBoard(board, build_firmware(board)))
            for board in BOARDS.values()
        ]
        settings = GatewaySettings(
            gateway="porch",
            host=broker.host,
            port=broker.port,
            boards=[
                AttachedBoard(machine.port, folder / name)
                for machine, name in zip(machines, BOARDS, strict=True)
            ],
            directory=folder / "gateway",
            exit_on_finish=True,
            patience_s=PATIENCE_S,
        )
        gateway = threading.Thread(target=run_gateway, args=(settings,))
        gateway.start()

        def lose_power(finished: RoundFinished) -> None:
            if finished.round == 1:  # the offers of the next round are out
                machines[1].stop()
                machines[1].start()

        result = run_job(folder, broker, "boards", lose_power)
        gateway.join(PATIENCE_S)
        assert not gateway.is_alive()
    # What is said of a board is said in a thread of its name, which the command's log shows.
    accepted = {record.threadName for record in caplog.records if "accepted" in record.getMessage()}
    assert accepted >= set(BOARDS)
    assert result.state.encode() == wanted.state.encode()
    for device in result.devices:
        assert device.rounds == ROUNDS
        assert device.latest.arena_peak_bytes == device.latest.planned_arena_bytes
        # of the board, not of this process
        assert (device.latest.arena_peak_bytes or 0) < (device.latest.peak_rss_bytes or 0) < 1 << 17
