"""Time and memory of a training step in full: `python -m sparsyfed.tools.study_step --date YYYY-MM-DD`.

Measures the models and settings that the goals of the project name, and the ceilings of the
machine; writes step.json, step.md and its plots. Takes an hour or more; leave the machine alone.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.tools import bench_layer, bench_memory, bench_report, bench_step
from sparsyfed.tools.bench_layer import LayerSettings
from sparsyfed.tools.bench_memory import MemorySettings
from sparsyfed.tools.bench_step import StepSettings
from sparsyfed.tools.commands.bench import DEFAULT_LAYERS
from sparsyfed.tools.roofline import measure_roofline
from sparsyfed.tools.step_goals import BATCH_SIZES, MODELS
from sparsyfed.tools.step_page import markdown
from sparsyfed.tools.step_plots import draw_all
from sparsyfed.tools.study import command_line, figures_of, study_parser

SPARSITIES = (0.9, 0.95, 0.99)
DEEP = "resnet18"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    turns: int
    trained_steps: int
    data: str | None
    memory: Sequence[str]
    models: Sequence[str] = MODELS
    batch_sizes: Sequence[int] = BATCH_SIZES
    layers: Sequence[Sequence[int]] = DEFAULT_LAYERS


def step_parts(extent: Extent) -> list[StepSettings]:
    """The step measurements, each for one question."""
    at_95 = StepSettings([DEEP], sparsities=(0.95,), turns=extent.turns)
    limited = [isa for isa in ("avx2", "sse2") if isa in available_kernels()]
    parts = [
        # Masks and budgets.
        replace(
            at_95,
            sparsities=SPARSITIES,
            masks=("random", "initial"),
            budgets=("global", "erk"),
            trained_steps=extent.trained_steps,
            data=extent.data,
            reference=True,
        ),
        replace(at_95, isa=limited),
        replace(at_95, batch_sizes=(4, 64)),
        replace(at_95, kernels=("portable",)),
        # Every model, from dense to very sparse.
        replace(
            at_95,
            models=extent.models,
            batch_sizes=extent.batch_sizes,
            sparsities=(0.0, 0.5, 0.75, *SPARSITIES),
        ),
    ]
    if extent.memory:
        parts.append(replace(at_95, memory=extent.memory))
    return parts


def study(extent: Extent) -> dict[str, Any]:
    """Measures everything, what takes long last; returns plain values."""
    layers = LayerSettings(extent.layers, sparsities=SPARSITIES, turns=extent.turns)
    memory = MemorySettings([DEEP], sparsities=SPARSITIES, memory=extent.memory or [None])
    result: dict[str, Any] = {
        "roofline": measure_roofline(),
        **bench_memory.run(memory),
        **bench_layer.run(layers),
        "steps": [],
        "trainings": [],
    }
    for part in step_parts(extent):
        found = bench_step.run(part)
        chosen = {"chosen_kernels": list(part.kernels) == [None]}
        result["steps"] += [row | chosen for row in found["steps"]]
        result["trainings"] += found["trainings"]
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study, or takes the figures of an earlier run, and writes its files."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _build_parser()
    parsed = parser.parse_args(given)

    def measure() -> dict[str, Any]:
        data = None if parsed.data is None else str(parsed.data.absolute())
        extent = Extent(parsed.turns, parsed.trained, data, parsed.memory)
        return bench_report.describe(command_line(parser, given)) | study(extent)

    figures = figures_of(parsed, "step", measure)
    notes = None if parsed.notes is None else parsed.notes.read_text(encoding="utf-8")
    plots = draw_all(figures)
    for plot in plots:
        write_atomic(parsed.out / plot.file_name, plot.svg.encode())
    write_atomic(parsed.out / "step.md", markdown(figures, plots, notes).encode())
    print(f"{parsed.out / 'step.md'}, step.json and {len(plots)} plots written")
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = study_parser(
        "sparsyfed.tools.study_step",
        "Measure a training step in full against dense PyTorch, and the machine.",
    )
    parser.add_argument("--turns", type=int, default=7, help="measurements (default: 7)")
    parser.add_argument(
        "--trained", type=int, default=300, help="steps before trained masks (default: 300)"
    )
    parser.add_argument("--data", type=Path, help="folder with x.npy and y.npy to train on")
    parser.add_argument(
        "--memory",
        nargs="*",
        default=["fast", "small"],
        help="plans of the runtime (default: fast small)",
    )
    parser.add_argument("--notes", type=Path, help="Markdown that becomes the page's last section")
    return parser


if __name__ == "__main__":
    sys.exit(main())
