"""The work of every round, from the reports that the devices send to their coordinator."""

import time
from types import TracebackType
from typing import Self

from sparsyfed.coordinator.mqtt import CONNECTED, BrokerLink
from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.edge_runtime.messages import (
    REPORT,
    TOPIC_PREFIX,
    MultiplyAddsReport,
    Report,
    parse_topic,
)

CONNECT_SECONDS = 10.0


class ReportedWork:
    """Listens on a private broker beside the coordinator.

    with ReportedWork(broker.host, broker.port) as work:
        ...  # a round of eight devices
        work.of_round(1, devices=8, seconds=10.0)
    """

    def __init__(self, host: str, port: int) -> None:
        self._link = BrokerLink(
            host,
            port,
            client_id="sparsyfed-reported-work",
            subscription=f"{TOPIC_PREFIX}/d/+/{REPORT}",
        )
        self._counts: dict[int, dict[str, MultiplyAddsReport]] = {}

    def __enter__(self) -> Self:
        self._link.open(CONNECT_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._link.forget_session()
        self._link.close()

    def of_round(self, number: int, devices: int, seconds: float) -> MultiplyAddsReport:
        """Multiply-adds of all devices in a round, by kind; a repeated report counts once.

        Raises BackendError if fewer than `devices` have reported after so many seconds.
        """
        until = time.monotonic() + seconds
        counts = self._counts.setdefault(number, {})
        while len(counts) < devices:
            left = until - time.monotonic()
            if left <= 0:
                raise BackendError(
                    f"round {number}: reports of {len(counts)} devices, wanted {devices}"
                )
            self._receive(left)
        return MultiplyAddsReport(
            forward=sum(count.forward for count in counts.values()),
            d_input=sum(count.d_input for count in counts.values()),
            d_weight=sum(count.d_weight for count in counts.values()),
        )

    def _receive(self, seconds: float) -> None:
        received = self._link.receive(seconds)
        if received is None or received is CONNECTED:
            return
        device, _ = parse_topic(received.topic)
        report = Report.from_json(received.payload)
        self._counts.setdefault(report.round, {})[device] = report.profile.multiply_adds
        self._link.acknowledge(received)
