"""What smaller numbers would save and cost: measured on a keyword spotter, written to `docs/results/numbers.md`.

    python -m sparsyfed.tools.study_numbers --date 2026-11-22 --data keywords.npz

Two questions. How much of a board's arena would be saved if the inputs that layers keep were fp16 or int8? And what
becomes of training if inputs are int8, or v is kept as fp16 between the steps? The latter is tried by rounding v after
each step: to the nearest, and by chance so that the mean is right, which small steps need to have any effect.
"""

import argparse
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sparsyfed import export
from sparsyfed.devices.feasibility import evenly_spread_state
from sparsyfed.edge_runtime import (
    Artifact,
    MemoryPlan,
    Quantization,
    Session,
    SparseTensor,
    State,
    plan,
)
from sparsyfed.edge_runtime.plan import PlannedBuffer
from sparsyfed.tools.fleet_data import Examples
from sparsyfed.tools.keyword_data import fleet_of, load_clips, split_speakers
from sparsyfed.tools.machine import describe_machine

PAGE = Path("docs/results/numbers.md")
MODEL = "kws_cnn"
SPARSITY = 0.95
BATCH = 8
COMPARED = (1, 10, 100)
STEPS = 1000
RATE = 0.1
DECAY = 1e-3
SEEDS = (0, 1, 2)
MEMORY = ("fast", "small", "layerwise")
CASES: tuple[tuple[str, float, int], ...] = (
    ("kws_cnn", 0.05, 1),
    ("kws_cnn", 0.05, 8),
    ("kws_cnn", 0.1, 8),
    ("kws_cnn", 0.3, 8),
    ("resnet8", 0.02, 1),
    ("resnet8", 0.1, 1),
    ("resnet8", 0.3, 1),
    ("kws_dscnn", 0.1, 1),
)
VALUE_BITS = {"fp16": 16.0, "int8": 8.0 + 32 / 128}
"""Of a kept value; int8 with a scale for each 128."""

Values = NDArray[np.float32]
Rounding = Callable[[Values], Values]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to store numbers: how v is rounded after a step, whether inputs are int8; and who computes."""

    name: str
    rounding: Callable[[int], Rounding] | None = None
    has_int8_inputs: bool = False
    kernels: str | None = None


def nearest(_: int) -> Rounding:
    """fp16, to the nearest."""
    return lambda v: v.astype(np.float16).astype(np.float32)


def by_chance(seed: int) -> Rounding:
    """fp16, up or down with the chances that make the mean right."""
    random = np.random.default_rng(seed)

    def rounded(v: Values) -> Values:
        near = v.astype(np.float16)
        other = np.nextafter(near, np.where(v > near, np.inf, -np.inf).astype(np.float16))
        gap = other.astype(np.float32) - near.astype(np.float32)
        share = np.divide(v - near, gap, out=np.zeros_like(v), where=gap != 0)
        return np.where(random.random(v.shape) < share, other, near).astype(np.float32)

    return rounded


VARIANTS = (
    Variant("float32"),
    Variant("float32, portable kernels", kernels="portable"),
    Variant("int8 inputs", has_int8_inputs=True),
    Variant("v as fp16, to the nearest", nearest),
    Variant("v as fp16, by chance", by_chance),
)


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description="study of smaller numbers")
    parser.add_argument("--date", required=True, help="of the page, such as 2026-11-22")
    parser.add_argument(
        "--data", type=Path, required=True, help="the keywords, as in study_keywords"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    command = f"python -m sparsyfed.tools.study_numbers --date {arguments.date} --data {arguments.data.name}"
    machine = describe_machine()
    lines = [*_memory_lines(), "", *_training_lines(arguments.data)]
    lines += [
        "",
        f"Date {arguments.date}, {machine['platform']}, {machine['processor']}, {machine['cpu_count']} cores. Command:",
        "",
        f"    {command}",
        "",
    ]
    PAGE.write_text("\n".join(lines), encoding="utf-8")


def _compiled(
    name: str, quantization: Quantization | None = None
) -> tuple[torch.nn.Module, Artifact]:
    torch.manual_seed(0)
    model = export.models.load_model(name)
    example = export.models.example_input(name)
    return model, export.compile(model, example, quantization=quantization).native


def most_alive(artifact: Artifact, planned: MemoryPlan, value_bits: float) -> int:
    """The most bytes that are alive at one step of a plan, if values of kept inputs took so many bits."""

    def taken(buffer: PlannedBuffer) -> float:
        if buffer.kind != "saved_input" or buffer.owner is None:
            return buffer.bytes
        source = artifact.operations[buffer.owner].inputs[0]
        mask = -(-artifact.tensors[source].size * planned.batch_size // 32) * 4
        return mask + (buffer.bytes - mask) * value_bits / 32

    steps = range(len(planned.steps))
    return round(
        max(
            sum(
                taken(b)
                for b in planned.buffers
                if b.is_persistent or b.first_step <= step <= b.last_step
            )
            for step in steps
        )
    )


def _memory_lines() -> Iterator[str]:
    yield "# Smaller numbers"
    yield ""
    yield "## Kept inputs"
    yield ""
    yield (
        "What fp16, or int8 with a scale for each 128, would save of all that is alive at the fullest step, portable "
        "kernels, evenly spread weights: an upper bound, since each value would have to become a float again where it "
        "is used."
    )
    yield ""
    yield "| model | density | batch | plan | arena, bytes | fp16 | int8 |"
    yield "|---|---:|---:|---|---:|---:|---:|"
    for name, density, batch in CASES:
        artifact = _compiled(name)[1]
        state = evenly_spread_state(artifact, density)
        for memory in MEMORY:
            planned = plan(artifact, state, batch, kernels="portable", memory=memory)
            whole = most_alive(artifact, planned, 32.0)
            shares = [
                1 - most_alive(artifact, planned, bits) / whole for bits in VALUE_BITS.values()
            ]
            saved = " | ".join(f"{share:.1%}" for share in shares)
            yield f"| `{name}` | {density:.0%} | {batch} | {memory} | {planned.arena_bytes:,} | {saved} |"


def _training_lines(data: Path) -> Iterator[str]:
    clips = load_clips(data)
    speakers = split_speakers(clips)
    fleet = fleet_of(clips, {"all": speakers.training}, speakers.validation)
    yield "## Training"
    yield ""
    yield (
        f'`{MODEL}` at {SPARSITY:.0%} (`budget="erk"`), batches of {BATCH}, SGD with rate {RATE:g} and weight decay '
        f"{DECAY:g} on the clips of {len(speakers.training)} speakers, tested on {len(speakers.validation)} others. "
        "Error: |v - v of float32| / |v of float32 - first v|, Euclidean, over all prunable weights, mean over the "
        f"seeds. Accuracy after {STEPS} steps. The other kernels differ by rounding alone: what grows to their error "
        "is no fault of a way to store numbers."
    )
    yield ""
    columns = [f"error, {steps} steps" for steps in COMPARED]
    columns += [*(f"seed {seed}" for seed in SEEDS), "mean accuracy"]
    yield f"| numbers | {' | '.join(columns)} |"
    yield "|---|" + "---:|" * len(columns)
    runs = {
        variant.name: [
            _train(variant, fleet.devices["all"], fleet.held_out, seed) for seed in SEEDS
        ]
        for variant in VARIANTS
    }
    exact = runs[VARIANTS[0].name]
    for name, each in runs.items():
        errors = [
            float(
                np.mean([run.error(other, steps) for run, other in zip(each, exact, strict=True)])
            )
            for steps in COMPARED
        ]
        accuracies = [run.accuracy for run in each]
        cells = [f"{error:.2%}" for error in errors]
        cells += [f"{share:.1%}" for share in (*accuracies, sum(accuracies) / len(accuracies))]
        yield f"| {name} | {' | '.join(cells)} |"


@dataclass(frozen=True, slots=True)
class Run:
    """v by the number of steps, 0 and COMPARED, and the accuracy in the end."""

    v: Mapping[int, Values]
    accuracy: float

    def error(self, other: "Run", steps: int) -> float:
        """How far v is from that of another run, by how far that has come."""
        moved = np.linalg.norm(other.v[steps] - other.v[0])
        return float(np.linalg.norm(self.v[steps] - other.v[steps]) / moved)


def _train(variant: Variant, examples: Examples, held_out: Examples, seed: int) -> Run:
    form = Quantization.of(examples.x) if variant.has_int8_inputs else None
    model, artifact = _compiled(MODEL, form)
    state = export.initial_state(model, sparsity=SPARSITY, seed=seed, budget="erk")
    rounding = None if variant.rounding is None else variant.rounding(seed)
    order = np.random.default_rng(seed)
    v = {0: _prunable(state)}
    for step in range(STEPS):
        rows = order.choice(len(examples.y), BATCH, replace=False)
        with Session.open(artifact, state, BATCH, kernels=variant.kernels) as session:
            session.step(examples.x[rows], examples.y[rows], learning_rate=RATE, weight_decay=DECAY)
            state = session.state()
        if rounding is not None:
            state = _rounded(state, rounding)
        if step + 1 in COMPARED:
            v[step + 1] = _prunable(state)
    with Session.open(artifact, state, BATCH, kernels=variant.kernels) as session:
        _, correct = session.evaluate(held_out.x, held_out.y)
    assert correct is not None
    return Run(v, correct / len(held_out.y))


def _prunable(state: State) -> Values:
    values = [np.asarray(t.value) for t in state.tensors if isinstance(t, SparseTensor)]
    return np.concatenate(values)


def _rounded(state: State, rounding: Rounding) -> State:
    tensors = [
        replace(t, value=array("f", rounding(np.asarray(t.value)).tobytes()))
        if isinstance(t, SparseTensor)
        else t
        for t in state.tensors
    ]
    return replace(state, tensors=tuple(tensors))


if __name__ == "__main__":
    main()
