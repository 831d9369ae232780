"""A device over a real broker, against a coordinator played by the test."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from broker_coordinator import PATIENCE, Coordinator

from sparsyfed.devices.client import run_device
from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.profiles import find_profile
from sparsyfed.devices.settings import DeviceSettings
from sparsyfed.devices.storage import DeviceStorage
from sparsyfed.devices.training import LocalRound, train_locally
from sparsyfed.edge_runtime import messages, transfer
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.messages import (
    Control,
    Hello,
    Offer,
    OfferAnswer,
    Online,
    Receipt,
    Report,
    RoundNotice,
)
from sparsyfed.edge_runtime.state import State
from sparsyfed.edge_runtime.transfer import UpdatePart
from sparsyfed.tools.broker import PrivateBroker, find_mosquitto

BLOCK = 16 * 1024


@pytest.fixture(scope="module", autouse=True)
def _mosquitto() -> None:
    try:
        find_mosquitto()
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[PrivateBroker]:
    with PrivateBroker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def settings(broker: PrivateBroker, tmp_path: Path, data_directory: Path) -> DeviceSettings:
    return DeviceSettings(
        device="watch-1",
        host=broker.host,
        port=broker.port,
        data=data_directory,
        directory=tmp_path / "device",
        profile=find_profile("watch"),
        memory_bytes=1 << 20,
        exit_on_finish=True,
        reconnect_base_s=0.2,
    )


@pytest.fixture
def start(settings: DeviceSettings) -> Iterator[Callable[[], threading.Thread]]:
    """Starts the device in a thread; it is stopped at the end."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start() -> threading.Thread:
        thread = threading.Thread(target=run_device, args=(settings, stop))
        thread.start()
        threads.append(thread)
        return thread

    yield start
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def offer(artifact: Artifact, state: State) -> Offer:
    return Offer(
        job="job",
        round=1,
        attempt=0,
        artifact=transfer.object_reference(artifact.encode(), BLOCK),
        state=transfer.object_reference(state.encode(), BLOCK),
        batch_size=8,
        epochs=1,
        learning_rate=0.1,
        weight_decay=0.001,
        sparsity=0.5,
        budget="global",
        seed=7,
        deadline_s=60.0,
    )


@pytest.fixture
def coordinator(
    broker: PrivateBroker, artifact: Artifact, state: State, offer: Offer
) -> Iterator[Coordinator]:
    objects = {offer.artifact.id: artifact.encode(), offer.state.id: state.encode()}
    coordinator = Coordinator(broker, objects)
    yield coordinator
    coordinator.close()


def wanted_update(artifact: Artifact, state: State, data: Path | None, offer: Offer) -> bytes:
    assert data is not None
    work = LocalRound.of_offer(offer, "watch-1")
    return train_locally(artifact, state.encode(), Dataset(data), work, memory_bytes=1 << 20).update


def commit(report: Report) -> bytes:
    return Receipt(report.job, report.round, report.attempt, report.sha256, "commit").to_json()


def test_a_round_over_a_broker(  # noqa: PLR0917 - fixtures
    start: Callable[[], threading.Thread],
    coordinator: Coordinator,
    settings: DeviceSettings,
    artifact: Artifact,
    state: State,
    offer: Offer,
) -> None:
    thread = start()
    hello = Hello.from_json(coordinator.wait_for(messages.HELLO))
    assert (hello.device, hello.memory_bytes, hello.block_bytes) == ("watch-1", 1 << 20, BLOCK)
    coordinator.send(messages.OFFER, offer.to_json())
    part = UpdatePart.decode(coordinator.wait_for(messages.UPDATE))
    report = Report.from_json(coordinator.wait_for(messages.REPORT))
    assert part.data == wanted_update(artifact, state, settings.data, offer)
    assert report.sha256 == transfer.sha256_hex(part.data)
    assert (report.profile.arena_peak_bytes or 0) > 0
    assert (report.profile.base_rss_bytes or 0) > 2**20
    coordinator.send(messages.RECEIPT, commit(report))
    coordinator.send(messages.CONTROL, Control("finish", "job").to_json())
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not Online.from_json(coordinator.wait_for(messages.STATE)).online
    assert not (settings.directory / "update" / "report.json").exists()


def test_the_update_survives_a_broker_that_goes_away(
    start: Callable[[], threading.Thread],
    broker: PrivateBroker,
    coordinator: Coordinator,
    offer: Offer,
) -> None:
    start()
    coordinator.wait_for(messages.HELLO)
    coordinator.send(messages.OFFER, offer.to_json())
    first = Report.from_json(coordinator.wait_for(messages.REPORT))
    broker.restart()
    hello = Hello.from_json(coordinator.wait_for(messages.HELLO))
    assert hello.holding is not None
    assert hello.holding.sha256 == first.sha256
    assert Report.from_json(coordinator.wait_for(messages.REPORT)) == first
    coordinator.send(messages.RECEIPT, commit(first))
    coordinator.send(messages.CONTROL, Control("finish", "job").to_json())
    while Online.from_json(coordinator.wait_for(messages.STATE)).online:
        pass


def test_a_new_coordinator_boot_is_answered_with_hello(
    start: Callable[[], threading.Thread], coordinator: Coordinator
) -> None:
    coordinator.publish(messages.ROUND_TOPIC, RoundNotice("job", 1, "c1").to_json())
    start()
    for _ in range(2):  # one for the connection, one for the boot
        coordinator.wait_for(messages.HELLO)
    coordinator.publish(messages.ROUND_TOPIC, RoundNotice("job", 1, "c2").to_json())
    coordinator.wait_for(messages.HELLO)


def test_malformed_messages_are_dropped(
    start: Callable[[], threading.Thread],
    coordinator: Coordinator,
    offer: Offer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start()
    coordinator.wait_for(messages.HELLO)
    for leaf in (messages.OFFER, messages.RECEIPT, messages.CONTROL, "down/blk/00", "down/else"):
        coordinator.send(leaf, b"{")
    coordinator.send(messages.OFFER, offer.to_json())
    coordinator.wait_for(messages.REPORT)
    assert sum("message dropped" in record.message for record in caplog.records) == 5


def test_two_devices_cannot_share_a_directory(
    start: Callable[[], threading.Thread], coordinator: Coordinator, settings: DeviceSettings
) -> None:
    start()
    coordinator.wait_for(messages.HELLO)
    with pytest.raises(ConfigurationError, match="in use"):
        run_device(replace(settings, device="watch-2"))


def test_bad_data_ends_the_device_before_it_makes_or_sends_anything(
    settings: DeviceSettings,
    data_directory: Path,
) -> None:
    np.save(data_directory / "x.npy", np.full((37, 6), np.nan, np.float32))
    with pytest.raises(ConfigurationError, match=r"x.npy: got nan in example 0"):
        run_device(settings)
    assert not settings.directory.exists()


def test_two_devices_with_one_id_say_so_and_come_back_ever_less_often(
    settings: DeviceSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stop = threading.Event()
    pair = (settings, replace(settings, directory=tmp_path / "other"))
    threads = [threading.Thread(target=run_device, args=(one, stop), daemon=True) for one in pair]
    for thread in threads:
        thread.start()
    until = time.monotonic() + PATIENCE
    try:
        while not any("another device use" in text for text in caplog.messages):
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(2.0)
        links = sum(text.startswith("connected to") for text in caplog.messages)
        assert links < 30  # with pauses that do not grow: some ten a second
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def raise_labels(settings: DeviceSettings) -> None:
    """Make the device's labels those of a model with one class more."""
    assert settings.data is not None
    file = settings.data / "y.npy"
    np.save(file, np.load(file) + 1)


def test_a_device_for_one_job_ends_if_its_data_are_of_another_model(
    coordinator: Coordinator, settings: DeviceSettings, offer: Offer
) -> None:
    raise_labels(settings)

    def give_work() -> None:
        coordinator.wait_for(messages.HELLO)
        coordinator.send(messages.OFFER, offer.to_json())

    giver = threading.Thread(target=give_work)
    giver.start()
    with pytest.raises(ConfigurationError, match="got label 3, the model takes 0 to 2"):
        run_device(settings)
    giver.join()
    answers = [OfferAnswer.from_json(coordinator.wait_for(messages.ANSWER)) for _ in range(2)]
    assert [answer.accept for answer in answers] == [True, False]
    assert "got label 3" in answers[1].reason


def test_so_does_one_that_took_the_work_before_its_data_changed(
    settings: DeviceSettings, artifact: Artifact, offer: Offer
) -> None:
    with closing(DeviceStorage(settings.directory)) as storage:
        storage.save_work(offer)
    (settings.directory / "objects" / offer.artifact.id).write_bytes(artifact.encode())
    raise_labels(settings)
    with pytest.raises(ConfigurationError, match="got label 3, the model takes 0 to 2"):
        run_device(settings)


PROGRAM = """
import sys
from pathlib import Path
from typing import Any
from sparsyfed.devices import DeviceSettings, find_profile
from sparsyfed.devices.client import run_device
run_device(DeviceSettings(
    "watch-1", sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]),
    find_profile("watch"), 1 << 20, reconnect_base_s=0.2, will_delay_s=0,
))
print("ended")
"""


def start_process(settings: DeviceSettings) -> subprocess.Popen[str]:
    arguments = [settings.host, str(settings.port), str(settings.data), str(settings.directory)]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_sigterm_ends_a_device_with_a_farewell(
    coordinator: Coordinator, settings: DeviceSettings
) -> None:
    with start_process(settings) as process:
        assert Online.from_json(coordinator.wait_for(messages.STATE)).online
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "ended\n"
    assert not Online.from_json(coordinator.wait_for(messages.STATE)).online


def test_a_killed_device_goes_on_with_its_update(
    coordinator: Coordinator,
    settings: DeviceSettings,
    artifact: Artifact,
    state: State,
    offer: Offer,
) -> None:
    with start_process(settings) as process:
        coordinator.wait_for(messages.HELLO)
        coordinator.send(messages.OFFER, offer.to_json())
        first = Report.from_json(coordinator.wait_for(messages.REPORT))
        os.kill(process.pid, signal.SIGKILL)
    assert not Online.from_json(coordinator.wait_for(messages.STATE)).online
    served = coordinator.blocks_served
    with start_process(settings) as process:
        hello = Hello.from_json(coordinator.wait_for(messages.HELLO))
        assert hello.holding is not None
        again = Report.from_json(coordinator.wait_for(messages.REPORT))
        assert again == first
        every_part = tuple(range(first.parts))
        missing = Receipt("job", 1, 0, first.sha256, "missing", every_part)
        coordinator.send(messages.RECEIPT, missing.to_json())
        part = UpdatePart.decode(coordinator.wait_for(messages.UPDATE))
        assert part.data == wanted_update(artifact, state, settings.data, offer)
        assert coordinator.blocks_served == served
        process.terminate()
        assert process.wait(PATIENCE) == 0
