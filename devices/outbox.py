"""The finished update of a device: kept and sent until the coordinator answers."""

import logging
from collections import deque
from random import Random

from sparsyfed.devices.pull import full_jitter
from sparsyfed.devices.settings import AgentSettings
from sparsyfed.devices.storage import DeviceStorage, HeldReport
from sparsyfed.devices.training import LocalResult
from sparsyfed.edge_runtime import messages
from sparsyfed.edge_runtime.messages import Offer, Receipt, Report
from sparsyfed.edge_runtime.transfer import UpdatePart, part_count, sha256_hex, update_tag

logger = logging.getLogger(__name__)

Message = tuple[str, bytes]  # leaf of the topic, payload


class Outbox:
    """At most one update. Takes up what an earlier run left in `storage`.

    An earlier run may have sent any of its parts: the report asks, and the receipt tells which are
    missing.
    """

    def __init__(self, settings: AgentSettings, storage: DeviceStorage, random: Random) -> None:
        self._settings = settings
        self._storage = storage
        self._random = random
        self._held = storage.held
        self._unsent: deque[int] = deque()
        self._reports = 0
        self.report_at: float | None = None
        """When the report is due again; None while nothing waits for an answer."""

    @property
    def report(self) -> Report | None:
        """Report of the update that waits for its receipt, or None."""
        return self._held.report if self._held else None

    @property
    def has_unsent(self) -> bool:
        """Whether parts wait to be sent."""
        return bool(self._unsent)

    def hold(self, offer: Offer, result: LocalResult) -> None:
        """Put the update of this offer on disk and all its parts in line.

        Raises OSError if the disk does not take it, FormatError if it has too many parts.
        """
        size = len(result.update)
        report = Report(
            job=offer.job,
            round=offer.round,
            attempt=offer.attempt,
            sha256=sha256_hex(result.update),
            size=size,
            parts=part_count(size, self._settings.block_bytes),
            examples=result.examples,
            loss=result.loss,
            seconds=result.seconds,
            profile=result.profile,
        )
        held = HeldReport(report, self._settings.block_bytes)
        self._storage.hold(result.update, held)
        self._held = held
        self._unsent = deque(range(report.parts))
        self._reports = 0

    def drop(self) -> None:
        """Forget the update, here and on disk."""
        self._held = None
        self._unsent.clear()
        self.report_at = None
        self._storage.drop_held()

    def receive(self, receipt: Receipt) -> None:
        """Take an answer: put missing parts in line, or let the update go.

        Answers to other updates change nothing.
        """
        report = self.report
        if report is None or work_key(receipt) != work_key(report):
            return
        if receipt.sha256 != report.sha256:
            return
        if receipt.status == "missing":
            missing = {part for part in receipt.missing if part < report.parts}
            self._unsent = deque(sorted(missing | set(self._unsent)))
            self._reports = 0
            return
        title = work_title(report)
        if receipt.status == "commit":
            logger.info("%s: update committed", title)
        else:
            logger.warning("%s: update %s: %s", title, receipt.status, receipt.reason)
        self.drop()

    def ask_again(self, now: float) -> list[Message]:
        """The report at once; nothing while parts wait, whose report follows them."""
        self._reports = 0
        return [] if self._held is None or self._unsent else [self._next_report(now)]

    def due(self, room: int, now: float) -> list[Message]:
        """Up to `room` parts, the report after the last of them, or a report that had no answer."""
        if self._held is None:
            return []
        if not self._unsent:
            late = self.report_at is not None and self.report_at <= now
            return [self._next_report(now)] if late else []
        report, part_bytes = self._held.report, self._held.part_bytes
        parts: list[Message] = []
        while self._unsent and len(parts) < room:
            number = self._unsent.popleft()
            part = UpdatePart(
                round=report.round,
                attempt=report.attempt,
                part=number,
                parts=report.parts,
                tag=update_tag(report.sha256),
                data=self._storage.held_slice(number * part_bytes, part_bytes),
            )
            parts.append((messages.UPDATE, part.encode()))
        return parts if self._unsent else [*parts, self._next_report(now)]

    def _next_report(self, now: float) -> Message:
        assert self._held is not None
        patience = self._settings.answer_timeout_s
        limit = self._settings.answer_limit_s
        self.report_at = now + patience + full_jitter(self._random, self._reports, patience, limit)
        self._reports += 1
        return messages.REPORT, self._held.report.to_json()


def work_key(message: Offer | Report | Receipt) -> tuple[str, int, int]:
    """Job, round and attempt: two messages with the same key speak of the same work."""
    return message.job, message.round, message.attempt


def work_title(message: Offer | Report) -> str:
    """The work that a message speaks of, for the log."""
    return f"round {message.round}, attempt {message.attempt}"
