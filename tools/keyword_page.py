"""The page on keywords, from the figures of the study alone."""

from collections.abc import Callable, Sequence
from itertools import groupby

from sparsyfed.tools.keyword_figures import Figures
from sparsyfed.tools.keyword_points import (
    BATCH_SIZE,
    DENSE_SHARE,
    EPOCHS,
    FINAL_SHARE,
    FINER,
    LONGER_ROUNDS,
    LONGEST_ROUNDS,
    ROUNDS,
    SEEDS,
    WIDER,
    unpruned,
)
from sparsyfed.tools.keyword_results import (
    DENSE,
    FAMILIES,
    LEAST_DIFFERENCE,
    ON_BOARDS_ALONE,
    PRUNED,
    RAM_LIMIT,
    SPARSE,
    Comparison,
    PointResult,
    cheaper,
    compare,
    compared_results,
    longest_tasks,
    point_results,
    recommended,
    training_tasks,
)
from sparsyfed.tools.keyword_sections import method, mixed, spotter
from sparsyfed.tools.keyword_text import KIB, described, joined, kibibytes, strides, table
from sparsyfed.tools.plot_files import PlotFile
from sparsyfed.tools.quantities import count_text

RAM_LIMITS = tuple(KIB * size for size in (64, 96, 128, 192, 256, 384))
NEAR = 0.05
"""Share of a limit: a point that misses it by no more is named."""
INSTRUCTION_LIMITS = tuple(1_000_000 * count for count in (4, 6, 8, 12, 24))

SOURCE = "http://download.tensorflow.org/data/speech_commands_test_set_v0.02.tar.gz"
INTRODUCTION = (
    "# Keyword spotting: what trains best on a microboard?\n\n"
    "With this much RAM, and this many instructions a step: is a narrow net that keeps all its "
    "weights better, or a wide one of which few are stored? Both are trained in federated rounds by "
    "the native runtime, and measured on an emulated Cortex-M4F.\n\n"
    "Data: log-mel features of the *test set* of Speech Commands v0.02 (P. Warden, "
    "[arXiv 1804.03209](https://arxiv.org/abs/1804.03209); Google, "
    "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)): 4,890 clips of 239 speakers, 12 "
    "classes; here each value is the mean of two frames and two bands, and each band has mean 0 and "
    "deviation 1. The training set is twenty times larger and was not there: accuracies compare the "
    "points of this page with each other, and with nothing else. The file is not part of this "
    "project. `tools/keyword_data.py` says what it has to hold; the clips are "
    f"[speech_commands_test_set_v0.02.tar.gz]({SOURCE})."
)


def markdown(figures: Figures, plots: Sequence[PlotFile]) -> str:
    """The page. Same figures, same bytes."""
    results = compared_results(figures)
    alone = [result for result in results if result.point.family in ON_BOARDS_ALONE]
    sections = [
        INTRODUCTION,
        "## Answer",
        _answer(alone),
        _training(figures, results),
        "### Where Linux devices begin",
        _pruned(results),
        "## By one limit",
        _by_one_limit(results),
        "\n\n".join(f"![{plot.caption}]({plot.file_name})\n\n{plot.caption}" for plot in plots),
        "## Points",
        _points(results),
        "## As many weights in wider nets",
        _side_by_side(results, WIDER),
        "## A finer stride in the first convolution",
        _side_by_side(results, FINER),
        "## Fewer rounds, and more",
        _rounds(figures, results),
        "## A spotter with 110,464 weights on a board",
        spotter(figures),
        "## Boards and Linux devices in one fleet",
        mixed(figures, results),
        "## How",
        method(figures),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _answer(results: Sequence[PointResult]) -> str:
    """What trains best within both limits, and what is recommended, where boards train from the first round on."""
    rows = [
        [kibibytes(ram), *(_cell(_within(results, ram, work)) for work in INSTRUCTION_LIMITS)]
        for ram in RAM_LIMITS
    ]
    heading = ["RAM at most", *(f"{count_text(work)} a step" for work in INSTRUCTION_LIMITS)]
    reading = (
        f"The most accurate point within both limits after {LONGER_ROUNDS} rounds, where boards train from the first "
        "round on: D dense-narrow, S sparse-wide. "
        "After ≈ stands the best of the other family, where the seeds do not tell which of the two is better. A "
        f"family is called better where its mean is ahead by {100 * LEAST_DIFFERENCE:.0f} points at least, and by "
        f"twice the standard error over the {len(SEEDS)} seeds, which are few."
    )
    by_ram = _by_ram(results)
    verdicts = [
        _verdicts(by_ram, "By RAM alone", kibibytes) + _near_misses(results, by_ram),
        _verdicts(_by_work(results), "By instructions a step alone", count_text),
    ]
    parts = [table(heading, rows), reading, *verdicts, _recommendation(results)]
    return "\n\n".join(parts)


def _near_misses(results: Sequence[PointResult], comparisons: Sequence[Comparison]) -> str:
    """What a board with little more RAM would have said."""
    text = ""
    for comparison in comparisons:
        winner = comparison.dense if comparison.verdict == DENSE else comparison.wide
        if winner is None or comparison.verdict not in FAMILIES:
            continue
        for other in results:
            above = other.ram_bytes - comparison.limit
            is_near = 0 < above <= NEAR * comparison.limit
            if is_near and _is_better(other, winner):
                text += (
                    f" At {kibibytes(comparison.limit)}, {other.point.name} is {above:,} bytes too large, which "
                    f"reaches {other.accuracy:.1%}."
                )
    return text


def _is_better(other: PointResult, winner: PointResult) -> bool:
    return other.point.family != winner.point.family and other.accuracy > winner.accuracy


def _within(results: Sequence[PointResult], ram_bytes: int, instructions: int) -> Comparison:
    fitting = [result for result in results if result.ram_bytes <= ram_bytes]
    return compare(fitting, instructions, lambda result: result.instructions)


def _cell(comparison: Comparison) -> str:
    found = [result for result in (comparison.dense, comparison.wide) if result is not None]
    if not found:
        return "none fits"
    best, *others = sorted(found, key=lambda result: -result.accuracy)
    text = f"**{best.point.name}** {best.accuracy:.1%}"
    if comparison.verdict in FAMILIES or not others:
        return text
    return f"{text} ≈ {others[0].point.name} {others[0].accuracy:.1%}"


def _recommendation(results: Sequence[PointResult]) -> str:
    best = recommended(results, *ON_BOARDS_ALONE)
    if best is None:
        return f"No point trains in {kibibytes(RAM_LIMIT)}."
    text = (
        f"Recommended for a board with {kibibytes(RAM_LIMIT)}, as the most accurate point within "
        f"it: {_settings(best)}"
    )
    less = cheaper(best, results)
    if less is not None:
        text += (
            f" The seeds do not tell it from **{less.point.name}**, {described(less.point)}: {less.accuracy:.1%} "
            f"with {less.ram_bytes:,} bytes and {count_text(less.instructions)} instructions."
        )
    return text


def _settings(best: PointResult) -> str:
    return (
        f"**{best.point.name}**, {described(best.point)}, learning rate {best.rate:g} → "
        f"{FINAL_SHARE * best.rate:g}, batch {BATCH_SIZE}, {EPOCHS} local epochs. It reaches "
        f"{best.accuracy:.1%} with {best.ram_bytes:,} bytes of RAM and "
        f"{count_text(best.instructions)} instructions a step."
    )


def _training(figures: Figures, results: Sequence[PointResult]) -> str:
    """How far from the end of their training the nets are."""
    fewer = {r.point: r for r in point_results(figures, training_tasks(figures, ROUNDS))}
    more = point_results(figures, longest_tasks(figures))
    gains = [100 * (r.accuracy - fewer[r.point].accuracy) for r in results if r.point in fewer]
    text = "**The nets are not trained to the end.**"
    if gains:
        text += (
            f" From {ROUNDS} to {LONGER_ROUNDS} rounds the points gained {min(gains):.1f} to {max(gains):.1f} "
            "points."
        )
    usual = {result.point: result for result in results}
    for result in more:
        text += (
            f" {result.point.name} reaches {_accuracy(result)} after {LONGEST_ROUNDS}, from "
            f"{usual[result.point].accuracy:.1%}."
        )
    return (
        f"{text} What is said of families is said of this much training, and so far of sparse nets that keep the "
        "support of their first state."
    )


def _by_one_limit(results: Sequence[PointResult]) -> str:
    by_ram = _comparison_table("RAM at most", _by_ram(results), kibibytes)
    by_work = _comparison_table("instructions at most", _by_work(results), count_text)
    return f"{by_ram}\n\n{by_work}"


def _pruned(results: Sequence[PointResult]) -> str:
    """What dense rounds on devices that have the memory change."""
    if not any(result.point.family == PRUNED for result in results):
        return "Not run yet."
    how = (
        "A board can't hold a wide net while all its weights are trained, and the largest *initial* values say little "
        f"of which weights to keep. Here Linux devices, those of every second speaker, train all weights for the first "
        f"{DENSE_SHARE:.0%} of the rounds; then the coordinator keeps the largest (`[job] dense_rounds`), and boards, "
        f"those of the other speakers, join. P1 is the net of S1, and so on. Dense-narrow nets have all devices "
        "from the first round on."
    )
    by_ram, by_work = _by_ram(results, PRUNED), _by_work(results, PRUNED)
    best = recommended(results, *FAMILIES)
    parts = [
        f"{how} {_gains(results)}",
        _verdicts(by_ram, "By RAM", kibibytes),
        _comparison_table("RAM at most", by_ram, kibibytes),
        _verdicts(by_work, "By instructions a step", count_text),
        _comparison_table("instructions at most", by_work, count_text),
    ]
    if best is not None:
        parts.append(
            f"Recommended for such a fleet with boards of {kibibytes(RAM_LIMIT)}: {_settings(best)}"
        )
    return "\n\n".join(parts)


def _gains(results: Sequence[PointResult]) -> str:
    """What the dense rounds are worth to each net."""
    sparse = {r.point: r for r in results if r.point.family == SPARSE}
    gains = [
        f"{r.point.name} {r.accuracy:.1%} instead of {sparse[unpruned(r.point)].accuracy:.1%}"
        for r in results
        if r.point.family == PRUNED and unpruned(r.point) in sparse
    ]
    listed = ", ".join(gains)
    return f"Against the same nets sparse from the first round on: {listed}." if gains else ""


def _by_ram(results: Sequence[PointResult], family: str = SPARSE) -> list[Comparison]:
    return [compare(results, limit, lambda r: r.ram_bytes, family) for limit in RAM_LIMITS]


def _by_work(results: Sequence[PointResult], family: str = SPARSE) -> list[Comparison]:
    return [
        compare(results, limit, lambda r: r.instructions, family) for limit in INSTRUCTION_LIMITS
    ]


def _verdicts(comparisons: Sequence[Comparison], what: str, text: Callable[[int], str]) -> str:
    """One sentence that begins with `what`: which family is better up to which limits."""
    parts = []
    for verdict, group in groupby(comparisons, key=lambda comparison: comparison.verdict):
        limits = [text(comparison.limit) for comparison in group]
        span = limits[0] if len(limits) == 1 else f"{limits[0]} to {limits[-1]}"
        outcome = f"{verdict} is better" if verdict in FAMILIES else verdict
        parts.append(f"{outcome} at {span}")
    return f"{what}: {'; '.join(parts)}."


def _comparison_table(
    heading: str, comparisons: Sequence[Comparison], text: Callable[[int], str]
) -> str:
    def best(result: PointResult | None) -> list[str]:
        if result is None:
            return ["none fits", "", ""]
        name = result.point.name
        return [name, f"{result.accuracy:.1%}", f"{count_text(result.instructions)}"]

    rows = [[text(c.limit), *best(c.dense), *best(c.wide), c.verdict] for c in comparisons]
    columns = [heading, DENSE, "accuracy", "instructions"]
    return table([*columns, comparisons[0].family, "accuracy", "instructions", "better"], rows)


def _points(results: Sequence[PointResult]) -> str:
    heading = ["point", "widths", "strides", "sparsity", "weights", "stored", "rate"]
    heading += [*(f"seed {seed}" for seed in SEEDS), "mean", "RAM, bytes", "instructions"]
    heading += ["bytes a round"]
    text = (
        "RAM: all that the smallest board has which trains the point at batch 1: the firmware's data "
        "and stack, model structure, one example, and the arena. Instructions: of one step there. "
        "Bytes: the state down and the update up, of one device, as plain CSR."
    )
    return f"{text}\n\n{table(heading, [_point(result) for result in results])}"


def _point(result: PointResult) -> list[str]:
    point, board = result.point, result.board
    missing = len(SEEDS) - len(result.accuracies)
    return [
        *(point.name, joined(point.widths), strides(point)),
        *(f"{point.sparsity:.1%}", f"{board['positions']:,}", f"{board['stored']:,}"),
        f"{result.rate:g}",
        *(f"{accuracy:.1%}" for accuracy in result.accuracies),
        *["-"] * missing,
        f"{result.accuracy:.1%}",
        *(f"{result.ram_bytes:,}", f"{result.instructions:,}", f"{result.round_bytes:,}"),
    ]


def _side_by_side(results: Sequence[PointResult], series: Sequence[Sequence[str]]) -> str:
    """Points that differ in one thing, one after the other."""
    named = {result.point.name: result for result in results}
    rows = [
        [
            *(name, described(named[name].point), f"{named[name].board['stored']:,}"),
            f"{named[name].board['stored'] / named[name].board['positions']:.1%}",
            *(f"{named[name].ram_bytes:,}", f"{named[name].instructions:,}"),
            f"{named[name].accuracy:.1%}",
        ]
        for names in series
        for name in names
        if name in named
    ]
    heading = ["point", "", "weights stored", "density", "RAM, bytes", "instructions", "accuracy"]
    return table(heading, rows)


def _rounds(figures: Figures, results: Sequence[PointResult]) -> str:
    """Whether what is said above depends on how long was trained."""
    fewer = point_results(figures, training_tasks(figures, ROUNDS))
    series = {ROUNDS: fewer, LONGER_ROUNDS: results}
    series[LONGEST_ROUNDS] = point_results(figures, longest_tasks(figures))
    found = {rounds: {r.point: r for r in each} for rounds, each in series.items() if each}
    rows = [
        [
            *(result.point.name, described(result.point)),
            *(_accuracy(each.get(result.point)) for each in found.values()),
        ]
        for result in results
    ]
    counts = [f"{rounds} rounds" for rounds in found]
    after_fewer = _verdicts(_by_ram(fewer), f"By RAM, after {ROUNDS} rounds", kibibytes)
    text = (
        f"Means over the seeds, all at the learning rates that were chosen for {ROUNDS} rounds. "
        f"{after_fewer}"
    )
    return f"{text}\n\n{table(['point', '', *counts], rows)}"


def _accuracy(result: PointResult | None) -> str:
    if result is None:
        return ""
    seeds = len(result.accuracies)
    return (
        f"{result.accuracy:.1%}{f' ({seeds} of {len(SEEDS)} seeds)' if seeds < len(SEEDS) else ''}"
    )
