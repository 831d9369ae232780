import json
import logging
from collections import deque
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsyfed.coordinator.bundle import EngineExport
from sparsyfed.coordinator.config import Configuration
from sparsyfed.coordinator.events import (
    DeviceHello,
    DeviceOffline,
    OfferAnswered,
    SendControl,
    SendOffer,
)
from sparsyfed.coordinator.inbox import COMPLAINT_PERIOD_S, MAX_COMPLAINTS, Complaints, Inbox
from sparsyfed.coordinator.mqtt import CONNECTED, BrokerLink, Received
from sparsyfed.coordinator.outbox import Outbox
from sparsyfed.edge_runtime import FormatError, messages
from sparsyfed.edge_runtime.messages import Control, Hello, Offer, OfferAnswer, Online, device_topic
from sparsyfed.edge_runtime.transfer import hash_list


class MemoryLink(BrokerLink):
    """A link without a broker: what arrives is put in by the test, what is sent is kept."""

    def __init__(self) -> None:
        self.arriving: deque[Received] = deque()
        self.sent: list[tuple[str, bytes]] = []
        self.acknowledged: list[Received] = []

    def receive(self, timeout_s: float) -> Received | None:  # noqa: ARG002
        return self.arriving.popleft() if self.arriving else None

    def acknowledge(self, received: Received) -> None:
        self.acknowledged.append(received)

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int,  # noqa: ARG002
        *,
        retain: bool = False,  # noqa: ARG002
    ) -> bool:
        self.sent.append((topic, payload))
        return True


@pytest.fixture
def config(tmp_path: Path) -> Configuration:
    data = {
        "job": {"name": "j", "rounds": 2, "model": "mlp", "seed": 5},
        "training": {"learning_rate": 0.1},
        "transfer": {"block_bytes": 4096},
        "store": {"directory": str(tmp_path)},
    }
    return Configuration.from_mapping(data)


@pytest.fixture
def link() -> MemoryLink:
    return MemoryLink()


@pytest.fixture
def outbox(config: Configuration, link: MemoryLink) -> Outbox:
    outbox = Outbox(config, link, b"artifact", {}, "boot-1")
    outbox.begin_round(1, b"state" * 1000)
    return outbox


@pytest.fixture
def inbox(config: Configuration, link: MemoryLink, outbox: Outbox) -> Inbox:
    return Inbox(config, link, outbox, lambda: 0.0)


def hello(device: str = "a") -> bytes:
    return Hello(device, "b", "1.0", "watch", 1000, None, 10, 1024).to_json()


def arrive(link: MemoryLink, leaf: str, payload: bytes, device: str = "a") -> None:
    link.arriving.append(Received(device_topic(device, leaf), payload, 1, 1))


def test_messages_become_events_and_are_acknowledged_after_they_were_dealt_with(
    link: MemoryLink, inbox: Inbox
) -> None:
    arrive(link, messages.HELLO, hello())
    arrive(link, messages.ANSWER, OfferAnswer("j", 1, 1, accept=True).to_json())
    arrive(link, messages.ANSWER, OfferAnswer("another", 1, 1, accept=True).to_json())
    arrive(link, messages.STATE, Online("a", "b", online=False).to_json())
    first = link.arriving[0]
    assert inbox.receive(0) == [DeviceHello("a", "b", 1000, 1024)]
    assert link.acknowledged == []
    assert inbox.receive(0) == [OfferAnswered("a", 1, 1, accept=True)]
    assert link.acknowledged == [first]
    assert inbox.receive(0) == []
    assert inbox.receive(0) == [DeviceOffline("a", "b")]
    assert inbox.receive(0) == []
    assert inbox.bytes_received == sum(len(received.payload) for received in link.acknowledged)


def test_an_offer_holds_the_work_and_blocks_of_the_devices_size(
    link: MemoryLink, inbox: Inbox, outbox: Outbox
) -> None:
    arrive(link, messages.HELLO, hello())
    inbox.receive(0)
    outbox.send(SendOffer("a", 1, 1, 30.0))
    topic, payload = link.sent[-1]
    offer = Offer.from_json(payload)
    assert topic == "sparsyfed/v1/d/a/down/offer"
    assert (offer.job, offer.round, offer.attempt, offer.seed) == ("j", 1, 1, 5)
    assert (offer.state.size, offer.state.block_bytes) == (5000, 1024)
    assert (offer.sparsity, offer.budget, offer.deadline_s) == (0.95, "global", 30.0)
    request = messages.BlockRequest(offer.state.id, 1024, (0, 4))
    before = outbox.bytes_sent
    arrive(link, messages.GET, request.to_json())
    assert inbox.receive(0) == []
    assert [topic for topic, _ in link.sent[-2:]] == [messages.block_topic("a", offer.state.id)] * 2
    assert outbox.bytes_sent - before == (4 + 1024) + (4 + 5000 - 4 * 1024)


def test_what_stays_the_same_is_prepared_once_for_all_rounds(
    config: Configuration, link: MemoryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[bytes] = []

    def counted(data: bytes, block_bytes: int) -> bytes:
        hashed.append(data)
        return hash_list(data, block_bytes)

    monkeypatch.setattr("sparsyfed.coordinator.objects.hash_list", counted)
    files = {"train.onnx": b"train" * 1000}
    export = EngineExport("onnxruntime", files, None, memory_bytes=1, batch_size=1)
    outbox = Outbox(config, link, b"artifact", {"onnxruntime": export}, "boot-1")
    outbox.know_device("a", 1024, "onnxruntime")
    for number, state in ((1, b"one"), (2, b"two")):
        outbox.begin_round(number, state)
        outbox.send(SendOffer("a", number, 1, 30.0))
    assert sorted(hashed) == [b"artifact", b"one", files["train.onnx"], b"two"]
    first, second = (Offer.from_json(payload) for _, payload in link.sent)
    assert first.export == second.export
    assert first.state != second.state
    for reference in second.objects:
        outbox.send_blocks("a", messages.BlockRequest(reference.id, 1024, (0,)))
    with pytest.raises(FormatError, match="what was offered"):
        outbox.send_blocks("a", messages.BlockRequest(first.state.id, 1024, (0,)))


def test_an_abort_names_the_work_that_it_is_about(link: MemoryLink, outbox: Outbox) -> None:
    outbox.send(SendControl("a", "abort", 3, 2, "the round\nhas its updates"))
    topic, payload = link.sent[-1]
    assert topic == "sparsyfed/v1/d/a/down/ctl"
    assert Control.from_json(payload) == Control("abort", "j", 3, 2, "the round has its updates")


def test_the_round_is_announced_whenever_the_link_stands(link: MemoryLink, inbox: Inbox) -> None:
    link.arriving.append(CONNECTED)
    assert inbox.receive(0) == []
    topic, payload = link.sent[-1]
    assert topic == messages.ROUND_TOPIC
    assert json.loads(payload) == {"job": "j", "round": 1, "boot": "boot-1"}


def test_a_report_for_another_job_is_answered_with_late(link: MemoryLink, inbox: Inbox) -> None:
    report = {
        "job": "another", "round": 3, "attempt": 1, "sha256": "ab" * 32, "size": 10, "parts": 1,
        "examples": 3, "loss": 0.1, "seconds": 1.0,
        "profile": {
            "planned_arena_bytes": 1, "arena_peak_bytes": 1, "peak_rss_bytes": None,
            "multiply_adds": {"forward": 1, "d_input": 1, "d_weight": 1},
        },
    }  # fmt: skip
    arrive(link, messages.REPORT, json.dumps(report).encode())
    assert inbox.receive(0) == []
    receipt = json.loads(link.sent[-1][1])
    assert (receipt["job"], receipt["status"]) == ("another", "late")


@pytest.mark.parametrize(
    ("leaf", "payload"),
    [
        (messages.HELLO, b"{"),
        (messages.HELLO, hello("b")),  # in the name of another device
        (messages.STATE, Online("b", "b", online=False).to_json()),
        (messages.GET, b'{"object": "x", "block_bytes": 1, "blocks": []}'),
        (messages.GET, messages.BlockRequest("ab" * 32, 1024, (0,)).to_json()),  # not offered
        (messages.UPDATE, b"SFDP"),
        (messages.REPORT, b"[]"),
        ("up/else", b""),
    ],
)
def test_what_is_malformed_is_logged_and_dropped(
    link: MemoryLink, inbox: Inbox, caplog: pytest.LogCaptureFixture, leaf: str, payload: bytes
) -> None:
    arrive(link, leaf, payload)
    with caplog.at_level(logging.WARNING):
        assert inbox.receive(0) == []
    (record,) = caplog.records
    assert record.message.startswith("message dropped: ")


@given(
    leaf=st.sampled_from([messages.HELLO, messages.STATE, messages.ANSWER, messages.GET,
                          messages.UPDATE, messages.REPORT, "up/x", ""]),
    payload=st.binary(max_size=200) | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.dictionaries(st.sampled_from(["device", "boot", "job"]), inner),
    ).map(lambda content: json.dumps(content).encode()),
)  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_payload_makes_an_event_or_an_exception(
    link: MemoryLink, inbox: Inbox, leaf: str, payload: bytes
) -> None:
    link.arriving.append(Received(f"sparsyfed/v1/d/a/{leaf}", payload))
    assert inbox.receive(0) == []


def test_complaints_are_few_however_many_messages_are_bad(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    complaints = Complaints(lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            complaints.add("bad")
        assert len(caplog.records) == MAX_COMPLAINTS
        now[0] = COMPLAINT_PERIOD_S
        complaints.add("bad again")
    assert [record.message for record in caplog.records[-2:]] == [
        "990 more messages dropped",
        "bad again",
    ]
