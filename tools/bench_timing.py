"""Fair times of several ways to do a thing: CPU time, in turns, median and quartiles."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

SAMPLE_SECONDS = 0.02
"""A turn repeats a short side for about this long: clock and cold caches then weigh little."""

Side = Callable[[], object]
Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of a figure over the turns."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Spread of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def take_turns(sides: Mapping[Name, Side], turns: int) -> dict[Name, list[float]]:
    """CPU seconds of one call of each side, one figure a turn; each turn calls all sides in order.

    What happens to the machine meanwhile happens to all of them. Two calls before the first turn
    warm caches and allocators, and say how often a turn repeats a side.
    """
    repeats = {}
    for name, side in sides.items():
        side()
        repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / max(_seconds(side, 1), 1e-9)))
    taken: dict[Name, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            taken[name].append(_seconds(side, repeats[name]))
    return taken


def _seconds(side: Side, calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        side()
    return (time.process_time() - start) / calls


def best_of(taken: Mapping[Name, Sequence[float]]) -> Name:
    """Name of the side with the least median."""
    return min(taken, key=lambda name: statistics.median(taken[name]))


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Spread of over / under, each turn by itself: what slowed both sides of a turn falls out."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def difference(whole: Sequence[float], part: Sequence[float]) -> list[float]:
    """What `whole` took more than `part`, turn by turn."""
    return [a - b for a, b in zip(whole, part, strict=True)]
