import math

import pytest
from round_machine import BLOCK, NEEDED, NEEDS, commit, hello, machine_of, of_type, report_of, start

from sparsyfed.coordinator.admission import Needs
from sparsyfed.coordinator.events import (
    AddOffer,
    Aggregate,
    AnnounceRound,
    CommitUpdate,
    DeviceOffline,
    DropDevice,
    FailAttempt,
    FailJob,
    FinishJob,
    OfferAnswered,
    OpenAttempt,
    OpenRound,
    RefuseDevice,
    RoundAggregated,
    SendControl,
    SendOffer,
    Tick,
    UpdateInspected,
)
from sparsyfed.coordinator.selection import draw_order, offer_count, quorum_count


def test_round_opens_when_enough_devices_are_there_and_journals_before_it_sends() -> None:
    machine = machine_of()
    assert start(machine, ["a", "b"]) == []
    assert machine.handle(hello("c")) == []
    opened, *offers = machine.handle(Tick(0.0))
    assert isinstance(opened, OpenAttempt)
    assert (opened.goal, opened.quorum, sorted(opened.devices)) == (3, 2, ["a", "b", "c"])
    assert sorted(offer.device for offer in offers) == ["a", "b", "c"]
    assert all(offer.deadline_s == 60.0 for offer in offers)


def test_a_whole_job() -> None:
    machine = machine_of()
    start(machine, "abc")
    for round_number in (1, 2):
        for device in "abc":
            machine.handle(OfferAnswered(device, round_number, 1, accept=True))
        commit(machine, "c", round_number)
        commit(machine, "a", round_number)
        committed, receipt, aggregate = commit(machine, "b", round_number)
        assert isinstance(committed, CommitUpdate)
        assert receipt.status == "commit"
        assert aggregate == Aggregate(round_number, 1, ("a", "b", "c"))
        actions = machine.handle(RoundAggregated(NEEDS))
    assert actions[0] == FinishJob()
    assert actions[1:] == [SendControl(device, "finish") for device in "abc"]
    assert machine.handle(hello("late")) == [SendControl("late", "finish")]


def test_next_round_is_announced_then_opened() -> None:
    machine = machine_of()
    start(machine, "abc")
    for device in "abc":
        commit(machine, device)
    announced, opened, *_ = machine.handle(RoundAggregated(NEEDS))
    assert announced == AnnounceRound(2)
    assert isinstance(opened, OpenAttempt)
    assert (opened.round, opened.attempt) == (2, 1)


def test_over_selected_devices_are_told_to_stop_when_the_goal_is_met() -> None:
    machine = machine_of(devices_per_round=3, minimum_devices=6)
    opened = of_type(start(machine, "abcdef"), OpenAttempt)[0]
    assert opened.goal == 3
    assert len(opened.devices) == math.ceil(1.3 * 3) == 4
    actions = [action for device in opened.devices[:3] for action in commit(machine, device)]
    assert of_type(actions, SendControl) == [
        SendControl(opened.devices[3], "abort", 1, 1, "the round has its updates")
    ]
    assert of_type(actions, Aggregate)[0].devices == tuple(sorted(opened.devices[:3]))
    late = machine.handle(report_of(opened.devices[3]))
    assert [receipt.status for receipt in late] == ["late"]


def test_quorum_at_the_deadline_is_enough() -> None:
    machine = machine_of()
    start(machine, "abc")
    for device in "abc":
        machine.handle(OfferAnswered(device, 1, 1, accept=True))
    commit(machine, "a")
    commit(machine, "b")
    machine.handle(DeviceOffline("c", "b"))
    assert machine.handle(Tick(59.9)) == []
    abort, aggregate = machine.handle(Tick(60.0))
    assert abort == SendControl("c", "abort", 1, 1, "the round has its updates")
    assert aggregate == Aggregate(1, 1, ("a", "b"))


def test_without_quorum_the_round_is_tried_again_with_a_reason() -> None:
    machine = machine_of()
    start(machine, "abc")
    for device in "abc":
        machine.handle(OfferAnswered(device, 1, 1, accept=True))
    commit(machine, "a")
    failed, *aborts = machine.handle(Tick(60.0))
    assert failed == FailAttempt(
        1, 1, "got 1 updates, wanted 2 (2 open, 0 lost, 0 declined, 0 rejected)"
    )
    assert [action.device for action in aborts] == ["b", "c"]
    assert machine.handle(Tick(61.9)) == []
    opened = machine.handle(Tick(62.0))[0]
    assert (opened.round, opened.attempt) == (1, 2)
    assert [action.status for action in machine.handle(report_of("a"))] == ["late"]


def test_no_needless_wait_once_nobody_is_outstanding() -> None:
    machine = machine_of()
    start(machine, "abc")
    commit(machine, "a")
    commit(machine, "b")
    drop, aggregate = machine.handle(OfferAnswered("c", 1, 1, accept=False, reason="battery"))
    assert drop == DropDevice(1, 1, "c", "declined", "battery")
    assert aggregate == Aggregate(1, 1, ("a", "b"))


def test_a_device_that_does_not_answer_is_replaced() -> None:
    machine = machine_of(devices_per_round=2, minimum_devices=4, over_selection=1.0)
    opened = of_type(start(machine, "abcd"), OpenAttempt)[0]
    taken, silent = opened.devices
    machine.handle(OfferAnswered(taken, 1, 1, accept=True))
    again = machine.handle(Tick(3.0))
    assert [type(action) for action in again] == [SendOffer]
    drop, add, offer = machine.handle(Tick(9.0))
    assert (drop.device, drop.status) == (silent, "lost")
    assert isinstance(add, AddOffer)
    assert add.device == offer.device
    assert add.device not in opened.devices
    # The silent one may still deliver: its work is good as long as the round is open.
    assert commit(machine, silent)[1].status == "commit"


def test_a_duplicate_report_is_answered_again_and_not_counted_again() -> None:
    machine = machine_of()
    start(machine, "abc")
    commit(machine, "a")
    (receipt,) = machine.handle(report_of("a"))
    assert receipt.status == "commit"
    (other,) = machine.handle(report_of("a", text="another update"))
    assert other.status == "rejected"
    for device in "bc":
        commit(machine, device)
    machine.handle(RoundAggregated(NEEDS))
    (receipt,) = machine.handle(report_of("a"))
    assert receipt.status == "commit"


def test_missing_parts_are_asked_for_and_rejected_updates_are_not_counted() -> None:
    machine = machine_of()
    start(machine, "abc")
    (inspect,) = machine.handle(report_of("a"))
    (receipt,) = machine.handle(UpdateInspected(inspect.report, missing=(0, 2)))
    assert (receipt.status, receipt.missing) == ("missing", (0, 2))
    drop, receipt = machine.handle(UpdateInspected(inspect.report, problem="norm"))
    assert (drop.status, receipt.status, receipt.reason) == ("rejected", "rejected", "norm")
    assert [action.status for action in machine.handle(report_of("a"))] == ["rejected"]


def test_hello_of_a_restarted_device_gets_the_same_offer() -> None:
    machine = machine_of()
    start(machine, "abc")
    machine.handle(OfferAnswered("a", 1, 1, accept=True))
    (offer,) = machine.handle(hello("a", boot="next"))
    assert (offer.device, offer.round, offer.attempt) == ("a", 1, 1)
    assert machine.handle(DeviceOffline("a", "b")) == []  # the will of the program before
    commit(machine, "b")
    assert machine.handle(hello("b", boot="next")) == []


def test_devices_with_too_little_memory_wait_for_a_sparser_state() -> None:
    machine = machine_of(minimum_devices=2)
    (refused,) = machine.handle(hello("small", memory=NEEDED - 1))
    assert refused == RefuseDevice(
        "small", "training this state needs 1000 bytes (planned), the device declares 999 bytes"
    )
    assert machine.handle(hello("small", memory=NEEDED - 1)) == []
    start(machine, "ab")
    commit(machine, "a")
    commit(machine, "b")
    opened = of_type(machine.handle(RoundAggregated({"native": Needs(500, BLOCK)})), OpenAttempt)[0]
    assert sorted(opened.devices) == ["a", "b", "small"]


def test_a_refused_device_is_told_once_until_it_is_admitted_or_starts_again() -> None:
    machine = machine_of(minimum_devices=2)
    machine.handle(hello("small", memory=400))
    for round_needs, refusals in ((Needs(900, BLOCK), 0), (Needs(300, BLOCK), 0)):
        start(machine, "ab")
        commit(machine, "a", machine.round)
        commit(machine, "b", machine.round)
        actions = machine.handle(RoundAggregated({"native": round_needs}))
        assert len(of_type(actions, RefuseDevice)) == refusals
    machine = machine_of()
    for boot, refusals in (("first", 1), ("first", 0), ("second", 1)):
        assert len(machine.handle(hello("small", boot, memory=400))) == refusals


def test_a_device_that_could_not_do_its_work_is_left_out_until_it_says_hello_again() -> None:
    machine = machine_of(quorum=1.0, minimum_devices=2)
    start(machine, "abc")
    for device in "abc":
        machine.handle(OfferAnswered(device, 1, 1, accept=True))
    commit(machine, "a")
    machine.handle(OfferAnswered("b", 1, 1, accept=False, reason="nan in its data"))
    dropped, failed = machine.handle(Tick(1.0)), machine.handle(Tick(60.0))
    assert dropped == []
    assert isinstance(failed[0], FailAttempt)
    opened = of_type(machine.handle(Tick(62.0)), OpenAttempt)[0]
    assert (opened.attempt, sorted(opened.devices)) == (2, ["a", "c"])
    commit(machine, "a", 1, 2)
    commit(machine, "c", 1, 2)
    opened = of_type(machine.handle(RoundAggregated(NEEDS)), OpenAttempt)[0]
    assert (opened.round, sorted(opened.devices)) == (2, ["a", "c"])


def test_a_device_left_out_comes_back_with_its_hello() -> None:
    machine = machine_of(minimum_devices=2)
    start(machine, "abc")
    machine.handle(OfferAnswered("b", 1, 1, accept=True))
    (dropped,) = machine.handle(OfferAnswered("b", 1, 1, accept=False, reason="disk"))
    assert dropped.reason == "disk (left out until it says hello again)"
    assert machine.handle(hello("b")) == []  # this attempt goes on without it
    commit(machine, "a")
    commit(machine, "c")
    opened = of_type(machine.handle(RoundAggregated(NEEDS)), OpenAttempt)[0]
    assert sorted(opened.devices) == ["a", "b", "c"]


def test_what_is_waited_for_names_numbers_reasons_and_the_time_left() -> None:
    machine = machine_of()
    start(machine, "ab")
    machine.handle(hello("small", memory=1))
    machine.handle(Tick(20.0))
    assert machine.waits_for() == (
        "round 1: 2 of 3 devices admitted (3 online; 1 refused, such as small: training this state "
        "needs 1000 bytes (planned), the device declares 1 bytes), giving up in 10 s"
    )


def test_a_device_whose_blocks_are_too_small_for_the_state_is_not_offered_work() -> None:
    machine = machine_of()
    (refused,) = machine.handle(hello("tiny", block_bytes=BLOCK - 1))
    assert refused.device == "tiny"
    assert "takes blocks of 512 bytes" in refused.reason
    opened = of_type(start(machine, "abc"), OpenAttempt)[0]
    assert sorted(opened.devices) == ["a", "b", "c"]
    refused, dropped = machine.handle(hello("a", boot="next", block_bytes=BLOCK - 1))
    assert isinstance(refused, RefuseDevice)
    assert (dropped.device, dropped.status, dropped.reason) == ("a", "declined", refused.reason)
    assert machine.handle(Tick(3.0)) == [SendOffer(name, 1, 1, 57.0) for name in "bc"]


def test_too_few_devices_end_the_job_with_the_numbers() -> None:
    machine = machine_of()
    start(machine, "ab")
    (failed,) = of_type(machine.handle(Tick(30.0)), FailJob)
    assert "got 2 devices that can train it (2 online), wanted 3" in failed.reason


def test_a_round_that_fails_too_often_ends_the_job() -> None:
    machine = machine_of()
    start(machine, "abc")
    failures = []
    for now in range(0, 600, 1):
        failures += of_type(machine.handle(Tick(float(now))), FailJob)
        for device in "abc":
            machine.handle(hello(device))
    assert len(failures) == 1
    assert failures[0].reason.startswith("round 1, attempt 3, the last one: got 0 updates")


def test_restart_keeps_committed_updates_and_offers_the_rest_again() -> None:
    left = OpenRound(1, 2, 3, 2, {"a": "open", "b": "open", "c": "declined"}, {"a": "update of a"})
    machine = machine_of(resume=left, now=100.0)
    assert machine.handle(Tick(150.0)) == []  # no offer is given up before the deadline
    (receipt,) = machine.handle(report_of("a", attempt=2))
    assert receipt.status == "commit"
    (offer,) = machine.handle(hello("b"))
    assert (offer.device, offer.round, offer.attempt) == ("b", 1, 2)
    assert machine.handle(hello("c")) == []
    assert commit(machine, "b", attempt=2)[-1] == Aggregate(1, 2, ("a", "b"))


def test_restart_after_the_goal_was_met_aggregates_at_once() -> None:
    left = OpenRound(1, 1, 2, 2, {"a": "open", "b": "committed"}, {"a": "x", "b": "y"})
    machine = machine_of(resume=left)
    assert machine.handle(Tick(0.1)) == [Aggregate(1, 1, ("a", "b"))]


def test_restart_gives_the_devices_of_before_a_while_to_come_back() -> None:
    offers = dict.fromkeys("abcd", "open")
    left = OpenRound(1, 1, 4, 3, offers, dict.fromkeys("abc", "update"))
    machine = machine_of(resume=left)
    start(machine, "acd")
    assert isinstance(commit(machine, "d")[-1], Aggregate)
    assert machine.handle(RoundAggregated(NEEDS)) == [AnnounceRound(2)]  # b is on its way
    machine.handle(hello("b"))
    opened = machine.handle(Tick(0.1))[0]
    assert sorted(opened.devices) == ["a", "b", "c", "d"]

    machine = machine_of(resume=left)
    start(machine, "acd")
    commit(machine, "d")
    machine.handle(RoundAggregated(NEEDS))
    assert machine.handle(Tick(8.9)) == []
    opened = machine.handle(Tick(9.0))[0]
    assert sorted(opened.devices) == ["a", "c", "d"]


def test_selection_depends_on_the_set_of_devices_and_the_round_alone() -> None:
    order = draw_order(["c", "a", "b"], seed=1, round_number=2, attempt=1)
    assert order == draw_order(["b", "c", "a"], seed=1, round_number=2, attempt=1)
    orders = {tuple(draw_order("abcdef", seed=1, round_number=t, attempt=1)) for t in range(20)}
    assert len(orders) > 15


@pytest.mark.parametrize(
    ("goal", "available", "offers", "quorum"), [(10, 99, 13, 8), (10, 11, 11, 8), (1, 9, 2, 1)]
)
def test_counts(goal: int, available: int, offers: int, quorum: int) -> None:
    assert offer_count(goal, 1.3, available) == offers
    assert quorum_count(goal, 0.8) == quorum
