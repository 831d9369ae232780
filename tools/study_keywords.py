"""What trains best on a microboard: `python -m sparsyfed.tools.study_keywords --data FILE --date YYYY-MM-DD`.

Chooses learning rates, trains dense-narrow and sparse-wide keyword spotters, measures them on an emulated board, trains
the recommended one on boards and Linux devices in one fleet, and writes keywords.json, keywords.md and its plots. Each
figure is kept as soon as it is there: the same command runs only the trainings that are missing, and what depends on
the firmware, the steps measure and mixed, anew each time.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.edge_runtime.kernels import find_kernels, kernels_name
from sparsyfed.tools.bench_report import describe
from sparsyfed.tools.keyword_boards import board_settings, measure_point
from sparsyfed.tools.keyword_data import Clips, load_clips, split_speakers
from sparsyfed.tools.keyword_figures import Figures
from sparsyfed.tools.keyword_fleet import MixedRun
from sparsyfed.tools.keyword_page import markdown
from sparsyfed.tools.keyword_plots import draw_all
from sparsyfed.tools.keyword_points import MEASURED, ROUNDS
from sparsyfed.tools.keyword_results import (
    compared_results,
    longer_tasks,
    longest_tasks,
    mixed_points,
    training_tasks,
    tuning_tasks,
)
from sparsyfed.tools.keyword_training import Task, run
from sparsyfed.tools.study import command_line, study_parser

STEPS = ("tune", "train", "longer", "longest", "measure", "mixed")
Say = Callable[[str], None]


def train(tasks: Iterable[Task], figures: Figures, clips: Clips, workers: int, say: Say) -> None:
    """Does the runs that are not among the figures yet, so many at a time."""
    torch.set_num_threads(1)
    wanted = [task for task in tasks if figures.find(task.purpose, task.settings()) is None]
    speakers = split_speakers(clips)
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        # Models are compiled here: what captures them keeps state of its own for the process.
        running = {
            pool.submit(run, task, task.point.beginning(task.seed), clips, speakers): task
            for task in wanted
        }
        try:
            for done, future in enumerate(as_completed(running), start=1):
                task, found = running[future], future.result()
                figures.put(task.purpose, task.settings(), found)
                left = (time.monotonic() - started) / done * (len(wanted) - done) / 60
                say(
                    f"{task.purpose}, {task.point.name}, rate {task.rate:g}, seed {task.seed}: "
                    f"{found['final_accuracy']:.1%}; {len(wanted) - done} to go, about {left:.0f} min"
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def measure(figures: Figures, say: Say) -> None:
    """Measures every point on the board, also those whose figures are there."""
    for point, batch_size in MEASURED:
        found = measure_point(point, batch_size)
        figures.put("boards", board_settings(point, batch_size), found)
        say(
            f"{point.name}, batch {batch_size}: {found['ram_bytes']:,} bytes of RAM, "
            f"{found['step_ticks']:,} instructions"
        )


def train_mixed(figures: Figures, clips: Clips, say: Say) -> None:
    """Trains the recommended point and the spotter on boards and Linux devices together."""
    for result in mixed_points(compared_results(figures)):
        mixed = MixedRun(result.point, result.rate)
        figures.put("mixed", mixed.settings(), mixed.run(clips, say))


def write_page(figures: Figures, out: Path) -> list[Path]:
    """Writes page and plots from the figures alone."""
    plots = draw_all(compared_results(figures))
    for plot in plots:
        write_atomic(out / plot.file_name, plot.svg.encode())
    write_atomic(out / "keywords.md", markdown(figures, plots).encode())
    return [out / "keywords.md", *(out / plot.file_name for plot in plots)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study, or some of its steps, and writes its files."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _build_parser()
    parsed = parser.parse_args(given)
    command = command_line(parser, _portable(given))
    steps = () if parsed.page_only else parsed.steps
    parsed.out.mkdir(parents=True, exist_ok=True)
    figures = Figures(parsed.out / "keywords.json")

    def say(text: str) -> None:
        print(text, flush=True)

    clips = None if parsed.data is None else load_clips(parsed.data)
    for step in steps:
        figures.describe(_about(parsed, step, command, figures))
        if step == "measure":
            measure(figures, say)
        elif clips is None:
            raise ConfigurationError(f"got no --data, wanted the file of features to {step} on")
        elif step == "mixed":
            train_mixed(figures, clips, say)
        else:
            train(_tasks(step, figures), figures, clips, parsed.workers, say)
    if figures.content["runs"] and figures.content["boards"]:
        say(f"{', '.join(map(str, write_page(figures, parsed.out)))} written")
    else:
        say("no page yet: points are to be trained and measured")
    return 0


def _tasks(step: str, figures: Figures) -> list[Task]:
    if step == "tune":
        return tuning_tasks(ROUNDS)
    if step == "train":
        return training_tasks(figures, ROUNDS)
    return longer_tasks(figures) if step == "longer" else longest_tasks(figures)


def _portable(given: Sequence[str]) -> list[str]:
    """The arguments without the folders of this machine."""

    def short(text: str) -> str:
        return Path(text).name if Path(text).is_absolute() else text

    return ["=".join(map(short, each.split("=", 1))) for each in given]


def _about(parsed: argparse.Namespace, step: str, command: str, figures: Figures) -> dict[str, Any]:
    """How a step was done; a command is kept for each."""
    about = describe(command) | {"date": parsed.date.isoformat()}
    about["commands"] = {**figures.content.get("commands", {}), step: about.pop("command")}
    return about | {"kernels": kernels_name(find_kernels(None))}


def _build_parser() -> argparse.ArgumentParser:
    parser = study_parser(
        "sparsyfed.tools.study_keywords",
        "Compare dense-narrow and sparse-wide keyword spotters on a microboard.",
    )
    parser.add_argument("--data", type=Path, help="npz file of features, see keyword_data.py")
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=STEPS, help=f"default: {' '.join(STEPS)}"
    )
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default: 1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
