import logging
import re
import sqlite3
import threading
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsyfed import coordinator
from sparsyfed.coordinator import Configuration, JobFailedError, RoundFinished, service
from sparsyfed.coordinator.mqtt import BrokerLink
from sparsyfed.coordinator.pruning import pruned
from sparsyfed.coordinator.store import Store
from sparsyfed.devices.client import run_device
from sparsyfed.devices.profiles import find_profile
from sparsyfed.devices.settings import DeviceSettings
from sparsyfed.edge_runtime import Artifact, BackendError, State, plan
from sparsyfed.edge_runtime.errors import StoppedError
from sparsyfed.edge_runtime.messages import Control, device_topic
from sparsyfed.tools.broker import PrivateBroker

ROUNDS = 2
EXAMPLES = {"a": 40, "b": 25}


def save_data(folder: Path, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, count)
    x = generator.normal(size=(count, 6)) + 2 * np.eye(6)[y]
    folder.mkdir(exist_ok=True)
    np.save(folder / "x.npy", x.astype(np.float32))
    np.save(folder / "y.npy", y)


def configuration(
    folder: Path,
    artifact: Artifact,
    state: State,
    port: int,
    *,
    dense_rounds: int = 0,
    **rounds: Any,
) -> Configuration:
    artifact.save(folder / "a.sfd")
    state.save(folder / "a.sfs")
    save_data(folder, 60, seed=9)
    data = {
        "job": {
            "name": "j", "rounds": ROUNDS, "artifact": "a.sfd", "state": "a.sfs", "sparsity": 0.7,
            "dense_rounds": dense_rounds,
        },
        "training": {"learning_rate": 0.1},
        "round": {"minimum_devices": 2, "deadline_s": 60} | rounds,
        "broker": {"port": port},
        "evaluation": {"x": "x.npy", "y": "y.npy"},
        "store": {"directory": "store"},
    }  # fmt: skip
    return Configuration.from_mapping(data, folder=folder)


def start_devices(
    folder: Path,
    broker: PrivateBroker,
    stop: threading.Event,
    memory_bytes: int = 2**20,
    names: Iterable[str] = EXAMPLES,
) -> list[threading.Thread]:
    threads = []
    for seed, device in enumerate(names):
        save_data(folder / device, EXAMPLES[device], seed)
        settings = DeviceSettings(
            device=device,
            host=broker.host,
            port=broker.port,
            data=folder / device,
            directory=folder / f"{device}-kept",
            profile=find_profile("linux_host", None),
            memory_bytes=memory_bytes,
            macs_per_second=None,
            exit_on_finish=True,
        )
        threads.append(threading.Thread(target=run_device, args=(settings, stop)))
        threads[-1].start()
    return threads


def wait_for_subscription(link: BrokerLink, topic: str) -> None:
    """Return once messages on this topic come back to the link that subscribes to it."""
    for _ in range(100):
        link.publish(topic, b"echo", 1)
        received = link.receive(0.2)
        while received is not None and received.payload != b"echo":
            received = link.receive(0.2)
        if received is not None:
            link.acknowledge(received)
            break
    while (received := link.receive(0.3)) is not None:
        link.acknowledge(received)


def test_a_job_from_its_first_offer_to_its_result(
    tmp_path: Path,
    broker: PrivateBroker,
    artifact: Artifact,
    dense_state: State,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = configuration(tmp_path, artifact, dense_state, broker.port)
    stop = threading.Event()
    devices = start_devices(tmp_path, broker, stop)
    finished: list[RoundFinished] = []
    caplog.set_level(logging.INFO)
    try:
        result = coordinator.run(config, finished.append)
        for device in devices:
            device.join(20.0)  # told to finish
            assert not device.is_alive()
    finally:
        stop.set()
    assert caplog.messages.count("job j: done") == 1
    assert tuple(finished) == result.rounds
    assert [entry.round for entry in finished] == [1, 2]
    assert finished[0].density_down == 1.0
    for entry in finished:
        assert (entry.devices, entry.examples, entry.attempts) == (2, 65, 1)
        assert entry.accuracy is not None
        assert entry.update_bytes < len(dense_state.encode())
        assert entry.bytes_up > 2 * entry.update_bytes * 0.9
    assert result.state.round == ROUNDS + 1
    assert result.state.density < 0.61  # each of two updates holds 30 %
    for trained, (name, count) in zip(result.devices, EXAMPLES.items(), strict=True):
        assert (trained.id, trained.rounds, trained.peak.round) == (name, ROUNDS, 1)
        assert trained.peak.examples == count
        assert trained.peak.arena_peak_bytes == trained.peak.planned_arena_bytes
        assert (trained.latest.planned_arena_bytes or 0) < (trained.peak.planned_arena_bytes or 0)
        assert trained.latest.multiply_adds is not None
        assert trained.latest.multiply_adds["forward"] > 0
    # A coordinator that died before its farewell says it when it is started again.
    with closing(sqlite3.connect(config.store.directory / "job.sqlite")) as journal, journal:
        journal.execute("UPDATE job SET done = 0")
    farewells = device_topic("a", "down/ctl")
    listener = BrokerLink(broker.host, broker.port, client_id="listener", subscription=farewells)
    with listener.opened(20.0):
        wait_for_subscription(listener, farewells)
        assert coordinator.run(config) == result
        farewell = listener.receive(20.0)
    assert farewell is not None
    assert Control.from_json(farewell.payload) == Control("finish", "j")
    # Done is done: without any device or broker.
    broker.stop()
    assert coordinator.run(config) == result


def test_after_the_dense_rounds_the_model_is_pruned_and_a_small_device_joins(
    tmp_path: Path,
    broker: PrivateBroker,
    artifact: Artifact,
    dense_state: State,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sparse = pruned(artifact, dense_state, 0.7, "global")
    needed = [
        plan(artifact, state, 16, memory="small").arena_bytes for state in (dense_state, sparse)
    ]
    config = configuration(
        tmp_path, artifact, dense_state, broker.port, dense_rounds=1, minimum_devices=1
    )
    stop = threading.Event()
    devices = start_devices(tmp_path, broker, stop, sum(needed) // 2, names="b")

    def start_the_other_when_it_is_refused() -> None:
        while not stop.is_set() and not any("b not admitted" in text for text in caplog.messages):
            stop.wait(0.01)
        devices.extend(start_devices(tmp_path, broker, stop, names="a"))

    starter = threading.Thread(target=start_the_other_when_it_is_refused)
    starter.start()
    try:
        result = coordinator.run(config)
    finally:
        stop.set()
        starter.join(20.0)
        for device in devices:
            device.join(20.0)
    first, second = result.rounds
    assert (first.density_down, second.density_down) == (1.0, 0.3)
    assert first.update_bytes > 1.5 * second.update_bytes
    assert (first.examples, second.examples) == (EXAMPLES["a"], sum(EXAMPLES.values()))
    assert result.state.nonzeros == 27


def test_devices_without_the_memory_end_the_job_with_a_clear_error(  # noqa: PLR0917 - fixtures
    tmp_path: Path,
    broker: PrivateBroker,
    artifact: Artifact,
    dense_state: State,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(service, "WAITING_PERIOD_S", 1.0)
    config = configuration(tmp_path, artifact, dense_state, broker.port, register_timeout_s=3.0)
    stop = threading.Event()
    devices = start_devices(tmp_path, broker, stop, memory_bytes=100)
    try:
        with pytest.raises(
            JobFailedError, match=r"got 0 devices that can train it \(2 online; 2 refused"
        ):
            coordinator.run(config)
        waiting = [text for text in caplog.messages if "of 2 devices admitted" in text]
        assert re.match(
            r"round 1: 0 of 2 .*2 refused, such as [ab]: .*, giving up in [0-3] s", waiting[-1]
        )
        told = [text for text in caplog.messages if "not admitted to round 1: training" in text]
        assert len(told) == 2  # by each device, once
    finally:
        stop.set()
        for device in devices:
            device.join(20.0)


def test_stop_ends_the_run_and_frees_the_store(
    tmp_path: Path, broker: PrivateBroker, artifact: Artifact, dense_state: State
) -> None:
    config = configuration(tmp_path, artifact, dense_state, broker.port)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(StoppedError):
        coordinator.run(config, stop=stop)
    with Store(config.store.directory) as store:
        assert store.progress().round == 1


def test_stop_ends_the_wait_for_a_broker(
    tmp_path: Path, artifact: Artifact, dense_state: State
) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(StoppedError):
        coordinator.run(configuration(tmp_path, artifact, dense_state, port=9), stop=stop)
    assert time.monotonic() - began < service.CONNECT_TIMEOUT_S / 2


def test_what_a_round_takes_is_journalled_while_it_runs(
    tmp_path: Path,
    broker: PrivateBroker,
    artifact: Artifact,
    dense_state: State,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "SPENT_PERIOD_S", 0.1)
    config = configuration(tmp_path, artifact, dense_state, broker.port)
    store_file = f"file:{config.store.directory / 'job.sqlite'}?mode=ro"
    spent: list[tuple[int, float]] = []

    def read_and_stop() -> None:
        try:
            for _ in range(200):
                time.sleep(0.1)
                with (
                    suppress(sqlite3.OperationalError),
                    closing(sqlite3.connect(store_file, uri=True)) as journal,
                ):
                    spent[:] = journal.execute("SELECT down, seconds FROM spent").fetchall()
                if spent and spent[0][0]:
                    return
        finally:
            stop.set()

    stop = threading.Event()
    reader = threading.Thread(target=read_and_stop)
    reader.start()
    with pytest.raises(StoppedError):
        coordinator.run(config, stop=stop)
    reader.join()
    ((down, seconds),) = spent  # as a loss of power would have left it
    assert down > 0
    assert seconds > 0.1


def test_no_broker_is_an_error_with_its_address(
    tmp_path: Path, artifact: Artifact, dense_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(BackendError, match=r"broker 127.0.0.1:9: no connection"):
        coordinator.run(configuration(tmp_path, artifact, dense_state, port=9))
