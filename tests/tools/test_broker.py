import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.tools import broker as broker_module
from sparsyfed.tools.broker import (
    FIRST_PORT,
    LAST_PORT,
    BrokerError,
    PrivateBroker,
    find_mosquitto,
    is_loopback,
)

TOPIC = "sparsyfed/v1/test"


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def client(name: str) -> mqtt.Client:
    return mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)


def receive_retained(broker: PrivateBroker) -> bytes:
    received: list[bytes] = []
    reader = client("reader")

    @reader.connect_callback()
    def subscribe(*_: object) -> None:
        reader.subscribe(TOPIC, qos=1)

    @reader.message_callback()
    def keep(_client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        received.append(bytes(message.payload))

    reader.connect(broker.host, broker.port)
    reader.loop_start()
    try:
        wait_for(lambda: received)
    finally:
        reader.disconnect()
        reader.loop_stop()
    return received[0]


def publish_retained(broker: PrivateBroker, payload: bytes) -> None:
    writer = client("writer")
    writer.connect(broker.host, broker.port)
    writer.loop_start()
    try:
        writer.publish(TOPIC, payload, qos=1, retain=True).wait_for_publish(10.0)
    finally:
        writer.disconnect()
        writer.loop_stop()


def test_it_listens_on_a_free_loopback_port_and_stops(tmp_path: Path) -> None:
    with PrivateBroker(tmp_path) as broker:
        assert FIRST_PORT <= broker.port < LAST_PORT
        assert broker.is_running
        assert accepts(broker.host, broker.port)
    assert not broker.is_running
    assert not accepts(broker.host, broker.port)


def test_two_brokers_run_side_by_side(tmp_path: Path) -> None:
    with PrivateBroker(tmp_path / "a") as first, PrivateBroker(tmp_path / "b") as second:
        publish_retained(first, b"first")
        publish_retained(second, b"second")
        assert receive_retained(first) == b"first"
        assert receive_retained(second) == b"second"


def test_a_restart_keeps_port_and_retained_messages(broker: PrivateBroker) -> None:
    publish_retained(broker, b"kept")
    port = broker.port
    broker.restart()
    assert broker.port == port
    assert receive_retained(broker) == b"kept"


def test_it_starts_again_after_a_kill(broker: PrivateBroker) -> None:
    broker.kill()
    assert not accepts(broker.host, broker.port)
    broker.start()
    assert accepts(broker.host, broker.port)


def test_packets_up_to_one_mebibyte_pass_and_larger_ones_end_the_connection(
    broker: PrivateBroker,
) -> None:
    lost: list[object] = []
    sender = client("sender")
    sender.on_disconnect = lambda *arguments: lost.append(arguments[3])
    sender.connect(broker.host, broker.port)
    sender.loop_start()
    try:
        sender.publish(TOPIC, bytes(1_048_000), qos=1).wait_for_publish(10.0)
        assert not lost
        sender.publish(TOPIC, bytes(1_048_577), qos=0)
        wait_for(lambda: lost)
    finally:
        sender.disconnect()
        sender.loop_stop()


def test_it_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from sparsyfed.tools.broker import PrivateBroker\n"
        "broker = PrivateBroker(sys.argv[1])\n"
        "broker.start()\n"
        "print(broker.port, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        port = int(owner.stdout.readline())
        assert accepts("127.0.0.1", port)
        owner.kill()
    wait_for(lambda: not accepts("127.0.0.1", port))


def test_run_broker_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    with PrivateBroker(tmp_path / "unused") as chosen:
        port = chosen.port
    program = (
        "import sys\n"
        "from sparsyfed.tools.broker import run_broker\n"
        "sys.exit(run_broker(port=int(sys.argv[1]), directory=sys.argv[2]))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(port), str(tmp_path / "kept")],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert str(port) in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not accepts("127.0.0.1", port)
    assert (tmp_path / "kept" / "mosquitto.db").exists()


def test_a_port_in_use_is_one_clear_error(tmp_path: Path, broker: PrivateBroker) -> None:
    second = PrivateBroker(tmp_path / "second", port=broker.port)
    with pytest.raises(ConfigurationError, match=f"port {broker.port} of 127.0.0.1 is in use"):
        second.start()
    assert accepts(broker.host, broker.port)


def test_starting_twice_is_refused(broker: PrivateBroker) -> None:
    with pytest.raises(BrokerError, match="runs already"):
        broker.start()
    assert broker.is_running


def test_a_broker_that_ends_at_once_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "configuration", lambda *_: "no_such_option true\n")
    with pytest.raises(BrokerError, match="no_such_option"):
        PrivateBroker(tmp_path).start()


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_an_impossible_port_is_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConfigurationError, match="between 1 and 65535"):
        PrivateBroker(tmp_path, port=port)


ALL_ADDRESSES = "0.0.0.0"  # noqa: S104 - the point of two tests


@pytest.mark.parametrize("host", [ALL_ADDRESSES, "::", "192.0.2.1"])
def test_an_address_that_others_reach_has_to_be_opened_knowingly(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigurationError, match="reached from other machines"):
        PrivateBroker(tmp_path, host)


def test_opened_to_the_network_it_listens_on_all_addresses(tmp_path: Path) -> None:
    with PrivateBroker(tmp_path, ALL_ADDRESSES, open_to_network=True) as broker:
        assert accepts("127.0.0.1", broker.port)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(host)


def test_a_host_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"broker\.example"):
        is_loopback("broker.example")


def fake_mosquitto(folder: Path, line: str) -> None:
    program = folder / "mosquitto"
    program.write_text(f"#!/bin/sh\necho '{line}'\nexit 3\n")
    program.chmod(0o755)


@pytest.fixture
def only_program_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + "/nowhere")
    monkeypatch.setattr(broker_module, "SYSTEM_FOLDERS", ())
    monkeypatch.setattr(broker_module, "find_mosquitto", find_mosquitto.__wrapped__)
    return tmp_path


def test_a_missing_mosquitto_says_what_to_install(only_program_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="apt-get install mosquitto"):
        PrivateBroker(only_program_folder / "broker").start()


def test_an_old_mosquitto_is_refused(only_program_folder: Path) -> None:
    fake_mosquitto(only_program_folder, "mosquitto version 1.6.15")
    with pytest.raises(ConfigurationError, match=r"1\.6\.15, wanted 2\.0\.11 or newer"):
        PrivateBroker(only_program_folder / "broker").start()


def test_another_program_of_that_name_is_refused(only_program_folder: Path) -> None:
    fake_mosquitto(only_program_folder, "a fly")
    with pytest.raises(ConfigurationError, match="does not name a version"):
        PrivateBroker(only_program_folder / "broker").start()
