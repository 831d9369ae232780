"""Objects to the agent and updates from it, over links that lose and through restarts."""

import itertools
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal

import pytest
from agent_bench import (
    ANSWER,
    ARTIFACT,
    BLOCK,
    OFFER,
    RESULT,
    STATE,
    UPDATE,
    Bench,
    Link,
    is_idle,
    is_request,
    missing,
    part_numbers,
    published,
    receipt,
    without_answer,
)

from sparsyfed.devices import events
from sparsyfed.devices.events import StartTraining
from sparsyfed.edge_runtime import messages, transfer
from sparsyfed.edge_runtime.messages import HASH_LIST_INDEX, Hello, OfferAnswer, Report
from sparsyfed.edge_runtime.transfer import UpdatePart

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
