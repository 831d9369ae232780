"""The agent against a coordinator played by the test, over a link that the test controls."""

import errno
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal

import pytest

from sparsyfed.devices import events
from sparsyfed.devices.agent import Agent, refusal_of_plan
from sparsyfed.devices.events import Action, Event, Publish, StartTraining
from sparsyfed.devices.settings import AgentSettings
from sparsyfed.devices.storage import DeviceStorage
from sparsyfed.devices.training import LocalResult
from sparsyfed.edge_runtime import messages, transfer
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.messages import (
    HASH_LIST_INDEX,
    BlockRequest,
    Control,
    DeviceProfileReport,
    Hello,
    MultiplyAddsReport,
    Offer,
    OfferAnswer,
    Receipt,
    Report,
    RoundNotice,
)
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.state import State
from sparsyfed.edge_runtime.transfer import UpdatePart

BLOCK = 256
ARTIFACT = bytes(Random(1).randbytes(3000))
STATE = bytes(Random(2).randbytes(12_345))
UPDATE = bytes(Random(3).randbytes(1000))
RESULT = LocalResult(
    UPDATE, 0.5, 40, 1.5, DeviceProfileReport(100, 90, None, MultiplyAddsReport(3, 2, 1))
)
SETTINGS = AgentSettings(
    device="watch-1",
    boot="boot-1",
    runtime="0.1.0",
    profile="watch",
    memory_bytes=1 << 20,
    examples=40,
    block_bytes=BLOCK,
)
OFFER = Offer(
    job="job",
    round=3,
    attempt=0,
    artifact=transfer.object_reference(ARTIFACT, BLOCK),
    state=transfer.object_reference(STATE, BLOCK),
    batch_size=8,
    epochs=1,
    learning_rate=0.1,
    weight_decay=0.001,
    sparsity=0.5,
    budget="global",
    seed=7,
    deadline_s=600.0,
)


class Bench:
    """A device on a bench: its agent, a clock, and what it has said and been told."""

    def __init__(self, directory: Path, settings: AgentSettings = SETTINGS, seed: int = 0) -> None:
        self.directory = directory
        self.settings = settings
        self.now = 0.0
        self.objects = {OFFER.artifact.id: ARTIFACT, OFFER.state.id: STATE}
        self.refusal: str | None = None
        self.requested: list[int] = []
        self._random = Random(seed)
        self.start()

    def start(self) -> None:
        self.storage = DeviceStorage(self.directory)
        self.agent = Agent(
            self.settings,
            self.storage,
            self._random,
            now=self.now,
            refuse=lambda _artifact, _state, _batch, _memory: self.refusal,
        )

    def restart(self) -> list[Action]:
        """Pull the plug, switch on again and connect; the clock starts anew."""
        self.storage.close()
        self.now = 0.0
        self.start()
        return self.send(events.Connected())

    def send(self, event: Event) -> list[Action]:
        return self.agent.handle(event, self.now)

    def tick(self, seconds: float = 0.0, room: int = 16) -> list[Action]:
        self.now += seconds
        return self.send(events.Tick(room))

    def offer(self, offer: Offer = OFFER) -> list[Action]:
        return self.send(events.OfferReceived(offer))

    def answers(self, actions: list[Action]) -> list[Event]:
        """The blocks that the coordinator sends for the requests among these actions."""
        blocks: list[Event] = []
        for payload in published(actions, messages.GET):
            request = BlockRequest.from_json(payload)
            self.requested += request.blocks
            for index in request.blocks:
                data = self.objects[request.object]
                block = transfer.object_block(data, request.block_bytes, index)
                blocks.append(events.BlockReceived(request.object[:8], index, block))
        return blocks

    def pull(
        self, actions: list[Action], link: "Link | None" = None, rounds: int = 5000
    ) -> list[Action]:
        """Serve requests until something else than a request is asked for; those actions.

        Gives up, with no actions, after `rounds` exchanges.
        """
        for _ in range(rounds):
            others = [action for action in actions if not is_request(action)]
            if others:
                return others
            blocks = self.answers(actions)
            actions = []
            for event in blocks if link is None else link.carry(blocks):
                actions += self.send(event)
            actions += self.tick(0.25)
        return []

    def train(self) -> Report:
        """Take the offer through to a finished update with all parts sent; the report."""
        (started,) = self.pull(without_answer(self.offer()))
        assert isinstance(started, StartTraining)
        self.send(events.TrainingFinished(started.offer, RESULT))
        return Report.from_json(published(self.tick(), messages.REPORT)[0])


class Link:
    """A link that loses, repeats, reorders and damages messages."""

    def __init__(self, random: Random, *, lose: float = 0.0, damage: float = 0.0) -> None:
        self._random = random
        self._lose = lose
        self._damage = damage
        self._late: list[Event] = []

    def carry(self, blocks: list[Event]) -> list[Event]:
        arriving, self._late = self._late, []
        for event in blocks:
            assert isinstance(event, events.BlockReceived)
            chance = self._random.random()
            if chance < self._lose:
                continue
            if chance < self._lose + self._damage:
                bad = bytes([event.data[0] ^ 1]) + event.data[1:]
                arriving.append(replace(event, data=bad))
                continue
            arriving.append(event)
            if self._random.random() < 0.2:
                self._late.append(event)
        self._random.shuffle(arriving)
        return arriving


def is_request(action: Action) -> bool:
    return isinstance(action, Publish) and action.topic.endswith(messages.GET)


def without_answer(actions: list[Action]) -> list[Action]:
    return [
        a for a in actions if not (isinstance(a, Publish) and a.topic.endswith(messages.ANSWER))
    ]


def published(actions: list[Action], leaf: str) -> list[bytes]:
    topic = messages.device_topic("watch-1", leaf)
    return [a.payload for a in actions if isinstance(a, Publish) and a.topic == topic]


def is_idle(bench: Bench) -> bool:
    """Whether nothing is due before the next hello, some minutes from now."""
    at = bench.agent.wake_at(bench.now)
    return at is not None and at - bench.now > SETTINGS.hello_interval_s / 3


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "device")
    bench.send(events.Connected())
    yield bench
    bench.storage.close()


ANSWER = Receipt("job", 3, 0, transfer.sha256_hex(UPDATE), "commit")


def receipt(answer: Receipt = ANSWER) -> events.ReceiptReceived:
    return events.ReceiptReceived(answer)


def missing(*parts: int) -> events.ReceiptReceived:
    return receipt(replace(ANSWER, status="missing", missing=parts))


def part_numbers(actions: list[Action]) -> list[int]:
    return [UpdatePart.decode(p).part for p in published(actions, messages.UPDATE)]


# ---- the whole way ----


def test_a_round_from_offer_to_commit(bench: Bench) -> None:
    actions = bench.offer()
    answer = OfferAnswer.from_json(published(actions, messages.ANSWER)[0])
    assert (answer.job, answer.round, answer.attempt, answer.accept) == ("job", 3, 0, True)
    (started,) = bench.pull(without_answer(actions))
    assert isinstance(started, StartTraining)
    assert started.artifact.read_bytes() == ARTIFACT
    assert started.state.read_bytes() == STATE

    assert bench.send(events.TrainingFinished(started.offer, RESULT)) == []
    sent = bench.tick()
    parts = [UpdatePart.decode(payload) for payload in published(sent, messages.UPDATE)]
    assert b"".join(part.data for part in parts) == UPDATE
    assert {(p.round, p.attempt, p.parts) for p in parts} == {(3, 0, 4)}
    assert {p.tag.hex() for p in parts} == {transfer.sha256_hex(UPDATE)[:32]}
    report = Report.from_json(published(sent, messages.REPORT)[0])
    assert (report.parts, report.size, report.examples, report.loss) == (4, 1000, 40, 0.5)
    assert report.profile == RESULT.profile

    bench.send(receipt())
    assert bench.agent.holding is None
    assert bench.storage.held is None
    assert bench.storage.work is None
    assert is_idle(bench)


def test_hello_says_what_the_device_is(bench: Bench) -> None:
    actions = bench.send(events.Connected())
    hello = Hello.from_json(published(actions, messages.HELLO)[0])
    assert hello == Hello("watch-1", "boot-1", "0.1.0", "watch", 1 << 20, None, 40, BLOCK)
    assert published(actions, messages.STATE)


def test_hello_says_how_fast_the_last_round_was(bench: Bench) -> None:
    bench.train()
    bench.send(receipt())
    hello = Hello.from_json(published(bench.send(events.Connected()), messages.HELLO)[0])
    assert hello.macs_per_second == (3 + 2 + 1) / 1.5


# ---- transfer ----


@pytest.mark.parametrize("seed", range(5))
def test_blocks_that_are_lost_repeated_reordered_or_damaged_are_made_good(
    tmp_path: Path, seed: int
) -> None:
    bench = Bench(tmp_path, seed=seed)
    bench.send(events.Connected())
    link = Link(Random(seed), lose=0.2, damage=0.1)
    (started,) = bench.pull(without_answer(bench.offer()), link)
    assert isinstance(started, StartTraining)
    assert started.artifact.read_bytes() == ARTIFACT
    assert started.state.read_bytes() == STATE
    bench.storage.close()


def test_on_a_good_link_each_block_is_asked_for_once(bench: Bench) -> None:
    bench.pull(without_answer(bench.offer()))
    hash_lists = [HASH_LIST_INDEX] * 2
    assert sorted(bench.requested) == sorted([*range(12), *range(49), *hash_lists])


def test_at_most_sixteen_blocks_are_in_flight(bench: Bench) -> None:
    in_flight: set[int] = set()
    actions = without_answer(bench.offer())
    while not any(isinstance(action, StartTraining) for action in actions):
        for event in bench.answers(actions):
            assert isinstance(event, events.BlockReceived)
            in_flight.add(event.index)
        assert 1 <= len(in_flight) <= 16
        index = min(in_flight)
        in_flight.discard(index)
        reference = OFFER.state if bench.storage.object_path(OFFER.artifact.id) else OFFER.artifact
        block = transfer.object_block(bench.objects[reference.id], BLOCK, index)
        actions = bench.send(events.BlockReceived(reference.id[:8], index, block))


def test_silence_is_met_with_fewer_and_fewer_requests(bench: Bench) -> None:
    bench.offer()
    times = []
    while bench.now < 500:
        at = bench.agent.wake_at(bench.now)
        assert at is not None
        bench.now = at
        if any(is_request(action) for action in bench.tick()):
            times.append(bench.now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] < 7
    assert all(60 <= gap <= 90 for gap in gaps[5:])
    assert len(times) < 15


def test_a_restart_in_the_middle_asks_only_for_what_is_missing(bench: Bench) -> None:
    assert bench.pull(without_answer(bench.offer()), rounds=5) == []
    before = list(bench.requested)
    bench.requested.clear()
    actions = without_answer(bench.restart())
    (started,) = bench.pull([action for action in actions if is_request(action)])
    assert isinstance(started, StartTraining)
    assert started.state.read_bytes() == STATE
    blocks = [index for index in before + bench.requested if index != HASH_LIST_INDEX]
    # What was in flight when the plug was pulled is asked for again, nothing else.
    assert len(blocks) <= 12 + 49 + 16
    assert len(bench.requested) < 49 + 12 + 2


def test_the_bitmap_is_a_hint_that_is_checked(bench: Bench) -> None:
    bench.pull(without_answer(bench.offer()), rounds=5)
    partial = bench.directory / "partial" / OFFER.state.id
    have = (partial / "have").read_bytes()
    assert any(have)
    (partial / "have").write_bytes(b"\xff" * len(have))
    with (partial / "data").open("r+b") as stream:
        stream.write(b"damaged")
    actions = [action for action in bench.restart() if is_request(action)]
    (started,) = bench.pull(actions)
    assert isinstance(started, StartTraining)
    assert started.state.read_bytes() == STATE


def test_an_object_that_is_not_the_promised_one_is_discarded_and_declined(bench: Bench) -> None:
    wrong = replace(OFFER.artifact, id="00" * 32)
    bench.objects[wrong.id] = ARTIFACT
    actions = without_answer(bench.offer(replace(OFFER, artifact=wrong)))
    declined = bench.pull(actions)
    answer = OfferAnswer.from_json(published(declined, messages.ANSWER)[0])
    assert not answer.accept
    assert "does not match its id" in answer.reason
    assert bench.storage.object_path(wrong.id) is None
    assert not list((bench.directory / "partial").iterdir())
    assert bench.agent.work is None


def test_blocks_of_another_object_are_left_alone(bench: Bench) -> None:
    bench.offer()
    assert bench.send(events.BlockReceived("00000000", 0, b"x")) == []
    assert bench.send(events.BlockReceived(OFFER.artifact.id[:8], 999, b"x")) == []


def test_objects_at_hand_are_not_pulled_again_and_old_ones_are_removed(bench: Bench) -> None:
    bench.train()
    bench.send(receipt())
    bench.requested.clear()
    newer = bytes(5000)
    following = replace(OFFER, round=4, state=transfer.object_reference(newer, BLOCK))
    bench.objects[following.state.id] = newer
    (started,) = bench.pull(without_answer(bench.offer(following)))
    assert isinstance(started, StartTraining)
    assert len(bench.requested) == 20 + 1
    names = {path.name for path in (bench.directory / "objects").iterdir()}
    assert names == {OFFER.artifact.id, following.state.id}


# ---- offers ----


def declined_reason(actions: list[Action]) -> str:
    answer = OfferAnswer.from_json(published(actions, messages.ANSWER)[0])
    assert not answer.accept
    return answer.reason


def test_an_object_over_the_limit_is_declined_before_a_file_is_made(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(SETTINGS, max_object_bytes=12_344))
    bench.send(events.Connected())
    assert "over this device's limit of 12344" in declined_reason(bench.offer())
    assert not list((tmp_path / "partial").iterdir())
    assert bench.storage.work is None
    bench.storage.close()


def test_blocks_that_the_device_cannot_buffer_are_declined(bench: Bench) -> None:
    large = replace(OFFER, state=transfer.object_reference(STATE, 512))
    assert "blocks of 512 bytes" in declined_reason(bench.offer(large))


def test_work_that_does_not_fit_is_declined_when_its_objects_are_there(bench: Bench) -> None:
    bench.refusal = "training takes 9 bytes,\nthis device has 8"
    declined = bench.pull(without_answer(bench.offer()))
    assert declined_reason(declined) == "training takes 9 bytes, this device has 8"
    assert bench.agent.work is None
    # The objects are kept: the next offer of them is declined at once.
    again = bench.offer(replace(OFFER, attempt=1))
    assert declined_reason(again)
    assert not any(is_request(action) for action in again)


def test_the_default_refusal_is_the_plan(tmp_path: Path, artifact: Artifact, state: State) -> None:
    artifact.save(tmp_path / "a")
    state.save(tmp_path / "s")
    needed = plan(artifact, state, 8).arena_bytes
    assert refusal_of_plan(tmp_path / "a", tmp_path / "s", 8, needed) is None
    reason = refusal_of_plan(tmp_path / "a", tmp_path / "s", 8, needed - 1)
    assert reason is not None
    assert f"takes {needed} bytes, this device has {needed - 1}" in reason
    (tmp_path / "a").write_bytes(b"no artifact")
    assert refusal_of_plan(tmp_path / "a", tmp_path / "s", 8, needed)


def test_the_same_offer_again_changes_nothing(bench: Bench) -> None:
    first = bench.offer()
    again = bench.offer()
    assert published(again, messages.ANSWER) == published(first, messages.ANSWER)
    assert len(again) == 1
    bench.pull(without_answer(first))
    while_training = bench.offer()
    assert [
        OfferAnswer.from_json(p).accept for p in published(while_training, messages.ANSWER)
    ] == [True]
    assert len(while_training) == 1


def test_the_same_offer_again_is_answered_with_the_held_update(bench: Bench) -> None:
    report = bench.train()
    again = bench.offer()
    assert OfferAnswer.from_json(published(again, messages.ANSWER)[0]).accept
    assert Report.from_json(published(again, messages.REPORT)[0]) == report


def test_a_newer_offer_replaces_the_work_and_an_older_one_does_not(bench: Bench) -> None:
    bench.pull(without_answer(bench.offer()))
    actions = bench.offer(replace(OFFER, round=4))
    assert actions[0] == events.StopTraining()
    assert any(isinstance(action, StartTraining) for action in actions)
    assert bench.agent.work == replace(OFFER, round=4)
    assert bench.send(events.TrainingFinished(OFFER, RESULT)) == []
    assert bench.agent.holding is None
    assert bench.offer() == []
    assert bench.agent.work == replace(OFFER, round=4)


def test_a_disk_that_takes_nothing_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bench.pull(without_answer(bench.offer()))
    monkeypatch.setattr("sparsyfed.devices.storage.write_atomic", full)
    assert "cannot keep its update" in declined_reason(
        bench.send(events.TrainingFinished(OFFER, RESULT))
    )
    assert "cannot store the offer" in declined_reason(bench.offer())
    monkeypatch.undo()
    assert bench.offer()
    other = replace(OFFER, round=4, state=transfer.object_reference(bytes(300), BLOCK))
    monkeypatch.setattr("sparsyfed.devices.storage.PartialObject", full)
    actions = bench.offer(other)
    answers = [OfferAnswer.from_json(p) for p in published(actions, messages.ANSWER)]
    assert [answer.accept for answer in answers] == [True, False]
    assert "cannot store the object" in answers[1].reason


def test_failed_training_is_declined_with_its_reason(bench: Bench) -> None:
    bench.pull(without_answer(bench.offer()))
    failed = bench.send(events.TrainingFailed(OFFER, "DivergedError: loss is not finite"))
    assert declined_reason(failed) == "DivergedError: loss is not finite"
    assert bench.storage.work is None


def test_work_is_given_up_at_its_deadline(bench: Bench) -> None:
    bench.pull(without_answer(bench.offer()))
    assert bench.agent.wake_at(bench.now) == OFFER.deadline_s
    actions = bench.tick(OFFER.deadline_s)
    assert actions[0] == events.StopTraining()
    assert "deadline" in declined_reason(actions)


# ---- update ----


def test_parts_go_out_as_the_link_has_room(bench: Bench) -> None:
    (started,) = bench.pull(without_answer(bench.offer()))
    assert isinstance(started, StartTraining)
    bench.send(events.TrainingFinished(OFFER, RESULT))
    assert bench.tick(room=0) == []
    sent = [bench.tick(room=3), bench.tick(room=3)]
    assert [part_numbers(actions) for actions in sent] == [[0, 1, 2], [3]]
    assert [len(published(actions, messages.REPORT)) for actions in sent] == [0, 1]


def test_missing_parts_are_sent_again_and_reported_again(bench: Bench) -> None:
    bench.train()
    assert bench.send(missing(2, 0, 77)) == []
    again = bench.tick()
    assert part_numbers(again) == [0, 2]
    assert len(published(again, messages.REPORT)) == 1


def test_the_report_is_repeated_at_growing_intervals_until_answered(bench: Bench) -> None:
    bench.train()
    times = [0.0]
    while len(times) < 12:
        at = bench.agent.wake_at(bench.now)
        assert at is not None
        bench.now = at
        assert len(published(bench.tick(), messages.REPORT)) == 1
        times.append(bench.now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(2 <= gap <= 62 for gap in gaps)
    assert max(gaps) > 10
    bench.send(receipt())
    assert is_idle(bench)


@pytest.mark.parametrize("status", ["commit", "late", "rejected"])
def test_only_an_answer_lets_the_update_go(
    bench: Bench, status: Literal["commit", "late", "rejected"]
) -> None:
    bench.train()
    for other in (
        receipt(replace(ANSWER, job="other")),
        receipt(replace(ANSWER, attempt=1)),
        receipt(replace(ANSWER, sha256="00" * 32)),
        missing(),
    ):
        bench.send(other)
        assert bench.storage.held is not None
    bench.send(receipt(replace(ANSWER, status=status)))
    assert bench.storage.held is None


def test_a_restart_with_an_update_says_so_and_reports_it(bench: Bench) -> None:
    report = bench.train()
    actions = bench.restart()
    hello = Hello.from_json(published(actions, messages.HELLO)[0])
    assert hello.holding is not None
    assert hello.holding.sha256 == report.sha256
    assert [Report.from_json(p) for p in published(actions, messages.REPORT)] == [report]
    assert part_numbers(actions) == []
    bench.send(missing(0, 1, 2, 3))
    parts = published(bench.tick(), messages.UPDATE)
    assert b"".join(UpdatePart.decode(part).data for part in parts) == UPDATE


def test_a_restart_in_training_trains_again(bench: Bench) -> None:
    bench.pull(without_answer(bench.offer()))
    actions = bench.restart()
    assert [a.offer for a in actions if isinstance(a, StartTraining)] == [OFFER]


def test_a_damaged_update_is_not_sent(bench: Bench) -> None:
    bench.train()
    (bench.directory / "update" / "update.sfs").write_bytes(b"x" + UPDATE[1:])
    actions = bench.restart()
    assert Hello.from_json(published(actions, messages.HELLO)[0]).holding is None
    assert not published(actions, messages.REPORT)


# ---- orders ----


def test_a_new_coordinator_gets_a_hello_and_the_same_one_none(bench: Bench) -> None:
    def hellos(boot: str) -> int:
        bench.send(events.RoundNoticeReceived(RoundNotice("job", 1, boot)))
        return len(published(bench.tick(5.0), messages.HELLO))

    assert [hellos(boot) for boot in ("c1", "c1", "c2", "c2")] == [1, 0, 1, 0]


def test_hello_is_said_on_order(bench: Bench) -> None:
    actions = bench.send(events.ControlReceived(Control("hello")))
    assert len(published(actions, messages.HELLO)) == 1


def test_abort_ends_the_work_of_its_job_and_keeps_a_finished_update(bench: Bench) -> None:
    bench.pull(without_answer(bench.offer()))
    assert bench.send(events.ControlReceived(Control("abort", "other"))) == []
    assert bench.send(events.ControlReceived(Control("abort", "job"))) == [events.StopTraining()]
    assert bench.agent.work is None
    bench.train()
    bench.send(events.ControlReceived(Control("abort", "job")))
    assert bench.agent.holding is not None


def test_an_abort_that_comes_after_the_next_offer_leaves_that_work_alone(bench: Bench) -> None:
    abort = Control("abort", "job", round=3, attempt=0)
    for following in (replace(OFFER, attempt=1), replace(OFFER, round=4)):
        bench.offer()
        bench.offer(following)
        assert bench.send(events.ControlReceived(abort)) == []
        assert bench.agent.work == following
        this_one = replace(abort, round=following.round, attempt=following.attempt)
        assert bench.send(events.ControlReceived(this_one)) == []
        assert bench.agent.work is None


def test_finish_of_one_job_does_not_end_a_device_that_works_for_another(bench: Bench) -> None:
    bench.offer()
    assert bench.send(events.ControlReceived(Control("finish", "other"))) == []
    assert bench.agent.work == OFFER


def test_finish_ends_everything_of_its_job(bench: Bench) -> None:
    bench.train()
    actions = bench.send(events.ControlReceived(Control("finish", "job")))
    assert actions == [events.JobFinished("job")]
    assert bench.storage.held is None


def test_without_a_link_nothing_is_sent(bench: Bench) -> None:
    bench.offer()
    bench.send(events.Disconnected())
    assert bench.tick(100.0) == []
    assert any(is_request(action) for action in bench.send(events.Connected()))


# ---- messages ----


def test_messages_become_events() -> None:
    def received(leaf: str, payload: bytes) -> Event:
        return events.received("watch-1", messages.device_topic("watch-1", leaf), payload)

    assert received(messages.OFFER, OFFER.to_json()) == events.OfferReceived(OFFER)
    assert received(messages.CONTROL, Control("hello").to_json()) == events.ControlReceived(
        Control("hello")
    )
    block = transfer.encode_block(5, b"data")
    assert received("down/blk/abababab", block) == events.BlockReceived("abababab", 5, b"data")
    notice = RoundNotice("job", 1, "c1")
    assert events.received("watch-1", messages.ROUND_TOPIC, notice.to_json()) == (
        events.RoundNoticeReceived(notice)
    )


@pytest.mark.parametrize(
    "topic",
    [
        "sparsyfed/v1/d/watch-2/down/offer",
        "sparsyfed/v1/d/watch-1/up/hello",
        "sparsyfed/v1/d/watch-1/down/else",
        "elsewhere",
    ],
)
def test_messages_for_others_are_refused(topic: str) -> None:
    with pytest.raises(FormatError, match="topic"):
        events.received("watch-1", topic, json.dumps({}).encode())


def test_an_idle_device_says_hello_again(bench: Bench) -> None:
    first = bench.agent.wake_at(bench.now)
    assert first is not None
    assert 300.0 <= first <= 450.0
    assert bench.tick(first - 0.1) == []
    assert len(published(bench.tick(0.1), messages.HELLO)) == 1
    second = bench.agent.wake_at(bench.now)
    assert second is not None
    assert 300.0 <= second - bench.now <= 450.0
    bench.train()
    bench.now += 1000.0
    assert published(bench.tick(), messages.HELLO) == []  # its report is what it has to say


def test_what_a_device_does_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.restart()
    bench.train()
    bench.send(receipt())
    for reason in ("too small", "too small", "too old"):
        wait = Control("wait", "job", 4, reason=reason)
        assert bench.send(events.ControlReceived(wait)) == []
    bench.refusal = "it does not fit"
    bench.offer(replace(OFFER, round=4))
    assert caplog.messages == [
        "said hello as watch-1, waiting for a round",
        f"round 3, attempt 0: accepted, {len(ARTIFACT) + len(STATE)} bytes to fetch",
        "round 3, attempt 0: trained 40 examples in 1.5 s, update of 1000 bytes",
        "round 3, attempt 0: update committed",
        "not admitted to round 4: too small",
        "not admitted to round 4: too old",
        "round 4, attempt 0: declined: it does not fit",
    ]
