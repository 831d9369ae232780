import pytest

pytest.importorskip("paho.mqtt", reason="paho-mqtt is not installed")

from sparsyfed.coordinator.mqtt import CONNECTED, Received
from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.edge_runtime.messages import (
    REPORT,
    DeviceProfileReport,
    MultiplyAddsReport,
    Report,
    device_topic,
)
from sparsyfed.tools import reported_work
from sparsyfed.tools.reported_work import ReportedWork


class Link:
    """A link to a broker that has these messages for us. The demo's own test has a real one."""

    def __init__(self, *messages: Received) -> None:
        self.messages = [CONNECTED, *messages]
        self.acknowledged: list[Received] = []

    def receive(self, _timeout_s: float) -> Received | None:
        return self.messages.pop(0) if self.messages else None

    def acknowledge(self, received: Received) -> None:
        self.acknowledged.append(received)


def report(device: str, round_number: int, work: MultiplyAddsReport) -> Received:
    message = Report(
        job="watches",
        round=round_number,
        attempt=1,
        sha256="0" * 64,
        size=10,
        parts=1,
        examples=5,
        loss=0.5,
        seconds=0.1,
        profile=DeviceProfileReport(100, 100, None, work),
    )
    return Received(device_topic(device, REPORT), message.to_json(), qos=1, packet=1)


def test_the_work_of_a_round_is_that_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    of_b = report("b", 1, MultiplyAddsReport(10, 20, 30))
    link = Link(
        report("a", 1, MultiplyAddsReport(1, 2, 3)),
        of_b,
        of_b,
        report("a", 2, MultiplyAddsReport(7, 7, 7)),
        report("c", 1, MultiplyAddsReport(100, 200, 300)),
    )
    monkeypatch.setattr(reported_work, "BrokerLink", lambda *_, **__: link)
    work = ReportedWork("localhost", 1883)
    assert work.of_round(1, devices=3, seconds=10.0) == MultiplyAddsReport(111, 222, 333)
    assert work.of_round(2, devices=1, seconds=10.0) == MultiplyAddsReport(7, 7, 7)
    assert len(link.acknowledged) == 5
    with pytest.raises(BackendError, match="round 2: reports of 1 devices, wanted 2"):
        work.of_round(2, devices=2, seconds=0.01)
