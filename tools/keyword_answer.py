"""What the page on keywords answers: which family is better within a limit."""

from collections.abc import Callable, Sequence
from itertools import groupby

from sparsyfed.tools.keyword_figures import Figures
from sparsyfed.tools.keyword_points import (
    BATCH_SIZE,
    DENSE_SHARE,
    EPOCHS,
    FINAL_SHARE,
    LONGER_ROUNDS,
    ROUNDS,
    SEEDS,
)
from sparsyfed.tools.keyword_results import (
    FAMILIES,
    LEAST_DIFFERENCE,
    ON_BOARDS_ALONE,
    PRUNED,
    RAM_LIMIT,
    SPARSE,
    Comparison,
    PointResult,
    compare,
    longer_tasks,
    point_results,
    recommended,
)
from sparsyfed.tools.keyword_tables import KIB, described, kibibytes, table
from sparsyfed.tools.quantities import count_text

RAM_LIMITS = tuple(KIB * size for size in (64, 96, 128, 192, 256, 384))
INSTRUCTION_LIMITS = tuple(1_000_000 * count for count in (4, 6, 8, 12, 16))


def answer(results: Sequence[PointResult]) -> str:
    """Both questions: boards that train from the first round, and a fleet in which others begin."""
    rule = (
        "The tables have the most accurate point of each family within a limit. A family is called "
        f"better where its mean is ahead by {100 * LEAST_DIFFERENCE:.0f} points at least, and by "
        "twice the standard error over the seeds; else it is not decided."
    )
    together = (
        f"A wide net does not fit a board while all its weights are trained. Here Linux devices, those "
        f"of every second speaker, train it so for the first {DENSE_SHARE:.0%} of the rounds; then the "
        "coordinator keeps the largest weights (`[job] dense_rounds`), and the boards, those of the "
        "other speakers, join. Dense-narrow nets have all devices from the first round on."
    )
    return "\n\n".join(
        [
            rule,
            "### Where boards train from the first round on",
            *_compared(results, SPARSE),
            _recommendation(recommended(results, *ON_BOARDS_ALONE)),
            "### Where Linux devices begin",
            together,
            *_compared(results, PRUNED),
            _recommendation(recommended(results, *FAMILIES)),
        ]
    )


def longer(figures: Figures, results: Sequence[PointResult]) -> str:
    """Whether what was said is but a matter of time."""
    found = point_results(figures, longer_tasks(figures))
    if not found:
        return "Not run yet."
    usual = {result.point: result for result in results}
    rows = []
    for result in found:
        cells = [result.point.name, described(result.point), f"{result.ram_bytes:,}"]
        seeds = [f"{accuracy:.1%}" for accuracy in result.accuracies]
        seeds += ["-"] * (len(SEEDS) - len(seeds))
        rows.append(
            [*cells, f"{usual[result.point].accuracy:.1%}", *seeds, f"{result.accuracy:.1%}"]
        )
    heading = ["point", "", "RAM, bytes", f"{ROUNDS} rounds"]
    heading += [*(f"seed {seed}" for seed in SEEDS), f"{LONGER_ROUNDS} rounds"]
    how = (
        f"The same with {LONGER_ROUNDS} rounds instead of {ROUNDS}, at the learning rates that were "
        f"chosen for {ROUNDS}."
    )
    return "\n\n".join(
        [
            how,
            *(_by_ram(found, family) for family in (SPARSE, PRUNED)),
            table(heading, rows),
        ]
    )


def _compared(results: Sequence[PointResult], family: str) -> list[str]:
    """Dense-narrow nets against this family, by RAM and by instructions."""
    by_work = [
        compare(results, limit, lambda r: r.instructions, family) for limit in INSTRUCTION_LIMITS
    ]
    return [
        _by_ram(results, family),
        _verdicts(by_work, "instructions a step", count_text),
        _comparisons("instructions at most", by_work, count_text),
    ]


def _by_ram(results: Sequence[PointResult], family: str) -> str:
    by_ram = [compare(results, limit, lambda r: r.ram_bytes, family) for limit in RAM_LIMITS]
    verdicts = _verdicts(by_ram, "RAM", kibibytes)
    return f"{verdicts}\n\n{_comparisons('RAM at most', by_ram, kibibytes)}"


def _recommendation(best: PointResult | None) -> str:
    if best is None:
        return f"No point trains in {kibibytes(RAM_LIMIT)}."
    return (
        f"Recommended for a board with {kibibytes(RAM_LIMIT)}, as the most accurate point within "
        f"it: **{best.point.name}**, {described(best.point)}, learning rate {best.rate:g} → "
        f"{FINAL_SHARE * best.rate:g}, batch {BATCH_SIZE}, {EPOCHS} local epochs. It reaches "
        f"{best.accuracy:.1%} with {best.ram_bytes:,} bytes of RAM and "
        f"{count_text(best.instructions)} instructions a step."
    )


def _verdicts(comparisons: Sequence[Comparison], what: str, text: Callable[[int], str]) -> str:
    """One sentence: which family is better up to which limits."""
    parts = []
    for verdict, group in groupby(comparisons, key=lambda comparison: comparison.verdict):
        limits = [text(comparison.limit) for comparison in group]
        span = limits[0] if len(limits) == 1 else f"{limits[0]} to {limits[-1]}"
        outcome = f"{verdict} is better" if verdict in FAMILIES else verdict
        parts.append(f"{outcome} at {span}")
    return f"By {what}: {'; '.join(parts)}."


def _comparisons(
    heading: str, comparisons: Sequence[Comparison], text: Callable[[int], str]
) -> str:
    def best(result: PointResult | None) -> list[str]:
        if result is None:
            return ["none fits", "", ""]
        name = result.point.name
        return [name, f"{result.accuracy:.1%}", f"{count_text(result.instructions)}"]

    rows = [[text(c.limit), *best(c.dense), *best(c.wide), c.verdict] for c in comparisons]
    columns = [heading, "dense-narrow", "accuracy", "instructions"]
    wide = comparisons[0].family
    return table([*columns, wide, "accuracy", "instructions", "better"], rows)
