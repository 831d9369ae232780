"""What the figures of the keyword study say: a line for each point, and what is best within a limit."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.tools.keyword_boards import board_settings
from sparsyfed.tools.keyword_figures import Figure, Figures
from sparsyfed.tools.keyword_points import (
    BATCH_SIZE,
    LONGER_ROUNDS,
    LONGEST,
    LONGEST_ROUNDS,
    POINTS,
    PRUNED_POINTS,
    RATES,
    ROUNDS,
    SEEDS,
    SPOTTER,
    Point,
    tuning_grid,
)
from sparsyfed.tools.keyword_training import Task

DENSE, SPARSE, PRUNED = FAMILIES = tuple(RATES)
ON_BOARDS_ALONE = (DENSE, SPARSE)
"""Families that need no device with the memory for a wide net."""
RAM_LIMIT = 128 * 1024
"""Bytes of the board that a recommendation is for."""
LEAST_DIFFERENCE = 0.02
"""Below it a difference says nothing: it is that of 20 of the 1,000 clips held out."""
ONE_SEED_ERROR = 0.02
"""Of an accuracy of a single seed: about what seeds differ by here."""


@dataclass(frozen=True, slots=True)
class PointResult:
    """A point with the accuracies of its seeds, its learning rate, and what was measured on the board at batch 1."""

    point: Point
    rate: float
    accuracies: tuple[float, ...]
    board: Figure

    @property
    def accuracy(self) -> float:
        """Mean over the seeds."""
        return mean(self.accuracies)

    @property
    def ram_bytes(self) -> int:
        """RAM of the smallest board that trains it."""
        return int(self.board["ram_bytes"])

    @property
    def instructions(self) -> int:
        """Instructions of a step on that board."""
        return int(self.board["step_ticks"])

    @property
    def round_bytes(self) -> int:
        """Bytes of the state down and the update up."""
        return int(self.board["state_bytes"] + self.board["update_bytes"])


def chosen_rate(figures: Figures, family: str, rounds: int) -> float:
    """The learning rate with the best mean accuracy over the points that are tuned. Raises InputError without them."""
    found: dict[float, list[float]] = {}
    for task in tuning_tasks(rounds):
        figure = figures.find("tuning", task.settings())
        if task.point.family == family and figure is not None:
            found.setdefault(task.rate, []).append(figure["final_accuracy"])
    if not found:
        raise InputError(f"no learning rate of {family} was tried: run the step tune first")
    return max(found, key=lambda rate: mean(found[rate]))


def tuning_tasks(rounds: int) -> list[Task]:
    """The runs that learning rates are chosen by: one seed, on the speakers for training alone."""
    return [Task("tuning", point, rate, SEEDS[0], rounds) for point, rate in tuning_grid()]


def training_tasks(figures: Figures, rounds: int) -> list[Task]:
    """The runs that are reported, seed by seed: a study that is stopped has some of every point."""
    rates = {family: chosen_rate(figures, family, rounds) for family in ON_BOARDS_ALONE}
    return [
        Task("runs", point, rates[point.family], seed, rounds) for seed in SEEDS for point in POINTS
    ]


def longer_tasks(figures: Figures) -> list[Task]:
    """The runs that points are compared by: with more rounds, at the same learning rates."""
    rate = chosen_rate(figures, PRUNED, ROUNDS)
    pruned = [
        Task("runs", point, rate, seed, LONGER_ROUNDS) for seed in SEEDS for point in PRUNED_POINTS
    ]
    usual = [replace(task, rounds=LONGER_ROUNDS) for task in training_tasks(figures, ROUNDS)]
    return [*usual, *pruned]


def longest_tasks(figures: Figures) -> list[Task]:
    """Some points with more rounds still: whether those of `longer_tasks` were enough."""
    longer = [task for task in longer_tasks(figures) if task.point.name in LONGEST]
    return [replace(task, rounds=LONGEST_ROUNDS) for task in longer]


def point_results(figures: Figures, tasks: Sequence[Task]) -> list[PointResult]:
    """The points that were measured and, in these runs, trained."""
    results = []
    for point in (*POINTS, *PRUNED_POINTS):
        own = [task for task in tasks if task.point == point]
        runs = [figures.find("runs", task.settings()) for task in own]
        accuracies = tuple(float(run["final_accuracy"]) for run in runs if run is not None)
        board = figures.find("boards", board_settings(point, BATCH_SIZE))
        if accuracies and board is not None:
            results.append(PointResult(point, own[0].rate, accuracies, board))
    return results


def compared_results(figures: Figures) -> list[PointResult]:
    """The points by the runs that they are compared by."""
    return point_results(figures, longer_tasks(figures))


def recommended(results: Sequence[PointResult], *families: str) -> PointResult | None:
    """The most accurate point of these families within RAM_LIMIT, if one is."""
    fitting = [r for r in results if r.ram_bytes <= RAM_LIMIT and r.point.family in families]
    return max(fitting, key=lambda result: result.accuracy, default=None)


def mixed_points(results: Sequence[PointResult]) -> list[PointResult]:
    """What boards and Linux devices train together: the spotter, and what is best with and without dense rounds."""
    best = [recommended(results, *ON_BOARDS_ALONE), recommended(results, PRUNED)]
    return [result for result in results if result in best or result.point == SPOTTER]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best dense-narrow point within a limit, and the best one of a family of wide nets; None where no point is."""

    limit: int
    dense: PointResult | None
    family: str
    wide: PointResult | None

    @property
    def verdict(self) -> str:
        """Which family trains better, if the seeds let one say so."""
        if self.dense is None or self.wide is None:
            return "only one fits" if self.dense or self.wide else "none fits"
        if not are_told_apart(self.dense, self.wide):
            return "not decided"
        return self.family if self.wide.accuracy > self.dense.accuracy else DENSE


def compare(
    results: Sequence[PointResult],
    limit: int,
    cost: Callable[[PointResult], int],
    family: str = SPARSE,
) -> Comparison:
    """What dense-narrow nets and those of a family of wide ones reach at no more than this cost."""

    def best(family: str) -> PointResult | None:
        own = [r for r in results if r.point.family == family and cost(r) <= limit]
        return max(own, key=lambda r: r.accuracy, default=None)

    return Comparison(limit, best(DENSE), family, best(family))


def are_told_apart(one: PointResult, other: PointResult) -> bool:
    """Whether the seeds show that one is more accurate."""
    difference = abs(one.accuracy - other.accuracy)
    return difference >= max(LEAST_DIFFERENCE, 2 * _error(one, other))


def cheaper(best: PointResult, results: Sequence[PointResult]) -> PointResult | None:
    """The point with the least RAM of those that take less of everything and are not told apart from this one."""
    others = [
        result
        for result in results
        if result.ram_bytes < best.ram_bytes
        and result.instructions < best.instructions
        and not are_told_apart(best, result)
    ]
    return min(others, key=lambda result: result.ram_bytes, default=None)


def _error(one: PointResult, other: PointResult) -> float:
    """Standard error of the difference of two means over seeds."""
    return math.hypot(*(_spread(r) for r in (one, other)))


def _spread(result: PointResult) -> float:
    """Standard error of a mean over seeds."""
    count = len(result.accuracies)
    return stdev(result.accuracies) / math.sqrt(count) if count > 1 else ONE_SEED_ERROR
