"""Rounds under any order of messages, losses, doubles and restarts."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from round_machine import BLOCK, NEEDED, hello, report_of

from sparsyfed.coordinator.admission import Needs
from sparsyfed.coordinator.attempt import Phase
from sparsyfed.coordinator.config import RoundConfig
from sparsyfed.coordinator.events import (
    Action,
    AddOffer,
    Aggregate,
    CommitUpdate,
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
    SendOffer,
    SendReceipt,
    Tick,
    UpdateInspected,
)
from sparsyfed.coordinator.rounds import RoundMachine

Inspection = tuple[tuple[int, ...], str | None]  # missing parts, problem
DEVICES = ("a", "b", "c", "d", "e")
ROUNDS = 3


class Federation(RuleBasedStateMachine):
    """A fleet, a journal and a machine that may be started again from it at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.round, self.attempt = 1, 1
        self.open: OpenAttempt | None = None  # as journalled
        self.offers: dict[str, str] = {}
        self.committed: dict[str, str] = {}
        self.counted: dict[tuple[int, int, str], str] = {}  # of all time
        self.aggregated: list[int] = []
        self.boots = dict.fromkeys(DEVICES, 0)
        self.memory = dict.fromkeys(DEVICES, NEEDED) | {"e": 500}
        self.needed = NEEDED
        self.past: list[Event] = []
        self.offered: set[tuple[int, int, str]] = set()
        self.finished = False
        self.start()
        self.all_say_hello()

    def start(self) -> None:
        resume = None
        if self.open is not None:
            resume = OpenRound(
                self.round, self.attempt, self.open.goal, self.open.quorum,
                dict(self.offers), dict(self.committed),
            )  # fmt: skip
        self.machine = RoundMachine(
            RoundConfig(
                devices_per_round=3, minimum_devices=3, quorum=0.6, deadline_s=20.0,
                offer_timeout_s=5.0, register_timeout_s=120.0, retry_delay_s=1.0,
                maximum_attempts=2,
            ),
            rounds=ROUNDS, seed=3, round_number=self.round, attempt=self.attempt,
            needs={"native": Needs(self.needed, BLOCK)}, now=self.now, resume=resume,
        )  # fmt: skip

    def feed(self, event: Event, *, inspection: Inspection | None = None) -> None:
        self.past.append(event)
        waiting: list[Event] = [event]
        while waiting:
            for action in self.machine.handle(waiting.pop(0)):
                answer = self.carry_out(action, inspection)
                if answer is not None:
                    waiting.append(answer)

    def carry_out(  # noqa: PLR0915 - one statement or two for each kind of action
        self, action: Action, inspection: Inspection | None
    ) -> Event | None:
        key = getattr(action, "round", None), getattr(action, "attempt", None)
        match action:
            case OpenAttempt():
                assert key == (self.round, self.attempt)
                assert self.open is None
                assert action.goal <= 3
                assert len(action.devices) <= 4
                assert all(self.memory[device] >= self.needed for device in action.devices)
                self.open = action
                self.offers = dict.fromkeys(action.devices, "open")
                self.committed = {}
            case AddOffer(_, _, device):
                assert device not in self.offers
                assert self.memory[device] >= self.needed
                self.offers[device] = "open"
            case SendOffer(device):
                assert key == (self.round, self.attempt)
                assert device in self.offers  # journalled before it is sent
                assert device not in self.committed
                self.offered.add((*key, device))
            case DropDevice(_, _, device, status):
                assert device not in self.committed
                self.offers[device] = status
            case InspectUpdate(report):
                missing, problem = inspection or ((), None)
                return UpdateInspected(report, missing, problem)
            case CommitUpdate(report):
                place = (report.round, report.attempt, report.device)
                assert place[:2] == (self.round, self.attempt)
                assert place not in self.counted  # never twice
                assert report.device in self.offers
                self.counted[place] = report.sha256
                self.committed[report.device] = report.sha256
            case SendReceipt(device, round_number, attempt, sha256, status):
                counts = self.counted.get((round_number, attempt, device)) == sha256
                if counts and key == (self.round, self.attempt):
                    assert status == "commit"
                if status == "commit":
                    assert counts
            case FailAttempt():
                assert self.open is not None
                assert len(self.committed) < self.open.quorum
                for device in self.committed:
                    del self.counted[self.round, self.attempt, device]
                self.open = None
                self.attempt += 1
            case Aggregate(_, _, devices):
                assert self.open is not None
                assert devices == tuple(sorted(self.committed))
                assert self.open.quorum <= len(devices) <= self.open.goal
                self.aggregated.append(self.round)
                self.open = None
                self.round, self.attempt = self.round + 1, 1
                self.needed = 400
                return RoundAggregated({"native": Needs(self.needed, BLOCK)})
            case FinishJob():
                self.finished = True
            case FailJob():
                self.start()
        return None

    devices = st.sampled_from(DEVICES)

    @rule(device=devices, restarted=st.booleans())
    def say_hello(self, device: str, restarted: bool) -> None:
        self.boots[device] += restarted
        self.feed(hello(device, str(self.boots[device]), self.memory[device]))

    @rule()
    def all_say_hello(self) -> None:
        for device in DEVICES:
            self.feed(hello(device, str(self.boots[device]), self.memory[device]))

    @rule(device=devices)
    def go_offline(self, device: str) -> None:
        self.feed(DeviceOffline(device, str(self.boots[device])))

    @rule(device=devices, accept=st.sampled_from([True, True, False]))
    def answer(self, device: str, accept: bool) -> None:
        self.feed(OfferAnswered(device, self.round, self.attempt, accept))

    @rule(
        device=devices,
        age=st.sampled_from([(0, 0), (0, 0), (0, 1), (1, 0)]),
        other=st.sampled_from([False, False, True]),
        inspection=st.sampled_from([None, None, None, ((1,), None), ((), "bad")]),
    )
    def report(
        self, device: str, age: tuple[int, int], other: bool, inspection: Inspection | None
    ) -> None:
        place = (self.round - age[0], self.attempt - age[1])
        text = "other" if other else "update"
        self.feed(report_of(device, *place, text), inspection=inspection)

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def deliver_an_old_message_again(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(self.past[-30:]))
        if not isinstance(event, Tick):
            self.feed(event)

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Tick(self.now))

    @rule()
    def kill_and_restart(self) -> None:
        self.start()

    def teardown(self) -> None:
        """In calm weather the job always comes to its end, each round averaged once and in order."""
        for _ in range(200):
            if self.finished:
                break
            self.now += 1.0
            self.feed(Tick(self.now))
            for device in DEVICES:
                self.feed(hello(device, str(self.boots[device]), self.memory[device]))
                if (self.round, self.attempt, device) in self.offered:
                    self.feed(OfferAnswered(device, self.round, self.attempt, True))
                    self.feed(report_of(device, self.round, self.attempt))
        assert self.finished or self.machine.phase is Phase.FINISHED
        assert self.aggregated == list(range(1, ROUNDS + 1))


TestFederation = Federation.TestCase
TestFederation.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
