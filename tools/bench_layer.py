"""Single convolution and linear layers against PyTorch: `sparsyfed bench layer`.

The runtime runs whole models. A layer's time is therefore what a small net takes more with the layer
than without it, on both sides: a stem (a 1x1 convolution of one channel, or a linear layer of one
input, which makes the layer compute the gradient of its input), the layer, global average pooling,
cross-entropy. `forward` is the difference of evaluations, `step` that of training steps: forward and
both gradients, for ours with power-propagation and the Top-K of the saved input. PyTorch's operators
are timed by themselves as well. Where a layer changes the shape of its input, pooling is not the same
with and without it: then the figures are of the whole small net, marked with an asterisk.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsyfed import export
from sparsyfed.edge_runtime import Session, plan
from sparsyfed.tools.bench_dense import (
    FORMATS,
    dense_forward,
    dense_step,
    memory_formats,
)
from sparsyfed.tools.bench_models import BETA, SEED, BenchModel, random_masks
from sparsyfed.tools.bench_process import measure_apart, say
from sparsyfed.tools.bench_session import open_session, session_step
from sparsyfed.tools.bench_step import PASSES, work_done
from sparsyfed.tools.bench_timing import Side, Spread, best_of, difference, ratio, take_turns

KINDS = ("forward", "step")
PARTS = ("with", "without")


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A square convolution, padded to keep the image's size at stride 1, or a linear layer: size 0."""

    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    size: int = 0
    groups: int = 1

    @property
    def keeps_shape(self) -> bool:
        """Whether the output has the shape of the input."""
        return self.inputs == self.outputs and self.stride == 1 and self.kernel % 2 == 1

    @property
    def title(self) -> str:
        """The shape in words."""
        if not self.size:
            return f"{self.inputs}->{self.outputs} linear"
        kind = f"{self.kernel}x{self.kernel} @{self.size}x{self.size}"
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        groups = f" {self.groups} groups" if self.groups > 1 else ""
        return f"{self.inputs}->{self.outputs} {kind}{stride}{groups}"

    def net(self, *, with_layer: bool) -> nn.Module:
        """The stem, the layer or nothing, and the pooling."""
        if not self.size:
            stem: list[nn.Module] = [nn.Linear(1, self.inputs)]
            layer: nn.Module = nn.Linear(self.inputs, self.outputs)
            head: list[nn.Module] = []
        else:
            stem, head = [nn.Conv2d(1, self.inputs, 1)], [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            sizes = (self.inputs, self.outputs, self.kernel, self.stride, self.kernel // 2)
            layer = nn.Conv2d(*sizes, groups=self.groups, bias=False)
        return nn.Sequential(*stem, *([layer] if with_layer else []), *head)


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What to measure: every combination. `kernels` and `isa` are as in `StepSettings`."""

    layers: Sequence[Sequence[int]]
    batch_sizes: Sequence[int] = (16,)
    sparsities: Sequence[float] = (0.9, 0.95, 0.99)
    kernels: Sequence[str | None] = (None,)
    isa: Sequence[str] = ("best",)
    turns: int = 11


def run(settings: LayerSettings) -> dict[str, list[dict[str, Any]]]:
    """Rows of all combinations."""
    rows = []
    for isa in settings.isa:
        limited = replace(settings, isa=[isa])
        if isa != "best":
            limited = replace(limited, kernels=[isa])
        rows += measure_apart("bench_layer", {"settings": asdict(limited)}, isa)
    return {"layers": rows}


def measure(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of one instruction set, whose limits this process is under."""
    torch.set_num_threads(1)
    chosen = LayerSettings(**settings)
    rows = []
    shapes = [LayerShape(*sizes) for sizes in chosen.layers]
    for shape, batch_size, sparsity in product(shapes, chosen.batch_sizes, chosen.sparsities):
        say(f"{chosen.isa[0]} instructions: {shape.title}, batch {batch_size}, {sparsity:.2%}")
        same = {"layer": shape.title, "batch_size": batch_size, "sparsity": sparsity}
        rows += [
            {**same, "isa": chosen.isa[0], **row}
            for row in _cell(shape, batch_size, sparsity, chosen)
        ]
    return rows


def _cell(
    shape: LayerShape, batch_size: int, sparsity: float, settings: LayerSettings
) -> Iterator[dict[str, Any]]:
    """Rows of one layer, batch size and sparsity: all sides in turns in this process."""
    nets = {part: _load(shape.net(with_layer=part == "with"), shape) for part in PARTS}
    x, y = nets["with"].batch(batch_size)
    y %= min(shape.inputs, shape.outputs)
    formats = memory_formats(x)
    sides: dict[tuple[str, str, str], Side] = {}
    for name, (part, net) in product(formats, nets.items()):
        sides[name, "step", part] = dense_step(copy.deepcopy(net.module), x, y, name)
        sides[name, "forward", part] = dense_forward(copy.deepcopy(net.module), x, y, name)
    for name in formats:
        for operator, side in _operators(shape, batch_size, name).items():
            sides[name, operator, "alone"] = side
    opened: dict[str, dict[str, Session]] = {}
    for kernels, (part, net) in product(settings.kernels, nets.items()):
        state = random_masks(net.dense, _counts(net, sparsity))
        session = open_session(net.artifact, state, batch_size, kernels=kernels)
        opened.setdefault(session.kernels, {})[part] = session
        sides[session.kernels, "step", part] = session_step(session, x, y)
        sides[session.kernels, "forward", part] = partial(session.evaluate, x, y)
    taken = take_turns(sides, settings.turns)
    best = best_of({name: taken[name, "step", "with"] for name in formats})
    for name, sessions in opened.items():
        yield {
            "kernels": name,
            "dense_format": best,
            "of_net": not shape.keeps_shape,
            **_times(taken, best, name, of_net=not shape.keeps_shape),
            **_work(nets, sessions),
        }


def _load(net: nn.Module, shape: LayerShape) -> BenchModel:
    example = torch.zeros(1, 1, shape.size, shape.size) if shape.size else torch.zeros(1, 1)
    artifact = export.compile(net, example, beta=BETA).native
    return BenchModel("layer", net, artifact, export.initial_state(net, beta=BETA, seed=SEED))


def _counts(net: BenchModel, sparsity: float) -> list[int]:
    """Entries to keep of each parameter: all of the stem, a share of the layer."""
    stem = net.artifact.parameters[net.artifact.prunable[0]]
    return [
        p.count if p is stem else max(1, round((1 - sparsity) * p.count))
        for p in net.artifact.parameters
    ]


def _operators(shape: LayerShape, batch_size: int, memory_format: str) -> dict[str, Side]:
    """The three passes of the layer as single PyTorch operators."""
    generator = torch.Generator().manual_seed(SEED)

    def noise(*sizes: int) -> Tensor:
        chosen = FORMATS[memory_format] if len(sizes) == 4 else torch.contiguous_format
        return torch.randn(sizes, generator=generator).contiguous(memory_format=chosen)

    if not shape.size:
        x, w = noise(batch_size, shape.inputs), noise(shape.outputs, shape.inputs)
        dy = noise(batch_size, shape.outputs)
        return {
            "forward": lambda: functional.linear(x, w),
            "d_input": lambda: dy @ w,
            "d_weight": lambda: dy.t() @ x,
        }
    x = noise(batch_size, shape.inputs, shape.size, shape.size)
    w = noise(shape.outputs, shape.inputs // shape.groups, shape.kernel, shape.kernel)
    stride, padding, ones = [shape.stride] * 2, [shape.kernel // 2] * 2, [1, 1]
    geometry = (stride, padding, ones, False, [0, 0], shape.groups)
    dy = noise(*torch.ops.aten.convolution(x, w, None, *geometry).shape)

    def backward(*mask: bool) -> Side:
        return lambda: torch.ops.aten.convolution_backward(dy, x, w, None, *geometry, mask)

    return {
        "forward": lambda: torch.ops.aten.convolution(x, w, None, *geometry),
        "d_input": backward(True, False, False),
        "d_weight": backward(False, True, False),
    }


def _times(
    taken: Mapping[tuple[str, str, str], list[float]], dense: str, ours: str, *, of_net: bool
) -> dict[str, Any]:
    """Seconds that the layer adds, or those of the net, ours and dense; and PyTorch's operators."""

    def added(side: str, kind: str) -> list[float]:
        whole = taken[side, kind, "with"]
        return whole if of_net else difference(whole, taken[side, kind, "without"])

    return {
        "dense_seconds": {kind: asdict(Spread.of(added(dense, kind))) for kind in KINDS},
        "seconds": {kind: asdict(Spread.of(added(ours, kind))) for kind in KINDS},
        "speedup": {kind: asdict(ratio(added(dense, kind), added(ours, kind))) for kind in KINDS},
        "operator_seconds": {
            name: asdict(Spread.of(taken[dense, name, "alone"])) for name in PASSES
        },
    }


def _work(nets: Mapping[str, BenchModel], sessions: Mapping[str, Session]) -> dict[str, Any]:
    """Multiply-adds that the layer adds to a step, beside those of the dense layer."""
    passes = {}
    for name in PASSES:
        done, dense = {}, {}
        for part, session in sessions.items():
            counters = session.counters
            done[part] = getattr(counters, name) / counters.steps
            whole = plan(nets[part].artifact, nets[part].dense, session.batch_size)
            dense[part] = getattr(whole.macs, name)
        passes[name] = work_done(done["with"] - done["without"], dense["with"] - dense["without"])
    return {"multiply_adds": passes}


HEADING = (
    *("layer", "batch", "sparsity", "ISA", "kernels", "dense fwd", "ours fwd", "speed-up"),
    *("dense step", "ours step", "speed-up", "fwd", "dX", "dW", "torch fwd/dX/dW ms"),
)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table on the terminal; times are milliseconds."""
    texts = [
        row["layer"] + (" *" if row["of_net"] else ""),
        str(row["batch_size"]),
        f"{row['sparsity']:.2%}",
        row["isa"],
        row["kernels"],
    ]
    for kind in KINDS:
        texts += [f"{1e3 * row[side][kind]['median']:.3g}" for side in ("dense_seconds", "seconds")]
        texts.append(f"{row['speedup'][kind]['median']:.2f}")
    shares = [row["multiply_adds"][name]["share"] for name in PASSES]
    texts += ["-" if share is None else f"{share:.2%}" for share in shares]
    return [*texts, "/".join(f"{1e3 * row['operator_seconds'][n]['median']:.3g}" for n in PASSES)]
