import time
from collections.abc import Callable

import pytest

from sparsyfed.tools import bench_timing
from sparsyfed.tools.bench_timing import Spread, best_of, difference, ratio, take_turns


class Clock:
    """CPU time that only the sides under test spend."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def side(self, name: str, *seconds: float) -> Callable[[], None]:
        """A side whose calls take these times, the last one again and again."""
        remaining = list(seconds)

        def call() -> None:
            self.calls.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "process_time", lambda: clock.now)
    return clock


def test_sides_take_turns_after_two_calls_to_warm_up(clock: Clock) -> None:
    taken = take_turns(
        {"a": clock.side("a", 9.0, 7.0, 1.0, 2.0), "b": clock.side("b", 9.0, 7.0, 3.0)}, turns=2
    )
    assert clock.calls == ["a", "a", "b", "b", "a", "b", "a", "b"]
    assert taken == {"a": [1.0, 2.0], "b": [3.0, 3.0]}


def test_a_short_side_is_repeated_until_the_sample_is_long_enough(clock: Clock) -> None:
    seconds = bench_timing.SAMPLE_SECONDS / 4
    taken = take_turns({"short": clock.side("short", seconds)}, turns=1)
    assert len(clock.calls) == 2 + 4
    assert taken["short"] == pytest.approx([seconds])


def test_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_ratio_is_taken_within_each_turn() -> None:
    # The machine was three times slower in the second turn: both sides were.
    assert ratio([10.0, 30.0, 10.0], [2.0, 6.0, 2.0]) == Spread(5.0, 5.0, 5.0)


def test_a_difference_is_taken_within_each_turn() -> None:
    assert difference([3.0, 9.0], [1.0, 4.0]) == [2.0, 5.0]


def test_the_best_side_has_the_least_median() -> None:
    assert best_of({"steady": [2.0, 2.0, 2.0], "lucky once": [1.0, 3.0, 3.0]}) == "steady"
