"""Plots as SVG files of their own, beside a page of Markdown."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

from sparsyfed.tools import drawing

# A file can't take the colours of the page: dark on white reads in both of its modes.
COLORS = {
    drawing.INK: "#1b1f24",
    drawing.MUTED: "#8c959f",
    drawing.GRID: "#e3e6ea",
    drawing.SPARSE: "#0a6e5c",
    drawing.DENSE: "#9a6700",
    drawing.THIRD: "#3b64ad",
    drawing.FOURTH: "#a03a5a",
}


@dataclass(frozen=True, slots=True)
class PlotFile:
    """A drawing, its file beside the page, and the sentence that says how to read it."""

    file_name: str
    caption: str
    svg: str


def plot_file(file_name: str, caption: str, draw: Callable[[Figure], None]) -> PlotFile:
    """The plot that `draw` draws. Same drawing, same bytes."""
    with mpl.rc_context({**drawing.STYLE, "svg.hashsalt": file_name}):
        figure = Figure(figsize=(7.6, 3.8), layout="constrained", facecolor="white")
        draw(figure)
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=metadata)
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    for mark, color in COLORS.items():
        svg = svg.replace(mark, color)
    return PlotFile(file_name, caption, re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE))
