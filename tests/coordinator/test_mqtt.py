import time
from collections.abc import Callable, Iterator

import pytest

from sparsyfed.coordinator.mqtt import CONNECTED, BrokerLink, Received
from sparsyfed.edge_runtime import BackendError
from sparsyfed.tools.broker import PrivateBroker

PATIENCE_S = 20.0

OpenLink = Callable[[str, str], BrokerLink]


@pytest.fixture
def open_link(broker: PrivateBroker) -> Iterator[OpenLink]:
    links = []

    def make(name: str, subscription: str) -> BrokerLink:
        link = BrokerLink(broker.host, broker.port, client_id=name, subscription=subscription)
        links.append(link)
        link.open(PATIENCE_S)
        assert link.receive(PATIENCE_S) is CONNECTED
        return link

    yield make
    for link in links:
        link.close()


def next_message(link: BrokerLink) -> Received:
    received = link.receive(PATIENCE_S)
    while received is CONNECTED:
        received = link.receive(PATIENCE_S)
    assert received is not None, "no message came"
    return received


def subscribe_settles(link: BrokerLink, topic: str) -> None:
    """Return once a message of one's own comes back: the subscription stands."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        link.publish(topic, b"echo", 1)
        received = link.receive(0.2)
        if received is not None and received is not CONNECTED:
            link.acknowledge(received)
            while (more := link.receive(0.2)) is not None:
                link.acknowledge(more)
            return
    raise AssertionError("the subscription does not stand")


def test_messages_that_come_while_away_or_were_not_acknowledged_are_delivered(
    broker: PrivateBroker, open_link: OpenLink
) -> None:
    first = BrokerLink(broker.host, broker.port, client_id="one", subscription="up/#")
    first.open(PATIENCE_S)
    subscribe_settles(first, "up/echo")
    sender = open_link("two", "none")
    sender.publish("up/a", b"seen, not dealt with", 1)
    assert next_message(first).payload == b"seen, not dealt with"
    first.close()
    sender.publish("up/b", b"sent meanwhile", 1)
    sender.flush(PATIENCE_S)

    again = open_link("one", "up/#")
    payloads = []
    for _ in range(2):
        received = next_message(again)
        again.acknowledge(received)
        payloads.append(received.payload)
    assert payloads == [b"seen, not dealt with", b"sent meanwhile"]
    assert again.receive(0.3) is None


def test_link_comes_back_after_the_broker_was_killed(
    broker: PrivateBroker, open_link: OpenLink
) -> None:
    link = open_link("one", "up/#")
    broker.kill()
    broker.start()
    assert link.receive(PATIENCE_S) is CONNECTED
    subscribe_settles(link, "up/echo")


def test_an_absent_broker_is_named() -> None:
    link = BrokerLink("127.0.0.1", 9, client_id="one", subscription="up/#")
    with pytest.raises(BackendError, match=r"broker 127.0.0.1:9: no connection after 0.3 s"):
        link.open(0.3)
