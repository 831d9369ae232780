"""The agent against a coordinator played by the test: offers, orders and what it says."""

import errno
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from agent_bench import (
    ARTIFACT,
    BLOCK,
    OFFER,
    RESULT,
    SETTINGS,
    STATE,
    UPDATE,
    Bench,
    is_idle,
    is_request,
    published,
    receipt,
    without_answer,
)

from sparsyfed.devices import events
from sparsyfed.devices.events import Action, Event, StartTraining
from sparsyfed.devices.refusal import refusal_of_plan
from sparsyfed.edge_runtime import messages, transfer
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.messages import Control, Hello, OfferAnswer, Report, RoundNotice
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.state import State
from sparsyfed.edge_runtime.transfer import UpdatePart

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


# ---- offers ----


def declined_reason(actions: list[Action]) -> str:
    answer = OfferAnswer.from_json(published(actions, messages.ANSWER)[0])
    assert not answer.accept
    return answer.reason


def test_an_object_over_the_limit_is_declined_before_a_file_is_made(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(SETTINGS, max_offer_bytes=12_344))
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


def test_data_that_do_not_fit_are_declined_before_the_state_is_pulled(bench: Bench) -> None:
    bench.data_refusal = "got label 3, the model takes 0 to 2"
    declined = bench.pull(without_answer(bench.offer()))
    assert declined_reason(declined) == bench.data_refusal
    assert bench.storage.object_path(OFFER.artifact.id)
    assert bench.storage.object_path(OFFER.state.id) is None


def test_the_default_refusal_is_the_plan(tmp_path: Path, artifact: Artifact, state: State) -> None:
    artifact.save(tmp_path / "a")
    state.save(tmp_path / "s")
    needed = plan(artifact, state, 8, memory="small").arena_bytes
    assert refusal_of_plan(tmp_path / "a", tmp_path / "s", 8, needed) is None
    reason = refusal_of_plan(tmp_path / "a", tmp_path / "s", 8, needed - 1)
    assert reason is not None
    assert f"got an arena of {needed - 1} bytes, batch size 8 wants {needed}" in reason
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
