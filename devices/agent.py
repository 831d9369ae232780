"""The core of a device: what to do on each event, without a network, a thread or a clock.

`Agent.handle(event, now)` returns the actions to take; files are read and written through
`DeviceStorage`. A device has at most one piece of work: it pulls the artifact and the state of an
offer, trains, sends the parts of its update and a report, and keeps the update until the
coordinator answers. Each step survives a restart of either side.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from random import Random

from sparsyfed.devices import events
from sparsyfed.devices.events import Action, Event, Publish
from sparsyfed.devices.outbox import Outbox, work_key, work_title
from sparsyfed.devices.pull import Pull
from sparsyfed.devices.refusal import refusal_of_offer, refusal_of_plan
from sparsyfed.devices.settings import AgentSettings
from sparsyfed.devices.storage import DeviceStorage
from sparsyfed.devices.training import LocalResult
from sparsyfed.edge_runtime import messages
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.messages import (
    BlockRequest,
    Control,
    HeldUpdate,
    Hello,
    ObjectReference,
    Offer,
    OfferAnswer,
    Online,
    Report,
    RoundNotice,
    device_topic,
)

logger = logging.getLogger(__name__)

SAID_HELLO = "said hello as"
"""How the log line of a hello begins."""


class Phase(Enum):
    """Where the work in hand stands."""

    PULLING = "pulling"
    TRAINING = "training"


@dataclass(slots=True)
class Work:
    """The offer that the device has taken, until its update is on disk."""

    offer: Offer
    deadline: float
    phase: Phase = Phase.PULLING


class Agent:
    """One device. Takes up what an earlier run left in `storage`.

    `refuse(artifact, state, batch_size, memory_bytes)` says why work does not fit, `refuse_data(artifact)` why the
    device's data are not what the model takes; or None.
    """

    def __init__(
        self,
        settings: AgentSettings,
        storage: DeviceStorage,
        random: Random,
        *,
        now: float,
        refuse: Callable[[Path, Path, int, int], str | None] = refusal_of_plan,
        refuse_data: Callable[[Path], str | None] = lambda _: None,
    ) -> None:
        self.settings = settings
        self._storage = storage
        self._random = random
        self._refuse = refuse
        self._refuse_data = refuse_data
        self._connected = False
        self._coordinator_boot: str | None = None
        self._hello_at: float | None = None
        self._idle_hello_at = now
        self._not_admitted = ""
        self._macs_per_second = settings.macs_per_second  # declared, then measured
        self._pull: Pull | None = None
        self._outbox = Outbox(settings, storage, random)
        self._work: Work | None = None
        offer = storage.work
        if self._outbox.report is not None:
            storage.drop_work()
        elif offer is not None:
            self._resume(offer, now)

    def _resume(self, offer: Offer, now: float) -> None:
        """Go on with work that an earlier run took, unless settings or data have changed since."""
        reason = self._refusal(offer)
        if reason is None:
            self._work = Work(offer, now + offer.deadline_s)
        else:
            logger.warning("%s: given up: %s", work_title(offer), reason)
            self._storage.drop_work()

    @property
    def holding(self) -> Report | None:
        """Report of the update that waits for a receipt, or None."""
        return self._outbox.report

    @property
    def work(self) -> Offer | None:
        """The offer in hand, or None."""
        return self._work.offer if self._work else None

    @property
    def _is_busy(self) -> bool:
        return self._work is not None or self._outbox.report is not None

    def wake_at(self, now: float) -> float | None:
        """When the next Tick has something to do; None if only a message can change anything."""
        due = [self._work.deadline] if self._work else []
        if self._connected:
            pull = self._pull.next_due if self._pull else None
            idle = None if self._is_busy else self._idle_hello_at
            times = (self._hello_at, idle, self._outbox.report_at, pull)
            due += [at for at in times if at is not None]
            due += [now] if self._outbox.has_unsent else []
        return min(due, default=None)

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do on this event at time `now`, in seconds of any clock that never goes back."""
        match event:
            case events.Connected():
                return self._connect(now)
            case events.Disconnected():
                self._connected = False
                return []
            case events.OfferReceived(offer):
                return self._offer(offer, now)
            case events.BlockReceived(prefix, index, data):
                return self._block(prefix, index, data, now)
            case events.ReceiptReceived(receipt):
                self._outbox.receive(receipt)
                return []
            case events.ControlReceived(control):
                return self._control(control, now)
            case events.RoundNoticeReceived(notice):
                return self._notice(notice, now)
            case events.TrainingFinished(offer, result):
                return self._trained(offer, result)
            case events.TrainingFailed(offer, reason):
                if self._work is None or self._work.offer != offer:
                    return []
                return self._give_up(reason)
            case events.Tick(room):
                return self._tick(room, now)

    # ---- link ----

    def _connect(self, now: float) -> list[Action]:
        self._connected = True
        online = Online(self.settings.device, self.settings.boot, online=True)
        waiting = "" if self._is_busy else ", waiting for a round"
        logger.info("%s %s%s", SAID_HELLO, self.settings.device, waiting)
        return [
            self._publish(messages.STATE, online.to_json()),
            self._hello(now),
            *self._publish_all(self._outbox.ask_again(now)),
            *self._advance(now),
        ]

    def _publish(self, leaf: str, payload: bytes) -> Publish:
        return Publish(device_topic(self.settings.device, leaf), payload, messages.QOS[leaf])

    def _publish_all(self, outgoing: list[tuple[str, bytes]]) -> list[Action]:
        return [self._publish(leaf, payload) for leaf, payload in outgoing]

    def _hello(self, now: float) -> Publish:
        self._hello_at = None
        self._idle_hello_at = now + self.settings.hello_interval_s * self._random.uniform(1.0, 1.5)
        report = self._outbox.report
        holding = None
        if report is not None:
            holding = HeldUpdate(report.job, report.round, report.attempt, report.sha256)
        hello = Hello(
            device=self.settings.device,
            boot=self.settings.boot,
            runtime=self.settings.runtime,
            profile=self.settings.profile,
            memory_bytes=self.settings.memory_bytes,
            macs_per_second=self._macs_per_second,
            examples=self.settings.examples,
            block_bytes=self.settings.block_bytes,
            holding=holding,
            backend=self.settings.backend,
        )
        return self._publish(messages.HELLO, hello.to_json())

    def _notice(self, notice: RoundNotice, now: float) -> list[Action]:
        # The hello of this connection may have come before the coordinator listened: each boot gets
        # one.
        if notice.boot != self._coordinator_boot and self._hello_at is None:
            self._hello_at = now + self._random.uniform(0.0, self.settings.hello_spread_s)
        self._coordinator_boot = notice.boot
        return []

    def _control(self, control: Control, now: float) -> list[Action]:
        if control.kind == "hello":
            return [self._hello(now)]
        if control.kind == "wait":
            if control.reason != self._not_admitted:
                self._not_admitted = control.reason
                logger.warning("not admitted to round %s: %s", control.round, control.reason)
            return []
        actions: list[Action] = []
        if self._work and _is_about(control, self._work.offer):
            logger.info(
                "%s: called off: %s", work_title(self._work.offer), control.reason or control.kind
            )
            actions += self._drop_work()
        if control.kind == "finish":
            if self._outbox.report and _is_about(control, self._outbox.report):
                self._outbox.drop()
            if self._work is None and self._outbox.report is None:
                actions.append(events.JobFinished(control.job))
        return actions

    # ---- offer ----

    def _offer(self, offer: Offer, now: float) -> list[Action]:
        report = self._outbox.report
        if report is not None and work_key(report) == work_key(offer):
            again = self._publish_all(self._outbox.ask_again(now))
            return [self._answer(offer, accept=True), *again]
        if self._work and replace(self._work.offer, deadline_s=offer.deadline_s) == offer:
            self._work.deadline = now + offer.deadline_s
            return [self._answer(offer, accept=True)]
        current = report or self.work
        if current is not None and current.job == offer.job and work_key(offer) < work_key(current):
            logger.info("offer of round %d is older than the work in hand", offer.round)
            return []
        reason = self._refusal(offer)
        if reason is not None:
            logger.warning("%s: declined: %s", work_title(offer), reason)
            return [self._answer(offer, accept=False, reason=reason)]
        actions = self._drop_work()
        self._outbox.drop()
        self._work = Work(offer, now + offer.deadline_s)
        try:
            self._storage.keep_objects({reference.id for reference in offer.objects})
            self._storage.save_work(offer)
        except OSError as error:
            return [*actions, *self._give_up(f"this device cannot store the offer: {error}")]
        missing = (part for part in offer.objects if not self._storage.object_path(part.id))
        size = sum(part.size for part in missing)
        logger.info("%s: accepted, %d bytes to fetch", work_title(offer), size)
        self._not_admitted = ""
        return [*actions, self._answer(offer, accept=True), *self._advance(now)]

    def _refusal(self, offer: Offer) -> str | None:
        """Why this offer is declined, as far as its objects are there, or None."""
        return refusal_of_offer(offer, self.settings) or self._refusal_of_objects(offer)

    def _refusal_of_objects(self, offer: Offer) -> str | None:
        """Why this device's data, or the memory of its native core, are not for the model."""
        artifact = self._storage.object_path(offer.artifact.id)
        state = self._storage.object_path(offer.state.id)
        reason = self._refuse_data(artifact) if artifact else None
        if reason is None and offer.export is None and artifact and state:
            reason = self._refuse(artifact, state, offer.batch_size, self.settings.memory_bytes)
        return reason

    def _answer(self, offer: Offer, *, accept: bool, reason: str = "") -> Publish:
        answer = OfferAnswer(
            offer.job, offer.round, offer.attempt, accept, messages.printable_reason(reason)
        )
        return self._publish(messages.ANSWER, answer.to_json())

    def _give_up(self, reason: str) -> list[Action]:
        """Decline the work in hand, taken or not, and forget it."""
        assert self._work is not None
        logger.warning("%s: declined: %s", work_title(self._work.offer), reason)
        answer = self._answer(self._work.offer, accept=False, reason=reason)
        return [*self._drop_work(), answer]

    def _drop_work(self) -> list[Action]:
        actions: list[Action] = []
        if self._work and self._work.phase is Phase.TRAINING:
            actions.append(events.StopTraining())
        self._pull = None
        self._work = None
        self._storage.drop_work()
        return actions

    # ---- transfer ----

    def _advance(self, now: float) -> list[Action]:
        """Take the work in hand one step on: ask for blocks, or begin to train when all are there."""
        if self._work is None or self._work.phase is not Phase.PULLING:
            return []
        offer = self._work.offer
        for reference in offer.objects:
            if self._storage.object_path(reference.id) is None:
                try:
                    return self._request(reference, now)
                except OSError as error:
                    return self._give_up(f"this device cannot store the object: {error}")
        artifact = self._storage.object_path(offer.artifact.id)
        state = self._storage.object_path(offer.state.id)
        assert artifact is not None
        assert state is not None
        if offer.export is not None:
            try:
                artifact = self._storage.lay_out(offer.export)
            except OSError as error:
                return self._give_up(f"this device cannot lay out the export: {error}")
        self._work.phase = Phase.TRAINING
        return [events.StartTraining(offer, artifact, state)]

    def _request(self, reference: ObjectReference, now: float) -> list[Action]:
        if self._pull is None or self._pull.partial.reference != reference:
            self._pull = Pull(
                self._storage.partial(reference),
                self._random,
                timeout=self.settings.answer_timeout_s,
                limit=self.settings.answer_limit_s,
            )
        if self._pull.partial.is_complete:
            return self._completed(now)
        if not self._connected:
            return []
        blocks = self._pull.requests(now)
        if not blocks:
            return []
        request = BlockRequest(reference.id, reference.block_bytes, blocks)
        return [self._publish(messages.GET, request.to_json())]

    def _block(self, prefix: str, index: int, data: bytes, now: float) -> list[Action]:
        if self._pull is None or self._pull.partial.reference.id[:8] != prefix:
            return []
        try:
            self._pull.receive(index, data)
        except FormatError as error:
            logger.warning("block dropped: %s", error)
        except OSError as error:
            return self._give_up(f"this device cannot store the object: {error}")
        return self._advance(now)

    def _completed(self, now: float) -> list[Action]:
        assert self._pull is not None
        assert self._work is not None
        partial, self._pull = self._pull.partial, None
        if self._storage.complete(partial) is None:
            return self._give_up(
                f"object {partial.reference.id[:8]}: its blocks match its hash list, the whole does not match its id"
            )
        reason = self._refusal_of_objects(self._work.offer)
        return self._advance(now) if reason is None else self._give_up(reason)

    # ---- update ----

    def _trained(self, offer: Offer, result: LocalResult) -> list[Action]:
        if self._work is None or self._work.offer != offer:
            return []
        try:
            self._outbox.hold(offer, result)
        except (OSError, FormatError) as error:
            return self._give_up(f"this device cannot keep its update: {error}")
        self._work = None
        self._macs_per_second = result.multiply_adds_per_second or self._macs_per_second
        self._storage.drop_work()
        text = "%s: trained %d examples in %.1f s, update of %d bytes"
        logger.info(text, work_title(offer), result.examples, result.seconds, len(result.update))
        return []

    # ---- time ----

    def _tick(self, room: int, now: float) -> list[Action]:
        if self._work and self._work.deadline <= now:
            return self._give_up("the deadline has passed")
        actions = self._advance(now)
        if not self._connected:
            return actions
        asked_for = self._hello_at is not None and self._hello_at <= now
        if asked_for or (self._idle_hello_at <= now and not self._is_busy):
            actions.append(self._hello(now))
        return actions + self._publish_all(self._outbox.due(room, now))


def _is_about(control: Control, work: Offer | Report) -> bool:
    return (
        control.job in {None, work.job}
        and control.round in {None, work.round}
        and control.attempt in {None, work.attempt}
    )
