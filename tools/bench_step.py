"""Whole training steps against dense PyTorch: `sparsyfed bench step`.

A step is everything: power-propagation, forward, loss, backward, Top-K of saved inputs, SGD.
"""

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from sparsyfed import export
from sparsyfed.edge_runtime import MemoryPlan, Session, State, plan
from sparsyfed.tools.bench_dense import dense_step, memory_formats, reference_like
from sparsyfed.tools.bench_models import BETA, BenchModel
from sparsyfed.tools.bench_process import measure_apart, say
from sparsyfed.tools.bench_session import open_session, session_options, session_step
from sparsyfed.tools.bench_timing import Spread, best_of, ratio, take_turns
from sparsyfed.tools.bench_training import train_apart

PASSES = ("forward", "d_input", "d_weight")
COUNTED = (*PASSES, "recomputed")


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What to measure: every combination.

    `state` is a file whose masks are taken as they are, `trained_steps` adds the masks of a model
    after so many steps on `data`, or on synthetic classes. `kernels` are sets of the runtime, None
    the one it chooses; where `isa` limits both sides it is that instruction set's.
    """

    models: Sequence[str]
    input_shape: Sequence[int] | None = None
    batch_sizes: Sequence[int] = (16,)
    sparsities: Sequence[float] = (0.9, 0.95, 0.99)
    budgets: Sequence[str] = ("global",)
    masks: Sequence[str] = ("random",)
    state: str | None = None
    trained_steps: int = 0
    data: str | None = None
    kernels: Sequence[str | None] = (None,)
    memory: Sequence[str | None] = (None,)
    isa: Sequence[str] = ("best",)
    reference: bool = False
    turns: int = 11


def run(settings: StepSettings) -> dict[str, list[dict[str, Any]]]:
    """Rows of all combinations, `steps`, and how the `trainings` for trained masks went."""
    trainings = []
    rows = []
    with tempfile.TemporaryDirectory(prefix="sparsyfed-bench-") as folder:
        trained = {}
        for number, model in enumerate(settings.models):
            if not settings.trained_steps:
                break
            say(f"{model}: training {settings.trained_steps} steps")
            out = Path(folder) / f"{number}.sfs"
            steps, data = settings.trained_steps, settings.data
            trainings.append(train_apart(model, settings.input_shape, steps, data, out))
            trained[model] = str(out)
        for isa in settings.isa:
            limited = replace(settings, isa=[isa])
            if isa != "best":
                limited = replace(limited, kernels=[isa])
            asked = {"settings": asdict(limited), "trained": trained}
            rows += measure_apart("bench_step", asked, isa)
    return {"steps": rows, "trainings": trainings}


def measure(settings: Mapping[str, Any], trained: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of one instruction set, whose limits this process is under.

    `trained` has the files of trained states.
    """
    torch.set_num_threads(1)
    chosen = StepSettings(**settings)
    rows = []
    for name in chosen.models:
        model = BenchModel.load(name, chosen.input_shape)
        states = list(_states(model, chosen, trained.get(name)))
        for batch_size, (labels, state) in product(chosen.batch_sizes, states):
            about = f"{name}, batch {batch_size}, {labels['sparsity']:.2%} {labels['masks']} masks"
            say(f"{chosen.isa[0]} instructions: {about}")
            same = {"model": name, "batch_size": batch_size, "isa": chosen.isa[0], **labels}
            rows += [same | row for row in _cell(model, batch_size, state, chosen)]
    return rows


def _states(
    model: BenchModel, settings: StepSettings, trained: str | None
) -> Iterator[tuple[dict[str, Any], State]]:
    """The states to measure, each with what it is."""
    if settings.state is not None:
        state = State.load(settings.state)
        labels = {"masks": "file", "budget": None, "sparsity": 1 - state.density}
        yield {**labels, "density": state.density}, state
        return
    after = None if trained is None else State.load(trained)
    masks = list(settings.masks) + ([] if after is None else ["trained"])
    for chosen, budget, sparsity in product(masks, settings.budgets, settings.sparsities):
        state = model.masked(chosen, sparsity, budget, after)
        labels = {"masks": chosen, "budget": budget, "sparsity": sparsity}
        yield {**labels, "density": state.density}, state


def _cell(
    model: BenchModel, batch_size: int, state: State, settings: StepSettings
) -> Iterator[dict[str, Any]]:
    """Rows of one model, batch size and state: all sides in turns in this process."""
    x, y = model.batch(batch_size)
    formats = memory_formats(x)
    sides = {name: dense_step(copy.deepcopy(model.module), x, y, name) for name in formats}
    if settings.reference:
        export.load_state(model.module, state)
        changed = reference_like(model.module, BETA)
        sides["reference"] = dense_step(changed, x, y, "contiguous")
        export.load_state(model.module, model.dense)
    sessions = {}
    for kernels, memory in product(settings.kernels, settings.memory):
        session = open_session(model.artifact, state, batch_size, kernels=kernels, memory=memory)
        planned = plan(model.artifact, state, batch_size, **session_options(kernels, memory))
        labels = {"memory": memory, "traffic_bytes": traffic_bytes(planned)}
        side = f"{session.kernels} {memory}"
        sides[side], sessions[side] = session_step(session, x, y), (session, labels)
    taken = take_turns(sides, settings.turns)
    dense = {name: taken[name] for name in formats}
    whole = plan(model.artifact, model.dense, batch_size)
    for side, (session, labels) in sessions.items():
        times = _times(dense, taken.get("reference"), taken[side])
        yield {**labels, **times, **_work(session, whole)}
        session.close()


def _times(
    dense: Mapping[str, Sequence[float]], reference: Sequence[float] | None, ours: Sequence[float]
) -> dict[str, Any]:
    best = best_of(dense)
    return {
        "dense_format": best,
        "dense_seconds": {name: asdict(Spread.of(taken)) for name, taken in dense.items()},
        "seconds": asdict(Spread.of(ours)),
        "speedup": asdict(ratio(dense[best], ours)),
        "reference_seconds": None if reference is None else asdict(Spread.of(reference)),
        "speedup_over_reference": None if reference is None else asdict(ratio(reference, ours)),
    }


def _work(session: Session, whole: MemoryPlan) -> dict[str, Any]:
    """Multiply-adds that a step really did, beside those of the dense model, and memory.

    What was computed again stands beside the dense forward.
    """
    counters = session.counters
    memory = session.memory
    dense = {name: getattr(whole.macs, name) for name in PASSES}
    dense["recomputed"] = whole.macs.forward
    return {
        "kernels": session.kernels,
        "multiply_adds": {
            name: work_done(getattr(counters, name) / counters.steps, dense[name])
            for name in COUNTED
        },
        "arena_bytes": memory.arena_bytes,
        "arena_peak_bytes": memory.arena_peak_bytes,
    }


def traffic_bytes(planned: MemoryPlan) -> int:
    """Bytes that a step moves at least: each planned buffer written once and read once.

    Indices are read only; scratch and tables are left out.
    """
    moves = {"index": 1, "scratch": 0, "tables": 0}
    return sum(moves.get(buffer.kind, 2) * buffer.bytes for buffer in planned.buffers)


def work_done(done: float, dense: int) -> dict[str, float | None]:
    """Multiply-adds of a pass of one step; the share is None where the dense model has none."""
    return {"done": done, "dense": dense, "share": done / dense if dense else None}


HEADING = (
    *("model", "batch", "ISA", "kernels", "masks", "sparsity", "dense ms", "ours ms", "speed-up"),
    *("quartiles", "forward", "dX", "dW", "again", "arena"),
)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table on the terminal."""
    masks = row["masks"] if row["budget"] in (None, "global") else f"{row['masks']} {row['budget']}"
    kernels = row["kernels"] if row["memory"] is None else f"{row['kernels']} {row['memory']}"
    dense = row["dense_seconds"][row["dense_format"]]["median"]
    speedup = row["speedup"]
    shares = [row["multiply_adds"][name]["share"] for name in COUNTED]
    texts = [row["model"], str(row["batch_size"]), row["isa"], kernels, masks]
    texts += [
        f"{row['sparsity']:.2%}",
        f"{1e3 * dense:.3g}",
        f"{1e3 * row['seconds']['median']:.3g}",
    ]
    texts += [f"{speedup['median']:.2f}", f"{speedup['low']:.2f}-{speedup['high']:.2f}"]
    texts += ["-" if share is None else f"{share:.2%}" for share in shares]
    return [*texts, f"{row['arena_bytes']:,}"]
