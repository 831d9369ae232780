"""What the demo writes: report.json, report.html, and a summary for the terminal."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import sparsyfed
from sparsyfed.coordinator import DeviceResult, JobResult, RoundFinished
from sparsyfed.devices.profiles import DeviceProfile
from sparsyfed.edge_runtime import State, plan
from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.tools import watch_job
from sparsyfed.tools.in_process import FederatedJob, FinishedRound
from sparsyfed.tools.machine import describe_machine
from sparsyfed.tools.quantities import byte_text, count_text, optional_bytes
from sparsyfed.tools.report import render
from sparsyfed.tools.report_plots import native_devices

FORMAT = 1
PACKAGES = ("matplotlib", "numpy", "paho-mqtt", "scipy", "seglearn", "torch")


@dataclass(frozen=True, slots=True)
class DemoRun:
    """Everything that a run of the demo has found."""

    job: FederatedJob
    profiles: Mapping[str, DeviceProfile]  # by device
    initial: State
    result: JobResult
    dense: tuple[FinishedRound, ...]
    held_out_examples: int
    seconds: float
    command: str


def build_report(run: DemoRun) -> dict[str, Any]:
    """The report as plain values for JSON. Bytes, counts of multiply-adds and rounds are integers.

    What an engine does not tell is None: the arena and the multiply-adds of a device, and the
    multiply-adds of the whole run if a device of it does not count.

    Of a device, `largest_round` is the round with the largest plan, the first of equals, and
    `last_round` the latest. `planned_arena_bytes` and `arena_peak_bytes` are those of the former,
    `multiply_adds` is the sum over the kinds of the latter.
    """
    sparse = [entry.accuracy for entry in run.result.rounds if entry.accuracy is not None]
    dense = [entry.accuracy for entry in run.dense]
    artifact, final = run.result.artifact, run.result.state
    return {
        "format": FORMAT,
        "final_accuracy": watch_job.final_accuracy(sparse),
        "last_round_accuracy": sparse[-1],
        "dense_reference_accuracy": watch_job.final_accuracy(dense),
        "dense_reference_last_round_accuracy": dense[-1],
        "accuracy_definition": watch_job.accuracy_definition(run.job.rounds),
        "dense_update_bytes": watch_job.dense_bytes(run.initial),
        "seed": run.job.seed,
        "command": run.command,
        "seconds": round(run.seconds, 3),
        "machine": describe_machine(),
        "versions": _versions(),
        "job": {"model": watch_job.MODEL, "beta": artifact.beta, **_settings(run.job)},
        "model": {
            "prunable": run.initial.positions,
            "dense": watch_job.dense_bytes(run.initial) // 4 - run.initial.positions,
            "artifact": artifact.identity,
        },
        "data": {"held_out_examples": run.held_out_examples},
        "rounds": [_round(entry) for entry in run.result.rounds],
        "devices": [_device(entry, run.profiles[entry.id]) for entry in run.result.devices],
        "dense_reference": _dense(run),
        "whole_run": _whole_run(run),
        "memory_parts": {
            "initial model": dict(plan(artifact, run.initial, run.job.batch_size).parts),
            "trained model": dict(plan(artifact, final, run.job.batch_size).parts),
        },
    }


def _settings(job: FederatedJob) -> dict[str, Any]:
    settings = asdict(job)
    del settings["seed"]
    return settings


def _round(entry: RoundFinished) -> dict[str, Any]:
    return {**entry.to_mapping(), "seconds": round(entry.seconds, 3)}


def _device(entry: DeviceResult, profile: DeviceProfile) -> dict[str, Any]:
    largest, last = entry.peak.to_mapping(), entry.latest.to_mapping()
    work = last["multiply_adds"]
    return {
        "id": entry.id,
        "backend": last["backend"],
        "engine": last["engine"],
        "profile": profile.name,
        "memory_bytes": profile.memory_bytes,
        "rounds": entry.rounds,
        "examples": last["examples"],
        "planned_arena_bytes": largest["planned_arena_bytes"],
        "arena_peak_bytes": largest["arena_peak_bytes"],
        "base_rss_bytes": last["base_rss_bytes"],
        "peak_rss_bytes": last["peak_rss_bytes"],
        "multiply_adds": None if work is None else sum(work.values()),
        "largest_round": largest,
        "last_round": last,
    }


def _dense(run: DemoRun) -> dict[str, Any]:
    job = watch_job.dense_job(run.job.rounds, run.job.seed)
    rounds = [
        {
            "round": entry.round,
            "accuracy": entry.accuracy,
            "bytes_down": entry.bytes_down,
            "bytes_up": sum(entry.update_bytes),
            "multiply_adds": asdict(entry.multiply_adds),
            "seconds": round(entry.seconds, 3),
        }
        for entry in run.dense
    ]
    return {"beta": 1.0, **_settings(job), "rounds": rounds}


def _whole_run(run: DemoRun) -> dict[str, int | None]:
    """Totals of all rounds and devices; bytes both ways. Dense bytes are values alone, without messages."""
    rounds = run.result.rounds
    counted = all(device.latest.multiply_adds is not None for device in run.result.devices)
    work = sum(sum(entry.multiply_adds.values()) for entry in rounds)
    return {
        "bytes": sum(entry.bytes_down + entry.bytes_up for entry in rounds),
        "dense_bytes": sum(2 * entry.devices for entry in rounds)
        * watch_job.dense_bytes(run.initial),
        "multiply_adds": work if counted else None,
        "dense_multiply_adds": sum(
            sum(asdict(entry.multiply_adds).values()) for entry in run.dense
        ),
    }


def _versions() -> dict[str, str]:
    versions = {"sparsyfed": sparsyfed.__version__, "python": platform.python_version()}
    return {**versions, **{name: metadata.version(name) for name in PACKAGES}}


def save_report(report: Mapping[str, Any], folder: Path) -> None:
    """Writes report.json and report.html into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    write_atomic(folder / "report.html", render(report).encode())


def summary(report: Mapping[str, Any], folder: Path) -> str:
    """The result in a few lines."""
    dense = report["dense_update_bytes"]
    largest = max((entry["update_bytes"] for entry in report["rounds"][1:]), default=0)
    reference = f"dense FedAvg {report['dense_reference_accuracy']:.1%}"
    how = report["accuracy_definition"]
    lines = [f"accuracy        {report['final_accuracy']:.1%}, {reference} ({how})"]
    if largest:
        lines.append(
            f"update          {byte_text(largest)} at most after round 1, dense "
            f"{byte_text(dense)}: {dense / largest:.1f} times smaller"
        )
    lines += _memory_lines(report)
    total = report["whole_run"]
    whole = f"{byte_text(total['bytes'])} both ways, dense {byte_text(total['dense_bytes'])}"
    if total["multiply_adds"] is not None:
        done = sum(device["multiply_adds"] for device in report["devices"])
        last = sum(report["dense_reference"]["rounds"][-1]["multiply_adds"].values())
        lines.append(
            f"multiply-adds   {count_text(done)} in the last round, dense {count_text(last)}: "
            f"{last / done:.1f} times fewer"
        )
        whole += f"; {count_text(total['multiply_adds'])} multiply-adds, "
        whole += f"dense {count_text(total['dense_multiply_adds'])}"
    lines.append(f"whole run       {whole}")
    lines.append(f"report          {folder / 'report.html'}")
    return "\n".join(lines)


def _memory_lines(report: Mapping[str, Any]) -> list[str]:
    """The arenas of native devices, and what the processes of the others took, by engine."""
    lines, native = [], native_devices(report)
    if native:
        most = max(device["largest_round"]["planned_arena_bytes"] for device in native)
        last = max(device["last_round"]["planned_arena_bytes"] for device in native)
        exact = all(
            device[name]["planned_arena_bytes"] == device[name]["arena_peak_bytes"]
            for device in native
            for name in ("largest_round", "last_round")
        )
        verdict = "equals the plan to the byte" if exact else "DIFFERS from the plan"
        lines.append(
            f"memory          {byte_text(most)} in the largest round, {byte_text(last)} in the last; "
            f"measured {verdict}"
        )
    others = [device for device in report["devices"] if device not in native]
    return lines + [
        f"{'':16}{device['id']}, {device['engine']}: process {optional_bytes(device['base_rss_bytes'])} "
        f"before any model, {optional_bytes(device['peak_rss_bytes'])} at most"
        for device in others
    ]
