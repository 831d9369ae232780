"""The step on every engine, as a page: `python -m sparsyfed.tools.study_engines --date YYYY-MM-DD`.

Writes engines.json and engines.md. Takes a quarter of an hour; leave the machine alone.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.tools import bench_engines, bench_report
from sparsyfed.tools.bench_engines import EngineSettings
from sparsyfed.tools.quantities import byte_text
from sparsyfed.tools.step_goals import MODELS
from sparsyfed.tools.study import command_line, figures_of, study_parser

SPARSITIES = (0.9, 0.95)
GOALS = (
    ("onnxruntime (stock)", None, 1.4),
    ("executorch (sparsyfed)", "resnet18", 1.0),
    ("executorch (sparsyfed)", "kws_dscnn", 0.7),
)
"""Engine, model (None: each), and the most that a step may take over eager PyTorch at 95 %."""

INTRODUCTION = """# The training step on every engine

One step of the method: power-propagation, forward, loss, backward with pruned saved inputs, SGD with weight decay;
batch 16, random masks, one thread. `eager` is PyTorch doing this step, with the fastest search for the largest
inputs that it has (kthvalue), `dense` PyTorch eager without powerprop and pruning in the better memory format,
`native` our C core; the others run the files of `sparsyfed export`, `(sparsyfed)` by our kernels as operators of
the engine, `(stock)` by its own. Times are CPU time, medians over turns in which
all engines of a row step one after the other in one process; ratios are medians of the ratios of the turns.
onnxruntime-training excludes onnxruntime from its environment: it takes turns with the native core there, and its
ratio to eager is the product of two. Memory is the resident set of a process that has nothing in it but interpreter
and engine: before any model, and at most over three steps, at a state that is dense for all engines but the native
one, which takes the memory of that sparsity. Files are what a device of a fleet is sent, and have no values of the
model, except a `.pt`, a `.pte` and the checkpoint of onnxruntime-training."""


def markdown(found: Mapping[str, Any]) -> str:
    """The page. Same figures, same bytes."""
    machine, versions = found["machine"], found["versions"]
    rows = found["engines"]
    engines = {row["engine"]: row["version"] for row in rows if row["version"]}
    named = "; ".join(v if v.startswith(e.split()[0]) else f"{e}: {v}" for e, v in engines.items())
    made = (
        f"Made by `{found['command']}` on {machine['processor']}, {machine['cpu_count']} cores, "
        f"{machine['platform']}, on {found['date']}; PyTorch {versions['torch']}; {named}. The machine was "
        "shared: ratios hold better than milliseconds."
    )
    models = list(dict.fromkeys(row["model"] for row in rows))
    parts = [INTRODUCTION, made, "## Goals", _goals(rows)]
    for model in models:
        own = [row for row in rows if row["model"] == model]
        parts += [f"## `{model}`", _table(own)]
    return "\n\n".join(parts) + "\n"


def _goals(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| engine | model | goal, over eager at 95 % | measured | |",
        "|---|---|---:|---:|---|",
    ]
    for engine, model, most in GOALS:
        for row in rows:
            if (row["engine"], row["sparsity"]) == (engine, 0.95) and model in (None, row["model"]):
                ratio = row["over_eager"]["median"]
                verdict = "reached" if ratio <= most else "missed"
                lines.append(
                    f"| {engine} | `{row['model']}` | {most:.1f} | {ratio:.2f} | {verdict} |"
                )
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| sparsity | engine | ms | over eager | quartiles | over native | process, base | process, peak | files |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        eager, memory, files = row["over_eager"], row["memory"], row["file_bytes"]
        cells = [
            f"{row['sparsity']:.0%}",
            row["engine"],
            f"{1e3 * row['seconds']['median']:.3g}",
            f"{eager['median']:.2f}",
            f"{eager['low']:.2f}–{eager['high']:.2f}",
            f"{row['over_native']['median']:.2f}",
            "" if memory is None else byte_text(memory["base_bytes"]),
            "" if memory is None else byte_text(memory["peak_bytes"]),
            "" if files is None else byte_text(files),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study, or takes the figures of an earlier run, and writes its files."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _build_parser()
    parsed = parser.parse_args(given)

    def measure() -> dict[str, Any]:
        settings = EngineSettings(parsed.models, sparsities=SPARSITIES, turns=parsed.turns)
        return bench_report.describe(command_line(parser, given)) | bench_engines.run(settings)

    figures = figures_of(parsed, "engines", measure)
    write_atomic(parsed.out / "engines.md", markdown(figures).encode())
    print(f"{parsed.out / 'engines.md'} and engines.json written")
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = study_parser(
        "sparsyfed.tools.study_engines", "Measure the training step on every engine that is here."
    )
    parser.add_argument("--turns", type=int, default=7, help="measurements (default: 7)")
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), help=f"default: {' '.join(MODELS)}"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
