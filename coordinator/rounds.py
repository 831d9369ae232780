"""The life of a job as a pure machine: events in, actions out; no clock, no network, no disk.

A round is an attempt or several. In an attempt devices are drawn and offered work (select, offer), they fetch,
train and send (transfer, train), report and get their receipts (report), until the goal is met or the deadline
passes with a quorum; then the committed updates are averaged (aggregate) and the next round is announced (publish).
Everything is idempotent on (round, device, attempt): any message may be lost, late or doubled.
"""

from collections.abc import Mapping

from sparsyfed.coordinator.admission import Needs
from sparsyfed.coordinator.attempt import (
    COMMITTED,
    DECLINED,
    LOST,
    OPEN,
    REJECTED,
    Attempt,
    DeviceOffer,
    Phase,
)
from sparsyfed.coordinator.config import RoundConfig
from sparsyfed.coordinator.events import (
    Action,
    AddOffer,
    Aggregate,
    AnnounceRound,
    CommitUpdate,
    DeviceHello,
    DeviceOffline,
    DropDevice,
    Event,
    FailAttempt,
    FailJob,
    FinishJob,
    InspectUpdate,
    OfferAnswered,
    OpenAttempt,
    OpenRound,
    RoundAggregated,
    SendControl,
    SendOffer,
    SendReceipt,
    Tick,
    UpdateInspected,
    UpdateReported,
)
from sparsyfed.coordinator.fleet import Fleet
from sparsyfed.coordinator.selection import draw_order, offer_count, quorum_count
from sparsyfed.edge_runtime.messages import ReceiptStatus


class RoundMachine:
    """Runs rounds `round_number` .. `rounds`.

    `needs` is what training today's state takes on a device, by engine; `now` is the time at the start, in seconds on
    the clock of the Tick events; `resume` is the attempt that the journal left open, which goes on with a fresh
    deadline: its committed updates stand, its other devices are offered the same work as soon as they say hello.
    """

    def __init__(
        self,
        settings: RoundConfig,
        *,
        rounds: int,
        seed: int,
        round_number: int,
        attempt: int,
        needs: Mapping[str, Needs],
        now: float,
        resume: OpenRound | None = None,
    ) -> None:
        self._settings = settings
        self._rounds = rounds
        self._seed = seed
        self._now = now
        self._fleet = Fleet(needs)
        self._attempt = Attempt(goal=0, quorum=0, deadline=now)  # none is open yet
        # The last update of each device that counted: its receipt may have been lost.
        self._receipts: dict[str, tuple[int, int, str]] = {}
        self._wanted = max(settings.minimum_devices, self._least_devices())
        # After a restart the devices of before get a while to say hello again.
        self._hoped_for, self._hope_until = self._wanted, now
        if resume is not None or (round_number, attempt) != (1, 1):
            self._wanted = self._least_devices()
            self._hope_until = now + settings.offer_timeout_s
        self._last_attempt = attempt + settings.maximum_attempts - 1
        self._not_before = now
        self._give_up = now + settings.register_timeout_s
        self.round = round_number
        self.attempt = attempt
        self.phase = Phase.WAITING if round_number <= rounds else Phase.FINISHED
        if resume is not None:
            self._resume(resume)

    def _resume(self, left: OpenRound) -> None:
        self.round, self.attempt, self.phase = left.round, left.attempt, Phase.COLLECTING
        self._attempt = Attempt(left.goal, left.quorum, self._now + self._settings.deadline_s)
        if self._settings.devices_per_round is None:
            self._hoped_for = max(self._hoped_for, len(left.offers))
        for device, status in left.offers.items():
            # Work may be under way there: it is waited for until the deadline, not only for an answer.
            offer = DeviceOffer(status, answer_by=self._attempt.deadline)
            if device in left.committed:
                offer.status = COMMITTED
                self._receipts[device] = (left.round, left.attempt, left.committed[device])
            self._attempt.add(device, offer)

    def expects(self, device: str, round_number: int, attempt: int) -> bool:
        """Whether parts of an update of this device for this attempt are wanted now."""
        offer = self._offer_of(device, round_number, attempt)
        return offer is not None and offer.status not in (COMMITTED, REJECTED)

    def waits_for(self) -> str:
        """What keeps the round from starting, in one line; only while it waits for devices."""
        return (
            f"round {self.round}: {len(self._fleet.eligible())} of {self._wanted} devices admitted "
            f"({self._fleet.summary()}), giving up in {max(0.0, self._give_up - self._now):.0f} s"
        )

    def handle(self, event: Event) -> list[Action]:
        """The actions that this event calls for, in order."""
        match event:
            case DeviceHello():
                return self._hello(event)
            case DeviceOffline():
                return self._offline(event)
            case OfferAnswered():
                return self._answered(event)
            case UpdateReported():
                return self._reported(event)
            case UpdateInspected():
                return self._inspected(event)
            case RoundAggregated():
                return self._aggregated(event)
            case Tick():
                return self._tick(event)

    # ---- devices ----

    def _hello(self, event: DeviceHello) -> list[Action]:
        self._fleet.hello(event)
        if self.phase is Phase.FINISHED:
            return [SendControl(event.device, "finish")]
        actions: list[Action] = [*self._fleet.new_refusals([event.device])]
        offer = self._offer_of(event.device, self.round, self.attempt)
        if offer is None or offer.status not in (OPEN, LOST):
            return actions  # while waiting, the next Tick sees whether there are enough
        reason = self._fleet.refusal(event.device)
        if reason is not None:  # it declares less than when it was drawn
            return actions + self._drop(event.device, offer, DECLINED, reason)
        return [*actions, self._offer_again(event.device, offer)]

    def _offer_again(self, device: str, offer: DeviceOffer) -> Action:
        boot = self._fleet.boot(device)
        restarted = offer.boot is not None and offer.boot != boot
        if restarted or offer.status == LOST:
            offer.answered = False
            offer.answer_by = self._now + self._settings.offer_timeout_s
        self._attempt.move(offer, OPEN)
        offer.boot = boot
        return self._send_offer(device, offer)

    def _send_offer(self, device: str, offer: DeviceOffer) -> Action:
        offer.send_again = self._now + self._settings.offer_timeout_s / 3
        left = max(self._attempt.deadline - self._now, 0.001)
        return SendOffer(device, self.round, self.attempt, left)

    def _offline(self, event: DeviceOffline) -> list[Action]:
        # A device that takes part keeps its place: it may come back before the deadline.
        self._fleet.offline(event.device, event.boot)
        return []

    # ---- an attempt opens ----

    def _open_if_ready(self) -> list[Action]:
        eligible = self._fleet.eligible()
        wanted_now = self._hoped_for if self._now < self._hope_until else self._wanted
        if self._now < self._not_before or len(eligible) < wanted_now:
            return []
        settings = self._settings
        wanted = settings.devices_per_round
        goal = len(eligible) if wanted is None else min(wanted, len(eligible))
        quorum = quorum_count(goal if wanted is None else wanted, settings.quorum)
        order = draw_order(eligible, seed=self._seed, round_number=self.round, attempt=self.attempt)
        chosen = order[: offer_count(goal, settings.over_selection, len(order))]
        self._attempt = Attempt(goal, quorum, self._now + settings.deadline_s)
        self.phase = Phase.COLLECTING
        opened = OpenAttempt(self.round, self.attempt, goal, quorum, tuple(chosen))
        return [opened, *(self._new_offer(device) for device in chosen)]

    def _new_offer(self, device: str) -> Action:
        answer_by = self._now + self._settings.offer_timeout_s
        offer = DeviceOffer(OPEN, boot=self._fleet.boot(device), answer_by=answer_by)
        self._attempt.add(device, offer)
        return self._send_offer(device, offer)

    def _wait(self, wanted: int, delay: float) -> None:
        self.phase = Phase.WAITING
        self._wanted = wanted
        self._not_before = self._now + delay
        self._give_up = self._not_before + self._settings.register_timeout_s

    def _least_devices(self) -> int:
        """Devices without which no attempt is worth its start."""
        settings = self._settings
        return quorum_count(settings.devices_per_round or settings.minimum_devices, settings.quorum)

    # ---- an attempt runs ----

    def _offer_of(self, device: str, round_number: int, attempt: int) -> DeviceOffer | None:
        """What the device was offered, if that round and attempt are the ones that collect now."""
        if (self.phase, self.round, self.attempt) != (Phase.COLLECTING, round_number, attempt):
            return None
        return self._attempt.offers.get(device)

    def _answered(self, event: OfferAnswered) -> list[Action]:
        self._fleet.set_online(event.device, online=True)
        offer = self._offer_of(event.device, event.round, event.attempt)
        if offer is None or offer.status not in (OPEN, LOST):
            return []
        if not event.accept:
            reason = event.reason
            if offer.answered:
                # It had taken the work, so its data or its disk is at fault: another try would end as this one.
                self._fleet.leave_out(event.device)
                reason += " (left out until it says hello again)"
            return self._drop(event.device, offer, DECLINED, reason)
        self._attempt.move(offer, OPEN)
        offer.answered = True
        return []

    def _drop(self, device: str, offer: DeviceOffer, status: str, reason: str) -> list[Action]:
        """Take a device out of the attempt and offer its place to one that is free."""
        self._attempt.move(offer, status)
        offer.reason = reason
        actions: list[Action] = [DropDevice(self.round, self.attempt, device, status, reason)]
        if self._attempt.within_reach < self._attempt.goal:
            free = set(self._fleet.eligible()) - set(self._attempt.offers)
            order = draw_order(free, seed=self._seed, round_number=self.round, attempt=self.attempt)
            for other in order[:1]:
                actions.append(AddOffer(self.round, self.attempt, other))
                actions.append(self._new_offer(other))
        return actions + self._close_if_done()

    def _reported(self, event: UpdateReported) -> list[Action]:
        self._fleet.set_online(event.device, online=True)
        if self._receipts.get(event.device) == (event.round, event.attempt, event.sha256):
            return [self._receipt(event, "commit")]
        offer = self._offer_of(event.device, event.round, event.attempt)
        if offer is None:
            return [self._receipt(event, "late", "this attempt at the round is over")]
        if offer.status == COMMITTED:
            return [self._receipt(event, "rejected", "another update of this round counts")]
        if offer.status == REJECTED:
            return [self._receipt(event, "rejected", offer.reason)]
        offer.answered = True
        return [InspectUpdate(event)]

    def _inspected(self, event: UpdateInspected) -> list[Action]:
        report = event.report
        offer = self._offer_of(report.device, report.round, report.attempt)
        if offer is None or offer.status in (COMMITTED, REJECTED):
            return self._reported(report)
        if event.missing:
            return [self._receipt(report, "missing", missing=event.missing)]
        if event.problem is not None:
            dropped = self._drop(report.device, offer, REJECTED, event.problem)
            return [dropped[0], self._receipt(report, "rejected", event.problem), *dropped[1:]]
        self._attempt.move(offer, COMMITTED)
        self._receipts[report.device] = (report.round, report.attempt, report.sha256)
        return [CommitUpdate(report), self._receipt(report, "commit"), *self._close_if_done()]

    @staticmethod
    def _receipt(
        report: UpdateReported,
        status: ReceiptStatus,
        reason: str = "",
        missing: tuple[int, ...] = (),
    ) -> Action:
        return SendReceipt(
            report.device, report.round, report.attempt, report.sha256, status, missing, reason
        )

    def _tick(self, event: Tick) -> list[Action]:
        self._now = max(self._now, event.now)
        if self.phase is Phase.WAITING:
            return self._tick_waiting()
        if self.phase is not Phase.COLLECTING:
            return []
        actions: list[Action] = []
        attempt = self._attempt
        for name in attempt.with_status(OPEN):
            offer = attempt.offers[name]
            if offer.answered or self.phase is not Phase.COLLECTING:
                continue
            if self._now >= offer.answer_by:
                self._fleet.set_online(name, online=False)  # until it is heard of again
                actions += self._drop(name, offer, LOST, "no answer to the offer")
            elif self._now >= offer.send_again and self._fleet.is_online(name):
                actions.append(self._send_offer(name, offer))
        return actions + self._close_if_done()

    def _tick_waiting(self) -> list[Action]:
        actions = self._open_if_ready()
        if self.phase is not Phase.WAITING or self._now < self._give_up:
            return actions
        reason = (
            f"round {self.round}: after {self._settings.register_timeout_s:g} s got "
            f"{len(self._fleet.eligible())} devices that can train it ({self._fleet.summary()}), "
            f"wanted {self._wanted}"
        )
        self.phase = Phase.FAILED
        return [*actions, FailJob(reason)]

    # ---- an attempt ends ----

    def _close_if_done(self) -> list[Action]:
        if self.phase is not Phase.COLLECTING:
            return []
        count = self._attempt.counts[COMMITTED]
        over = self._now >= self._attempt.deadline or not self._attempt.counts[OPEN]
        if count >= self._attempt.goal or (over and count >= self._attempt.quorum):
            self.phase = Phase.AGGREGATING
            committed = tuple(self._attempt.with_status(COMMITTED))
            stop = self._stop_open("the round has its updates")
            return [*stop, Aggregate(self.round, self.attempt, committed)]
        return self._retry() if over else []

    def _stop_open(self, reason: str) -> list[Action]:
        return [
            SendControl(name, "abort", self.round, self.attempt, reason)
            for name in self._attempt.with_status(OPEN)
        ]

    def _retry(self) -> list[Action]:
        reason = self._attempt.shortfall()
        for device in self._attempt.with_status(COMMITTED):
            del self._receipts[device]
        actions: list[Action] = [
            FailAttempt(self.round, self.attempt, reason),
            *self._stop_open("the attempt is over"),
        ]
        if self.attempt >= self._last_attempt:
            self.phase = Phase.FAILED
            text = f"round {self.round}, attempt {self.attempt}, the last one: {reason}"
            return [*actions, FailJob(text)]
        self.attempt += 1
        self._wait(self._least_devices(), self._settings.retry_delay_s)
        return actions

    def _aggregated(self, event: RoundAggregated) -> list[Action]:
        if self.phase is not Phase.AGGREGATING:
            return []
        self._fleet.needs = event.needs
        self.round, self.attempt = self.round + 1, 1
        self._last_attempt = self._settings.maximum_attempts
        if self.round > self._rounds:
            self.phase = Phase.FINISHED
            finish = [SendControl(device, "finish") for device in self._fleet.names()]
            return [FinishJob(), *finish]
        self._wait(self._least_devices(), 0.0)
        refused = self._fleet.new_refusals(self._fleet.names())
        return [AnnounceRound(self.round), *refused, *self._open_if_ready()]
