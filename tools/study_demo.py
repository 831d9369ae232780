"""The demo's comparison over several seeds: `python -m sparsyfed.tools.study_demo --date YYYY-MM-DD`.

Both systems run on virtual devices in this process, on the runtime and with the average of the
demo; only the broker is left out, which changes no model. Writes watch.json and watch.md.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import sparsyfed
from sparsyfed.devices.profiles import find_profile
from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.tools import watch_job
from sparsyfed.tools.in_process import FederatedJob, FinishedRound
from sparsyfed.tools.machine import describe_machine
from sparsyfed.tools.study import command_line, figures_of, study_parser
from sparsyfed.tools.watch_data import load_fleet

SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class System:
    """One row of the table."""

    name: str
    title: str
    job: Callable[[int, int], FederatedJob]
    beta: float
    start_sparsity: float = 0.0


_SPARSYFED = f"SparsyFed {watch_job.SPARSITY:.0%}, β = {watch_job.BETA}"
SYSTEMS = (
    System("dense", "dense FedAvg, β = 1", watch_job.dense_job, 1.0),
    System("sparsyfed", f"{_SPARSYFED}, dense start", watch_job.sparse_job, watch_job.BETA),
    System(
        "sparsyfed-presparsified",
        f"{_SPARSYFED}, presparsified start",
        watch_job.sparse_job,
        watch_job.BETA,
        watch_job.SPARSITY,
    ),
)


def study(
    seeds: Sequence[int], rounds: int, *, workers: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs every system for each seed; returns settings and results as plain values."""
    memory_bytes = find_profile(watch_job.DEVICE_PROFILE).memory_bytes
    runs = []
    with tempfile.TemporaryDirectory(prefix="sparsyfed-study-") as temporary:
        folders = load_fleet().save(Path(temporary))
        for seed in seeds:
            for system in SYSTEMS:
                started = time.monotonic()
                finished = list(
                    watch_job.run_virtually(
                        system.job(rounds, seed),
                        system.beta,
                        folders,
                        memory_bytes,
                        workers=workers,
                        start_sparsity=system.start_sparsity,
                    )
                )
                runs.append({"system": system.name, "seed": seed, **_figures(finished)})
                say(
                    f"{system.name}, seed {seed}: {runs[-1]['final_accuracy']:.1%} "
                    f"in {time.monotonic() - started:.0f} s"
                )
    _, state = watch_job.compile_watch(watch_job.BETA, 0)
    return {
        "model": watch_job.MODEL,
        "accuracy_definition": watch_job.accuracy_definition(rounds),
        "dense_update_bytes": watch_job.dense_bytes(state),
        "jobs": {
            system.name: {
                "beta": system.beta,
                "start_sparsity": system.start_sparsity,
                **_settings(system.job(rounds, 0)),
            }
            for system in SYSTEMS
        },
        "runs": runs,
    }


def _settings(job: FederatedJob) -> dict[str, Any]:
    names = ["rounds", "sparsity", "learning_rate", "final_learning_rate"]
    names += ["batch_size", "epochs", "weight_decay"]
    return {name: getattr(job, name) for name in names}


def _figures(rounds: Sequence[FinishedRound]) -> dict[str, Any]:
    accuracies = [entry.accuracy for entry in rounds]
    later = [max(entry.update_bytes) for entry in rounds[1:]]
    last = rounds[-1].multiply_adds
    return {
        "final_accuracy": watch_job.final_accuracy(accuracies),
        "accuracy": accuracies,
        "density_down": [entry.density_down for entry in rounds],
        "largest_update_bytes_after_round_1": max(later, default=max(rounds[0].update_bytes)),
        "multiply_adds_of_last_round": last.forward + last.d_input + last.d_weight,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The results as a page: a table, and below it how they were made."""
    seeds = sorted({run["seed"] for run in result["runs"]})
    machine = result["machine"]
    rows = [_row(system, seeds, result) for system in SYSTEMS]
    heading = ["system", *(f"seed {seed}" for seed in seeds), "mean", "largest update, bytes"]
    heading += ["dense / update", "final density", "multiply-adds"]
    differences = [
        f"- {system.title}, minus dense FedAvg, mean over the seeds: "
        f"{100 * (_mean(system.name, result) - _mean('dense', result)):+.1f} points."
        for system in SYSTEMS[1:]
    ]
    job = result["jobs"]["dense"]
    what = (
        "Eight wearers are eight devices, two wearers are held out; every device trains in every "
        f"round. Accuracy: {result['accuracy_definition']}. Updates: the largest of any device "
        "after round 1, as plain CSR; dense, all values as 32-bit floats. Multiply-adds: all "
        "devices, last round."
    )
    how = (
        f"Model `{result['model']}`, {job['rounds']} rounds, {job['epochs']} local epoch, batches "
        f"of {job['batch_size']}, SGD with weight decay {job['weight_decay']}, learning rate "
        f"{job['learning_rate']} → {job['final_learning_rate']} for all. The learning rates "
        "were chosen by trying some on these held-out wearers: there is no separate validation set. "
        "Native runtime, virtual devices in one process."
    )
    where = (
        f"Date {result['date']}, sparsyfed {result['version']}, {machine['platform']}, "
        f"{machine['processor']}, {machine['cpu_count']} cores. Command:"
    )
    return "\n".join(
        [
            *("# Smartwatch data: SparsyFed against dense FedAvg", "", what, ""),
            *(_line(heading), "|---|" + "---:|" * (len(heading) - 1)),
            *(*map(_line, rows), ""),
            *(*differences, ""),
            *(how, "", where, "", f"    {result['command']}", ""),
        ]
    )


def _row(system: System, seeds: Sequence[int], result: Mapping[str, Any]) -> list[str]:
    runs = {run["seed"]: run for run in result["runs"] if run["system"] == system.name}
    dense = result["dense_update_bytes"]
    update = max(run["largest_update_bytes_after_round_1"] for run in runs.values())
    if system.name == "dense":
        update = dense
    density = max(run["density_down"][-1] for run in runs.values())
    work = max(run["multiply_adds_of_last_round"] for run in runs.values())
    accuracies = [runs[seed]["final_accuracy"] for seed in seeds]
    return [
        system.title,
        *(f"{accuracy:.1%}" for accuracy in [*accuracies, _mean(system.name, result)]),
        f"{update:,}",
        f"{dense / update:.1f}",
        f"{density:.2%}",
        f"{work:,}",
    ]


def _mean(system: str, result: Mapping[str, Any]) -> float:
    runs = [run for run in result["runs"] if run["system"] == system]
    return mean(float(run["final_accuracy"]) for run in runs)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study, or takes the figures of an earlier run, and writes its two files."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = study_parser(
        "sparsyfed.tools.study_demo",
        "Compare SparsyFed and dense FedAvg on the smartwatch data over several seeds.",
    )
    parser.add_argument("--rounds", type=int, default=watch_job.ROUNDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2, help="devices that train at a time")
    parsed = parser.parse_args(given)

    def measure() -> dict[str, Any]:
        found = study(
            parsed.seeds,
            parsed.rounds,
            workers=parsed.workers,
            say=lambda text: print(text, flush=True),
        )
        return found | {
            "command": command_line(parser, given),
            "machine": describe_machine(),
            "version": sparsyfed.__version__,
        }

    figures = figures_of(parsed, "watch", measure)
    write_atomic(parsed.out / "watch.md", markdown(figures).encode())
    print(f"{parsed.out / 'watch.md'} and watch.json written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
