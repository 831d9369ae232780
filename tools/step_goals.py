"""The goals of a training step, judged by what was measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

Row = Mapping[str, Any]
Result = Mapping[str, Any]

MODELS = ("watch_cnn", "kws_dscnn", "resnet8", "resnet18", "mlp")
BATCH_SIZES = (1, 16, 64)
MASKS = ("random", "initial", "trained")
RESNET18_SPEEDUPS = ((0.9, 4.5, 4.5), (0.95, 5.5, 7.0), (0.99, 8.5, 11.0))
"""Sparsity, bound and goal of ResNet-18, batch 16, on the best instructions of the machine."""
ERK_SHARE = 0.85
"""With Erdős-Rényi masks a bound may be missed by this much: early layers are denser there."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure and what it was to be; `measured` is None where the run has no such row."""

    title: str
    measured: float | None
    bound: float
    goal: float | None = None
    at_most: bool = False
    unit: str = "x"

    def text(self, value: float | None) -> str:
        """A figure of this verdict with its sign and unit."""
        if value is None:
            return "-"
        if not self.unit:
            return f"{value:,.0f}"
        return f"{value:.2%}" if self.unit == "%" else f"{value:.2f}{self.unit}"

    def met(self, wanted: float | None) -> str:
        """Whether the figure reaches `wanted`: "met", "not met", or "-"."""
        if wanted is None or self.measured is None:
            return "-"
        reached = self.measured <= wanted if self.at_most else self.measured >= wanted
        return "met" if reached else "not met"


def judge(result: Result) -> list[Verdict]:
    """All verdicts on a result of the study, in the order of its page."""
    return [
        *_resnet18_speed(result["steps"]),
        *_limited_speed(result["steps"]),
        *_never_slower(result["steps"]),
        *_memory(result),
        *_work(result["steps"]),
    ]


def rows_of(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def resnet18(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows of ResNet-18 by the kernels that the runtime chooses; by default batch 16, best ISA."""
    same = {"model": "resnet18", "batch_size": 16, "isa": "best", "budget": "global"}
    return rows_of(rows, **{**same, "chosen_kernels": True, "memory": None, **wanted})


def by_sparsity(rows: Sequence[Row]) -> dict[float, Row]:
    """The slowest row of each sparsity: some are measured twice."""
    slowest: dict[float, Row] = {}
    for row in sorted(rows, key=speedup, reverse=True):
        slowest[float(row["sparsity"])] = row
    return slowest


def least(rows: Sequence[Row], value: Callable[[Row], float]) -> float | None:
    """The least value of the rows; None without rows."""
    return min(map(value, rows), default=None)


def most(rows: Sequence[Row], value: Callable[[Row], float]) -> float | None:
    """The greatest value of the rows; None without rows."""
    return max(map(value, rows), default=None)


def speedup(row: Row) -> float:
    """Median of dense over ours."""
    return float(row["speedup"]["median"])


def _resnet18_speed(steps: Sequence[Row]) -> list[Verdict]:
    """Of random masks. Masks of a state stand in the tables: how uneven they are is the state's."""
    verdicts = []
    for budget, share in (("global", 1.0), ("erk", ERK_SHARE)):
        for sparsity, bound, goal in RESNET18_SPEEDUPS:
            wanted = {"masks": "random", "sparsity": sparsity, "budget": budget}
            verdicts.append(
                Verdict(
                    f"batch 16, {sparsity:.0%}, random masks, {budget} budget",
                    least(resnet18(steps, **wanted), speedup),
                    bound * share,
                    goal * share,
                )
            )
    return verdicts


def _limited_speed(steps: Sequence[Row]) -> list[Verdict]:
    at_95 = {"masks": "random", "sparsity": 0.95}
    verdicts = [
        Verdict(
            f"batch 16, 95%, {title} on both sides",
            least(resnet18(steps, isa=isa, **at_95), speedup),
            bound,
            goal,
        )
        for isa, title, bound, goal in (
            ("avx2", "AVX2", 6.5, 8.0),
            ("sse2", "128 bits", 12.0, 14.0),
        )
    ]
    verdicts += [
        Verdict(
            f"batch {batch_size}, 95%",
            least(resnet18(steps, batch_size=batch_size, **at_95), speedup),
            4.5,
        )
        for batch_size in (4, 64)
    ]
    reference = [row for row in resnet18(steps, **at_95) if row["speedup_over_reference"]]
    over = least(reference, lambda row: float(row["speedup_over_reference"]["median"]))
    return [*verdicts, Verdict("batch 16, 95%, over the published simulation's step", over, 12.0)]


def _never_slower(steps: Sequence[Row]) -> list[Verdict]:
    chosen = rows_of(
        steps, isa="best", chosen_kernels=True, memory=None, masks="random", budget="global"
    )
    verdicts = []
    for model in MODELS:
        for batch_size in BATCH_SIZES:
            rows = rows_of(chosen, model=model, batch_size=batch_size)
            half = [row for row in rows if row["sparsity"] >= 0.5]
            title = f"{model}, batch {batch_size}"
            verdicts += [
                Verdict(f"{title}, least at densities up to 50%", least(half, speedup), 1.0),
                Verdict(
                    f"{title}, time at 100% density over dense",
                    most(rows_of(rows, sparsity=0.0), lambda row: 1 / speedup(row)),
                    1.5,
                    at_most=True,
                ),
            ]
    return verdicts


def _memory(result: Result) -> list[Verdict]:
    verdicts = []
    for memory, bound in (("fast", 5.0), ("small", 9.0)):
        wanted = {"model": "resnet18", "batch_size": 16, "sparsity": 0.95, "memory": memory}
        rows = rows_of(result["memory"], **wanted)
        for field, what in (("smaller_step", "step"), ("smaller_with_model", "model and step")):
            smaller = least(rows, itemgetter(field))
            verdicts.append(
                Verdict(f'memory="{memory}", 95%: {what}, dense / ours', smaller, bound)
            )
    at_95 = {"masks": "random", "sparsity": 0.95}
    fast, small = (resnet18(result["steps"], memory=m, **at_95) for m in ("fast", "small"))
    slower = _seconds(small[0]) / _seconds(fast[0]) if fast and small else None
    verdicts.append(Verdict('memory="small", 95%: time over "fast"', slower, 1.4, at_most=True))
    both = [(row["arena_bytes"], row["arena_peak_bytes"]) for row in result["steps"]]
    both += [
        (row["session"]["planned_bytes"], row["session"]["arena_peak_bytes"])
        for row in result["memory"]
    ]
    differing = sum(planned != touched for planned, touched in both) if both else None
    verdicts.append(
        Verdict("arenas whose touched bytes differ from plan", differing, 0, at_most=True, unit="")
    )
    return verdicts


def _seconds(row: Row) -> float:
    return float(row["seconds"]["median"])


def _share_of(name: str) -> Callable[[Row], float]:
    return lambda row: float(row["multiply_adds"][name]["share"])


def _work(steps: Sequence[Row]) -> list[Verdict]:
    at_95 = {"masks": "random", "sparsity": 0.95}
    rows = resnet18(steps, **at_95)
    passes = {"forward": "forward", "d_input": "input gradients", "d_weight": "weight gradients"}
    verdicts = [
        Verdict(
            f"multiply-adds of {title}, 95%, of dense",
            most(rows, _share_of(name)),
            0.07,
            at_most=True,
            unit="%",
        )
        for name, title in passes.items()
    ]
    portable = rows_of(steps, model="resnet18", kernels="portable", isa="best", **at_95)
    share = most(portable, _share_of("d_weight"))
    title = "multiply-adds of weight gradients, 95%, portable kernels, of dense"
    return [*verdicts, Verdict(title, share, 0.01, at_most=True, unit="%")]
