"""The plots of the page on keywords: accuracy over what it costs."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sparsyfed.tools import drawing
from sparsyfed.tools.keyword_results import FAMILIES, PointResult
from sparsyfed.tools.plot_files import PlotFile, plot_file
from sparsyfed.tools.quantities import byte_text, count_text

LOOKS = dict(
    zip(
        FAMILIES,
        (
            (drawing.DENSE, "o", "left", (5, 2)),
            (drawing.SPARSE, "s", "right", (-5, 2)),
            (drawing.THIRD, "D", "left", (5, -9)),
        ),
        strict=True,
    )
)
"""Color, marker, and on which side of a point its name stands: points that cost as much stand above each other."""
READING = (
    "Mean accuracy of three seeds on held-out speakers, whiskers from the worst to the best seed; the line is the "
    "best that a family reaches up to there."
)

Cost = Callable[[PointResult], float]


def draw_all(results: Sequence[PointResult]) -> list[PlotFile]:
    """The plots. Same results, same bytes."""

    def plot(name: str, title: str, cost: Cost, text: Callable[[float], str]) -> PlotFile:
        return plot_file(
            f"keywords-{name}.svg",
            f"Accuracy over {title}. {READING}",
            lambda figure: _scatter(figure.add_subplot(), results, cost, title, text),
        )

    return [
        plot("ram", "RAM of the board in all", lambda result: result.ram_bytes, byte_text),
        plot("instructions", "instructions of a step", lambda r: r.instructions, count_text),
        plot("bytes", "bytes of a device and round", lambda r: r.round_bytes, byte_text),
    ]


def _scatter(
    axes: Axes,
    results: Sequence[PointResult],
    cost: Cost,
    title: str,
    text: Callable[[float], str],
) -> None:
    for family, (color, marker, side, offset) in LOOKS.items():
        own = sorted((r for r in results if r.point.family == family), key=cost)
        means = [100 * r.accuracy for r in own]
        below = [100 * (r.accuracy - min(r.accuracies)) for r in own]
        above = [100 * (max(r.accuracies) - r.accuracy) for r in own]
        places = [cost(r) for r in own]
        axes.errorbar(
            places, means, (below, above), fmt=marker, color=color, label=family, ms=5, lw=1
        )
        best = [max(means[: number + 1]) for number in range(len(means))]
        axes.step(places, best, where="post", color=color, lw=1.2, alpha=0.6)
        for result, place, height in zip(own, places, means, strict=True):
            axes.annotate(
                result.point.name,
                (place, height),
                offset,
                textcoords="offset points",
                horizontalalignment=side,
                verticalalignment="bottom",
                fontsize=7,
                color=color,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(title)
    axes.set_ylabel("accuracy, %")
    axes.legend(loc="lower right")
