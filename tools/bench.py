"""Times whole training steps against dense PyTorch: `python -m sparsyfed.tools.bench`.

Both sides run in one process, on one thread, in turns; a figure is the median over the turns. A step
is everything: power-propagation, forward, loss, backward, Top-K of saved activations, SGD.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sparsyfed import export
from sparsyfed.edge_runtime import Session, plan

INPUT_SHAPES: dict[str, tuple[int, ...]] = {
    "watch_cnn": (6, 256),
    "kws_dscnn": (1, 49, 10),
    "resnet8": (3, 32, 32),
    "resnet18": (3, 32, 32),
}


@dataclass(frozen=True, slots=True)
class StepTiming:
    """One cell of the table: seconds of a step, medians, and what the plan says of it."""

    model: str
    batch_size: int
    sparsity: float
    dense_seconds: float
    sparse_seconds: float
    speedup: float
    speedup_low: float
    speedup_high: float
    multiply_adds: int
    arena_bytes: int


def dense_step(model: nn.Module, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    """Return one training step of the plain PyTorch model: forward, loss, backward, SGD."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=1e-3)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y).long()

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def alternate(steps: Sequence[Callable[[], object]], turns: int) -> list[list[float]]:
    """Return CPU seconds of each step function, `turns` times, one after the other in each turn."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(turns + 1):
        for taken, step in zip(seconds, steps, strict=True):
            start = time.process_time()
            step()
            if turn > 0:  # the first turn warms caches and allocators
                taken.append(time.process_time() - start)
    return seconds


def time_step(name: str, batch_size: int, sparsity: float, turns: int) -> StepTiming:
    """Measure one model at one batch size and sparsity."""
    shape = INPUT_SHAPES[name]
    model = export.models.load_model(name)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((batch_size, *shape), dtype=np.float32)
    artifact = export.compile(model, torch.from_numpy(x), beta=1.25, loss="cross_entropy").native
    y = generator.integers(0, artifact.tensors[artifact.output].size, batch_size).astype(np.int32)
    state = export.initial_state(model, beta=1.25, sparsity=sparsity, seed=0)
    planned = plan(artifact, state, batch_size)
    with Session.open(artifact, state, batch_size=batch_size) as session:
        dense, sparse = alternate(
            [
                dense_step(model, x, y),
                lambda: session.step(x, y, learning_rate=1e-3, weight_decay=1e-3),
            ],
            turns,
        )
    ratios = sorted(a / b for a, b in zip(dense, sparse, strict=True))
    return StepTiming(
        model=name,
        batch_size=batch_size,
        sparsity=sparsity,
        dense_seconds=statistics.median(dense),
        sparse_seconds=statistics.median(sparse),
        speedup=statistics.median(ratios),
        speedup_low=ratios[len(ratios) // 4],
        speedup_high=ratios[-1 - len(ratios) // 4],
        multiply_adds=planned.macs.total,
        arena_bytes=planned.arena_bytes,
    )


def build_parser() -> argparse.ArgumentParser:
    """The options of the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsyfed.tools.bench",
        description="Time whole training steps against dense PyTorch, one thread, in turns.",
        epilog="example:\n  python -m sparsyfed.tools.bench --models watch_cnn --sparsity 0.95",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models", nargs="+", choices=INPUT_SHAPES, default=["watch_cnn", "kws_dscnn", "resnet8"]
    )
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.0, 0.9, 0.95, 0.99])
    parser.add_argument("--batch-size", nargs="+", type=int, default=[16])
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print it with machine and date; returns the exit code."""
    options = build_parser().parse_args(arguments)
    torch.set_num_threads(1)
    cells = [
        (m, b, s) for m in options.models for b in options.batch_size for s in options.sparsity
    ]
    timings = []
    for number, (model, batch_size, sparsity) in enumerate(cells, 1):
        print(f"\r{number} of {len(cells)}: {model} ", end="", file=sys.stderr, flush=True)
        timings.append(time_step(model, batch_size, sparsity, options.turns))
    print(file=sys.stderr)
    where = f"{platform.machine()}, {platform.system()}, PyTorch {torch.__version__}, one thread"
    when = datetime.now(UTC).date().isoformat()
    if options.json:
        print(
            json.dumps(
                {"machine": where, "date": when, "steps": [asdict(t) for t in timings]}, indent=2
            )
        )
        return 0
    print(f"portable kernels against dense PyTorch eager; {where}; {when}")
    print(
        f"{'model':<10} {'batch':>5} {'sparsity':>8} {'dense ms':>9} {'ours ms':>9}"
        f" {'speed-up (quartiles)':>22} {'arena':>12}"
    )
    for t in timings:
        spread = f"{t.speedup:.2f} ({t.speedup_low:.2f} to {t.speedup_high:.2f})"
        print(
            f"{t.model:<10} {t.batch_size:>5} {t.sparsity:>8.2%} {t.dense_seconds * 1e3:>9.2f}"
            f" {t.sparse_seconds * 1e3:>9.2f} {spread:>22} {t.arena_bytes:>12,}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
