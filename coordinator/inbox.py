"""What devices send, checked and turned into events; anything malformed is logged and dropped."""

import logging
from collections.abc import Callable

from sparsyfed.coordinator.config import Configuration
from sparsyfed.coordinator.events import (
    DeviceHello,
    DeviceOffline,
    Event,
    OfferAnswered,
    UpdateInspected,
    UpdateReported,
)
from sparsyfed.coordinator.mqtt import CONNECTED, BrokerLink, Received
from sparsyfed.coordinator.outbox import Outbox
from sparsyfed.coordinator.rounds import RoundMachine
from sparsyfed.coordinator.uploads import Uploads
from sparsyfed.edge_runtime import messages
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.messages import (
    MAX_MISSING,
    BlockRequest,
    Hello,
    OfferAnswer,
    Online,
    Report,
    parse_topic,
)
from sparsyfed.edge_runtime.transfer import UpdatePart

logger = logging.getLogger(__name__)

MAX_COMPLAINTS = 10  # lines about malformed messages ...
COMPLAINT_PERIOD_S = 10.0  # ... in so many seconds


class Inbox:
    """Reads the link. Requests for blocks and parts of updates are dealt with here; the rest becomes events."""

    def __init__(
        self,
        config: Configuration,
        link: BrokerLink,
        outbox: Outbox,
        clock: Callable[[], float],
    ) -> None:
        self._job = config.job.name
        self._link = link
        self._outbox = outbox
        self._complaints = Complaints(clock)
        self._reports: dict[str, Report] = {}
        self._unacknowledged: Received | None = None
        self._inspected: tuple[Report, bytes] | None = None
        self.bytes_received = 0

    def begin_round(self, uploads: Uploads, machine: RoundMachine) -> None:
        """Take the updates of another round from now on."""
        self._uploads = uploads
        self._machine = machine
        self._inspected = None

    def receive(self, timeout_s: float) -> list[Event]:
        """Events of the next message; none if it makes none or no message comes within `timeout_s` seconds.

        The message is acknowledged to the broker on the next call: its event has been dealt with by then.
        """
        if self._unacknowledged is not None:
            self._link.acknowledge(self._unacknowledged)
        received = self._unacknowledged = self._link.receive(timeout_s)
        if received is None:
            return []
        if received is CONNECTED:
            self._outbox.announce()
            return []
        self.bytes_received += len(received.payload)
        try:
            device, leaf = parse_topic(received.topic)
            event = self._event(device, leaf, received.payload)
        except FormatError as error:
            self._complaints.add(f"message dropped: {received.topic[:120]!r}: {error}")
            return []
        return [] if event is None else [event]

    def _event(self, device: str, leaf: str, payload: bytes) -> Event | None:
        match leaf:
            case messages.HELLO:
                return self._hello(device, Hello.from_json(payload))
            case messages.STATE:
                state = Online.from_json(payload)
                require_sender(device, state.device)
                return None if state.online else DeviceOffline(device, state.boot)
            case messages.ANSWER:
                answer = OfferAnswer.from_json(payload)
                if answer.job != self._job:
                    return None
                return OfferAnswered(
                    device, answer.round, answer.attempt, answer.accept, answer.reason
                )
            case messages.GET:
                self._outbox.send_blocks(device, BlockRequest.from_json(payload))
                return None
            case messages.UPDATE:
                part = UpdatePart.decode(payload)
                if self._machine.expects(device, part.round, part.attempt):
                    self._uploads.put(device, part)
                return None
            case messages.REPORT:
                return self._report(device, Report.from_json(payload))
        raise FormatError(f"topic: got {leaf[:120]!r}, wanted one that a coordinator listens to")

    def _hello(self, device: str, hello: Hello) -> Event:
        require_sender(device, hello.device)
        block_bytes = self._outbox.know_device(device, hello.block_bytes, hello.backend)
        return DeviceHello(device, hello.boot, hello.memory_bytes, block_bytes, hello.backend)

    def _report(self, device: str, report: Report) -> Event | None:
        if report.job != self._job:
            self._outbox.refuse_foreign(device, report)
            return None
        event = UpdateReported(device, report.round, report.attempt, report.sha256, report.examples)
        if self._machine.expects(device, report.round, report.attempt):
            self._reports[device] = report
        return event

    def inspect(self, reported: UpdateReported) -> UpdateInspected:
        """What is wrong or missing with a reported update; if nothing, `inspected` holds it."""
        report = self._reports[reported.device]
        missing = self._uploads.missing(reported.device, report)
        if missing:
            return UpdateInspected(reported, missing=missing)
        data = self._uploads.assemble(reported.device, report)
        if data is None:
            again = range(min(report.parts, MAX_MISSING))
            return UpdateInspected(reported, missing=tuple(again))
        self._inspected = report, data
        return UpdateInspected(reported, problem=self._uploads.problem(data))

    def inspected(self, reported: UpdateReported) -> tuple[Report, bytes]:
        """Report and bytes of the update that `inspect` has just found right."""
        assert self._inspected is not None
        report, data = self._inspected
        assert report.sha256 == reported.sha256
        return report, data


class Complaints:
    """Warnings about bad messages, a few lines in each period: their number is up to whoever sends them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._period_end = clock()
        self._lines = 0

    def add(self, line: str) -> None:
        """Log a line, or count it if the period has had its share."""
        now = self._clock()
        if now >= self._period_end:
            if self._lines > MAX_COMPLAINTS:
                logger.warning("%d more messages dropped", self._lines - MAX_COMPLAINTS)
            self._period_end, self._lines = now + COMPLAINT_PERIOD_S, 0
        self._lines += 1
        if self._lines <= MAX_COMPLAINTS:
            logger.warning("%s", line)


def require_sender(topic_device: str, message_device: str) -> None:
    """Raise FormatError if a message names another device than the topic that it came on."""
    if topic_device != message_device:
        raise FormatError(f"device: got {message_device!r} in a message of {topic_device}")
