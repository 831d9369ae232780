import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparsyfed.coordinator.events import OpenAttempt, OpenRound, UpdateReported
from sparsyfed.coordinator.results import RoundFinished, TrainingReport
from sparsyfed.coordinator.store import Progress, Spent, Store
from sparsyfed.edge_runtime import BackendError, ConfigurationError, FormatError

IDENTITY = {"name": "j", "seed": 3}


def training(round_number: int, planned: int = 100) -> TrainingReport:
    return TrainingReport(
        round=round_number,
        backend="native",
        engine="portable",
        base_rss_bytes=None,
        planned_arena_bytes=planned,
        arena_peak_bytes=planned,
        peak_rss_bytes=None,
        multiply_adds={"forward": 1, "d_input": 2, "d_weight": 3},
        examples=10,
        loss=0.5,
        seconds=1.0,
    )


def figures(round_number: int) -> RoundFinished:
    return RoundFinished(
        round=round_number,
        accuracy=0.5,
        loss=1.0,
        density_down=1.0,
        bytes_down=10,
        bytes_up=20,
        update_bytes=5,
        devices=2,
        examples=20,
        multiply_adds={"forward": 3, "d_input": 2, "d_weight": 3},
        attempts=1,
        seconds=2.0,
        learning_rate=0.1,
    )


def report(device: str, round_number: int = 1, attempt: int = 1) -> UpdateReported:
    return UpdateReported(device, round_number, attempt, "ab" * 32, 10)


def reopened(store_folder: Path, copy: Path) -> Store:
    """The store as a process finds it that starts after the writer died at this instant."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(store_folder, copy)
    return Store(copy)


def progress_after_crash(folder: Path, tmp_path: Path) -> Progress:
    with reopened(folder, tmp_path / "after-crash") as store:
        return store.progress()


def test_every_step_survives_a_crash_right_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def now() -> Progress:
        return progress_after_crash(folder, tmp_path)

    with Store(folder) as store:
        assert store.job() is None
        store.begin_job(IDENTITY, b"artifact", b"state 1")
        assert now() == Progress(1, 1, None)
        store.open_attempt(OpenAttempt(1, 1, 2, 1, ("a", "b")))
        assert now().open == OpenRound(1, 1, 2, 1, {"a": "open", "b": "open"}, {})
        store.set_offer(1, 1, "b", "declined", "battery")
        store.set_offer(1, 1, "c", "open")
        store.put_part("a", b"t" * 16, 0, 1, b"data")
        store.commit(report("a"), b"data", training(1))
        left = now().open
        assert left is not None
        assert left.offers == {"a": "committed", "b": "declined", "c": "open"}
        assert left.committed == {"a": "ab" * 32}
        store.fail_attempt(1, 1, "no quorum")
        assert now() == Progress(1, 2, None)
        store.open_attempt(OpenAttempt(1, 2, 2, 1, ("a",)))
        assert now().open == OpenRound(1, 2, 2, 1, {"a": "open"}, {})
        store.commit(report("a", 1, 2), b"data", training(1))
        store.finish_round(1, 2, b"state 2", figures(1), keep_states=2)
        assert now() == Progress(2, 1, None)
    with Store(folder) as store:
        assert store.job() == (IDENTITY, b"artifact")
        assert store.rounds() == (figures(1),)
        assert store.state(2) == b"state 2"


def test_a_failure_inside_a_step_leaves_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path) as store:
        store.begin_job(IDENTITY, b"artifact", b"state 1")
        store.open_attempt(OpenAttempt(1, 1, 1, 1, ("a",)))
        store.commit(report("a"), b"data", training(1))

        def fail(_: RoundFinished) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RoundFinished, "to_mapping", fail)
            with pytest.raises(KeyboardInterrupt):
                store.finish_round(1, 1, b"state 2", figures(1), keep_states=2)
        assert store.progress().round == 1
        assert [tuple(row) for row in store.updates(1, 1)] == [("a", 10, b"data")]
        with pytest.raises(BackendError, match="UNIQUE"):
            store.commit(report("a"), b"again", training(1))
        assert [tuple(row) for row in store.updates(1, 1)] == [("a", 10, b"data")]


def test_the_work_of_a_round_is_summed_over_the_updates_that_count(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.begin_job(IDENTITY, b"artifact", b"state 1")
        store.open_attempt(OpenAttempt(1, 1, 2, 2, ("a", "b")))
        store.commit(report("a"), b"data", training(1))
        store.fail_attempt(1, 1, "no quorum")
        store.open_attempt(OpenAttempt(1, 2, 2, 2, ("a", "b")))
        for device in ("a", "b"):
            store.commit(report(device, 1, 2), b"data", training(1))
        assert store.multiply_adds(1, 2) == {"forward": 2, "d_input": 4, "d_weight": 6}


WRITER = """
import sys
from pathlib import Path
from sparsyfed.coordinator.events import OpenAttempt, UpdateReported
from sparsyfed.coordinator.store import Store
sys.path.insert(0, sys.argv[2])
from test_store import figures, training
with Store(Path(sys.argv[1])) as store:
    store.begin_job({}, b"artifact", b"1" * 40_000)
    for t in range(1, 1_000_000):
        store.open_attempt(OpenAttempt(t, 1, 3, 2, ("a", "b", "c")))
        for device in "abc":
            store.put_part(device, b"t" * 16, 0, 1, b"p" * 10_000)
            store.commit(UpdateReported(device, t, 1, device * 64, t), b"u" * 10_000, training(t))
        store.finish_round(t, 1, str(t + 1).encode() * 9_000, figures(t), keep_states=2)
        print(t, flush=True)
"""


def test_a_writer_killed_at_any_time_leaves_a_store_that_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(5)]
        os.kill(writer.pid, signal.SIGKILL)
    assert [int(line) for line in lines] == [1, 2, 3, 4, 5]
    with Store(tmp_path / "store") as store:
        progress = store.progress()
        assert progress.round >= 6
        rounds = store.rounds()
        assert [entry.round for entry in rounds] == list(range(1, progress.round))
        assert store.state(progress.round) == str(progress.round).encode() * 9_000
        if progress.open is not None:
            updates = [device for device, _, _ in store.updates(progress.round, 1)]
            assert sorted(progress.open.committed) == updates


def test_updates_come_sorted_by_device_and_leave_with_their_round(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.begin_job(IDENTITY, b"artifact", b"state 1")
        store.open_attempt(OpenAttempt(1, 1, 3, 1, ("c", "a", "b")))
        for device in "cab":
            store.commit(report(device), device.encode(), training(1))
        assert [data for _, _, data in store.updates(1, 1)] == [b"a", b"b", b"c"]
        store.finish_round(1, 1, b"state 2", figures(1), keep_states=2)
        assert [data for _, _, data in store.updates(1, 1)] == [None] * 3


def test_only_the_newest_states_are_kept(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.begin_job(IDENTITY, b"artifact", b"state 1")
        for number in range(1, 5):
            store.open_attempt(OpenAttempt(number, 1, 1, 1, ("a",)))
            store.finish_round(number, 1, b"state", figures(number), keep_states=2)
        assert store.state(5) == store.state(4) == b"state"
        with pytest.raises(FormatError, match="got no state of round 3"):
            store.state(3)


def test_parts_of_another_update_replace_those_of_the_first(tmp_path: Path) -> None:
    first, second = b"1" * 16, b"2" * 16
    with Store(tmp_path) as store:
        store.put_part("a", first, 0, 3, b"xx")
        store.put_part("a", first, 2, 3, b"zz")
        store.put_part("a", first, 2, 3, b"zz")
        store.put_part("b", first, 1, 3, b"yy")
        assert store.part_numbers("a", first, 3) == {0, 2}
        assert store.part_bytes("a", first, but=0) == 2
        store.put_part("a", second, 1, 3, b"y")
        assert store.part_numbers("a", first, 3) == set()
        assert store.parts("a", second, 3) == [b"y"]
        assert store.parts("b", first, 3) == [b"yy"]


def test_device_results_hold_the_largest_and_the_latest_round(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for number, planned in ((1, 900), (2, 300), (3, 200)):
            store.open_attempt(OpenAttempt(number, 1, 1, 1, ("a", "b")))
            store.commit(report("a", number), b"u", training(number, planned))
            store.finish_round(number, 1, b"state", figures(number), keep_states=2)
        store.open_attempt(OpenAttempt(4, 1, 2, 2, ("a", "b")))
        store.commit(report("b", 4), b"u", training(4, 100))
        store.fail_attempt(4, 1, "no quorum")
        (device,) = store.devices()  # nothing of b counts
        assert (device.id, device.rounds) == ("a", 3)
        assert device.peak == training(1, 900)
        assert device.latest == training(3, 200)


def test_what_a_round_took_is_kept(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert store.spent(1) == Spent()
        store.spend(1, Spent(5, 6, 1.5))
        store.spend(1, Spent(7, 8, 2.5))
        assert store.spent(1) == Spent(7, 8, 2.5)


def test_a_store_in_use_or_of_another_layout_or_no_store_is_named(tmp_path: Path) -> None:
    with (
        Store(tmp_path),
        pytest.raises(ConfigurationError, match="another coordinator uses"),
    ):
        Store(tmp_path)
    Store(tmp_path).close()
    (tmp_path / "job.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        Store(tmp_path)
    with pytest.raises(ConfigurationError, match="directory"):
        Store(tmp_path / "job.sqlite")
