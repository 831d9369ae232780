"""The plots of the page on training steps, as SVG files of their own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsyfed.tools import drawing
from sparsyfed.tools.plot_files import PlotFile, plot_file
from sparsyfed.tools.roofline import floors
from sparsyfed.tools.step_goals import (
    BATCH_SIZES,
    MASKS,
    MODELS,
    RESNET18_SPEEDUPS,
    by_sparsity,
    resnet18,
    rows_of,
    speedup,
)

Result = Mapping[str, Any]

SERIES = (drawing.SPARSE, drawing.THIRD, drawing.DENSE, drawing.FOURTH, drawing.MUTED)
BOUNDS = {sparsity: bound for sparsity, bound, _ in RESNET18_SPEEDUPS}


def draw_all(result: Result) -> list[PlotFile]:
    """The plots for which there are rows. Same result, same bytes."""

    def plot(file_name: str, caption: str, draw: Callable[[Figure, Result], None]) -> PlotFile:
        return plot_file(file_name, caption, lambda figure: draw(figure, result))

    plots = [
        plot(
            "step-speedup.svg",
            "ResNet-18, batch 16: how many times faster than dense PyTorch, by sparsity and masks; "
            "whiskers are quartiles, dashes the bounds.",
            _speedup,
        ),
        plot(
            "step-models.svg",
            "Every model with random masks: how many times faster than dense PyTorch, by sparsity; "
            "the dashed line is as fast.",
            _models,
        ),
        plot(
            "step-memory.svg",
            "ResNet-18, batch 16: growth of the process over what it was before the model.",
            _memory,
        ),
    ]
    if result["roofline"] is not None:
        caption = (
            "ResNet-18, batch 16, random masks: the measured step, and what each of its parts would "
            "take alone at the measured ceilings."
        )
        plots.append(plot("step-roofline.svg", caption, _roofline))
    return plots


def _lines(
    axes: Axes, rows: Sequence[Mapping[str, Any]], color: str, label: str, style: str = "-"
) -> None:
    """Speed-up over sparsity, with quartiles."""
    ordered = [row for _, row in sorted(by_sparsity(rows).items())]
    middle = [speedup(row) for row in ordered]
    spread = [row["speedup"] for row in ordered]
    below = [m - s["low"] for m, s in zip(middle, spread, strict=True)]
    above = [s["high"] - m for m, s in zip(middle, spread, strict=True)]
    places = [f"{row['sparsity']:.0%}" for row in ordered]
    axes.errorbar(
        places, middle, (below, above), color=color, label=label, marker="o", ms=4, linestyle=style
    )


def _speedup(figure: Figure, result: Result) -> None:
    axes = figure.add_subplot()
    kinds = [(budget, masks) for budget in ("global", "erk") for masks in MASKS]
    for number, (budget, masks) in enumerate(kinds):
        rows = resnet18(result["steps"], masks=masks, budget=budget)
        rows = [row for row in rows if row["sparsity"] in BOUNDS]
        if rows:
            style = ":" if budget == "erk" else "-"
            color = SERIES[number % len(MASKS)]
            _lines(axes, rows, color, f"{masks}, {budget}", style)
    for place, bound in enumerate(BOUNDS.values()):
        axes.plot([place - 0.2, place + 0.2], [bound] * 2, "--", color=drawing.MUTED)
    axes.set_xlabel("sparsity")
    axes.set_ylabel("times faster")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=2, fontsize=9)


def _models(figure: Figure, result: Result) -> None:
    panels = figure.subplots(1, len(BATCH_SIZES), sharey=True)
    for axes, batch_size in zip(panels, BATCH_SIZES, strict=True):
        same = {"isa": "best", "chosen_kernels": True, "memory": None, "masks": "random"}
        for model, color in zip(MODELS, SERIES, strict=True):
            rows = rows_of(
                result["steps"], model=model, batch_size=batch_size, budget="global", **same
            )
            if rows:
                _lines(axes, rows, color, model)
        axes.axhline(1, linestyle="--", color=drawing.MUTED, linewidth=1)
        axes.set_title(f"batch {batch_size}", fontsize=10)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(axis="x", labelsize=8)
    panels[0].set_ylabel("times faster")
    panels[0].legend(fontsize=8, loc="upper left")


def _memory(figure: Figure, result: Result) -> None:
    axes = figure.add_subplot()
    rows = [row for row in result["memory"] if row["model"] == "resnet18"]
    labels = ["dense PyTorch"] if rows else []
    sides = [rows[0]["dense"]] if rows else []
    for row in rows:
        labels.append(f"{row['sparsity']:.0%} {row['memory'] or ''}".strip())
        sides.append(row["session"])
    heights = [(side["peak_bytes"] - side["before_bytes"]) / 2**20 for side in sides]
    colors = [drawing.DENSE] + [drawing.SPARSE] * len(rows)
    bars = axes.bar(labels, heights, 0.6, color=colors[: len(heights)])
    axes.bar_label(bars, [f"{height:.0f}" for height in heights], padding=3)
    axes.set_ylabel("MiB")
    axes.grid(visible=False, axis="x")


def _roofline(figure: Figure, result: Result) -> None:
    axes = figure.add_subplot()
    rows = by_sparsity(resnet18(result["steps"], masks="random"))
    shown = [rows[sparsity] for sparsity in BOUNDS if sparsity in rows]
    parts = [step_floors(result, row) for row in shown]
    names = ["measured", *(parts[0] if parts else ())]
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        heights = [
            1e3 * (row["seconds"]["median"] if name == "measured" else part[name])
            for row, part in zip(shown, parts, strict=True)
        ]
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(shown))]
        color = [drawing.INK, *SERIES][number % (1 + len(SERIES))]
        axes.bar(places, heights, 0.92 * width, color=color, label=name)
    axes.set_xticks(range(len(shown)), [f"{row['sparsity']:.0%}" for row in shown])
    axes.set_xlabel("sparsity")
    axes.set_ylabel("milliseconds")
    axes.grid(visible=False, axis="x")
    axes.legend(fontsize=8)


def step_floors(result: Result, row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the parts of a measured step at the ceilings of the machine."""
    done = sum(work["done"] for work in row["multiply_adds"].values())
    return floors(result["roofline"], done, row["traffic_bytes"])
