"""Plots as SVG elements that take their colours from the page."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Marks in the drawing, exchanged for the page's variables so that a dark page has light lines.
INK = "#010203"
MUTED = "#010204"
GRID = "#010205"
SPARSE = "#010206"
DENSE = "#010207"
THIRD = "#010208"
FOURTH = "#010209"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SPARSE: "var(--sparse)",
    DENSE: "var(--dense)",
    THIRD: "var(--third)",
    FOURTH: "var(--fourth)",
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

# The kinds of planned buffers, by what they are for.
USES = {
    "weights, index": ("index", "weight", "working_weight", "dense"),
    "kept for backward": ("saved_input", "mask", "statistics"),
    "activations, gradients": ("activation", "gradient"),
    "tables, scratch": ("tables", "scratch"),
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing with the sentence that says how to read it."""

    title: str
    caption: str
    svg: str


def draw_plot(
    title: str,
    caption: str,
    draw: Callable[[Axes], None],
    *,
    size: tuple[float, float] = (6.2, 3.5),
) -> Plot:
    """A plot of `size` inches, drawn by `draw`. Same drawing, same bytes."""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return Plot(title, caption, _for_page(buffer.getvalue(), name, caption))


def _for_page(svg: str, name: str, caption: str) -> str:
    """The drawing as an element: colours by variable, names unique in the page, no prologue."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for mark, variable in VARIABLES.items():
        svg = svg.replace(mark, variable)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
