"""Steps of a session with threads: `sparsyfed bench threads`, in wall time.

What free cores give differs from machine to machine: beside one thread alone stand as many
processes of one thread at once, which share caches, memory and the host, but no work.
"""

import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sparsyfed.tools.bench_models import BenchModel
from sparsyfed.tools.bench_process import say
from sparsyfed.tools.bench_timing import Spread, ratio
from sparsyfed.tools.step_process import StepProcess, serve_steps

STEPS = 4
"""Steps of a side in a turn."""

MEASURED = "Wall time, median over the turns, each the median of its steps"


@dataclass(frozen=True, slots=True)
class ThreadSettings:
    """What to measure: every combination, each against one thread."""

    models: Sequence[str]
    input_shape: Sequence[int] | None = None
    batch_sizes: Sequence[int] = (16,)
    sparsities: Sequence[float] = (0.9, 0.95, 0.99)
    threads: Sequence[int] = (2,)
    turns: int = 11


def run(settings: ThreadSettings) -> dict[str, list[dict[str, Any]]]:
    """Rows of all combinations, `threads`."""
    rows = []
    for name in settings.models:
        model = BenchModel.load(name, settings.input_shape)
        for sparsity in settings.sparsities:
            state = model.masked("random", sparsity, "global", None)
            with tempfile.TemporaryDirectory(prefix="sparsyfed-bench-") as folder:
                model.artifact.save(Path(folder) / "model.sfd")
                state.save(Path(folder) / "model.sfs")
                for batch_size, threads in product(settings.batch_sizes, settings.threads):
                    say(f"{name}, batch {batch_size}, {sparsity:.2%}, {threads} threads")
                    about = {"model": name, "batch_size": batch_size, "sparsity": sparsity}
                    measured = _row(Path(folder), batch_size, threads, settings.turns)
                    rows.append(about | {"density": state.density} | measured)
    return {"threads": rows}


def _row(folder: Path, batch_size: int, threads: int, turns: int) -> dict[str, Any]:
    load = os.getloadavg()[0]
    taken: dict[str, list[float]] = {"one": [], "at_once": [], "threads": []}
    with _processes(folder, batch_size, [1] * threads + [threads]) as (*singles, team):
        for _ in range(turns):
            taken["one"].append(_turn([singles[0]]))
            taken["at_once"].append(_turn(singles))
            taken["threads"].append(_turn([team]))
    at_once = [seconds / threads for seconds in taken["at_once"]]
    return {
        "threads": threads,
        "load": load,
        "seconds": {side: asdict(Spread.of(seconds)) for side, seconds in taken.items()},
        "least_seconds": {side: min(seconds) for side, seconds in taken.items()},
        "speedup": asdict(ratio(taken["one"], taken["threads"])),
        "speedup_of_processes": asdict(ratio(taken["one"], at_once)),
    }


def _turn(sides: Sequence[Connection]) -> float:
    """Median seconds of a step where these processes step at once.

    The first and last steps of several, which others may not overlap, are left out.
    """
    margin = 1 if len(sides) == 1 else 2
    for side in sides:
        side.send(STEPS + 2 * margin)
    taken: list[float] = [seconds for side in sides for seconds in side.recv()[margin:-margin]]
    return statistics.median(taken)


@contextmanager
def _processes(
    folder: Path, batch_size: int, threads: Sequence[int]
) -> Iterator[Sequence[Connection]]:
    """Processes with a session of so many threads each, warm."""
    context = multiprocessing.get_context("spawn")
    started = []
    try:
        for count in threads:
            ours, theirs = context.Pipe()
            settings = StepProcess(str(folder), batch_size, count)
            process = context.Process(target=serve_steps, args=(theirs, settings), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        for _, connection in started:
            connection.send(2)
            connection.recv()
        yield [connection for _, connection in started]
    finally:
        for process, connection in started:
            connection.close()
            process.join()


HEADING = (
    *("model", "batch", "sparsity", "threads", "one ms", "processes ms", "threads ms"),
    *("speed-up", "quartiles", "of processes", "of the least", "load before"),
)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table on the terminal."""
    milliseconds = [1e3 * row["seconds"][side]["median"] for side in ("one", "at_once", "threads")]
    speedup, least = row["speedup"], row["least_seconds"]
    return [
        *(row["model"], str(row["batch_size"]), f"{row['sparsity']:.2%}", str(row["threads"])),
        *(f"{value:.3g}" for value in milliseconds),
        *(f"{speedup['median']:.2f}", f"{speedup['low']:.2f}-{speedup['high']:.2f}"),
        f"{row['speedup_of_processes']['median']:.2f}",
        *(f"{least['one'] / least['threads']:.2f}", f"{row['load']:.1f}"),
    ]
