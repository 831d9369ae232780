"""The figures of steps on a board, as text or JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from sparsyfed.devices.board import BoardFacts
from sparsyfed.edge_runtime.plan import table

PARTS = {
    "forward": "forward",
    "backward": "backward",
    "top_k": "Top-K of inputs",
    "update": "update of weights",
}
"""Parts of a step, as they are called in reports."""


@dataclass(frozen=True, slots=True)
class HostStep:
    """The same step here: its kernels, bytes of its arena, seconds of one thread and multiply-adds."""

    kernels: str
    arena_bytes: int
    cpu_seconds: float
    multiply_adds: int


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One state on a board. Ticks are instructions of an emulated board, cycles of another.

    `evaluation` is a forward pass alone, `gradients` forward and backward with the choice of kept inputs, `step` these
    and the change of the model, `step_parts` its parts, `encode` the Top-K of |v| and the encoding of the update.
    `ram_left_bytes` is what the board had left beside arena, examples and, where that is not in flash, the artifact.
    `hosts` has the step here, by the portable and by the best kernels.
    """

    density: float
    nonzeros: int
    planned_arena_bytes: int
    touched_arena_bytes: int
    host_arena_bytes: int
    example_bytes: int
    artifact_bytes: int
    touched_stack_bytes: int
    ram_left_bytes: int
    plan_ticks: int
    open_ticks: int
    evaluation_ticks: int
    step_ticks: int
    step_parts: dict[str, int]
    encode_ticks: int
    update_bytes: int
    multiply_adds: dict[str, int]
    hosts: dict[str, HostStep]
    same_bits_as_host: bool


@dataclass(frozen=True, slots=True)
class BoardReport:
    """A board, and the steps of a model on it; what does not fit has a reason in the place of a step.

    `flash_bytes` is the flash of the board, where a profile knows it.
    """

    board: BoardFacts
    flash_bytes: int | None
    artifact: str
    batch_size: int
    counts: str
    steps: dict[str, MeasuredStep | str]

    @property
    def flash_left_bytes(self) -> int | None:
        """What the firmware, with the first values of its data, leaves of the flash."""
        if self.flash_bytes is None:
            return None
        return self.flash_bytes - self.board.text_bytes - self.board.data_bytes

    def to_json(self) -> str:
        """Every number."""
        steps = {name: asdict(s) if not isinstance(s, str) else s for name, s in self.steps.items()}
        content: dict[str, Any] = {**asdict(self), "flash_left_bytes": self.flash_left_bytes}
        return json.dumps(content | {"steps": steps}, indent=2)

    def firmware(self) -> list[tuple[str, int]]:
        """Bytes of the firmware, and what it leaves."""
        facts = self.board
        rows = [("code and constants", facts.text_bytes)]
        if self.flash_left_bytes is not None:
            rows.append(("flash left", self.flash_left_bytes))
        return [
            *rows,
            ("data: line, frames and commands, without models", facts.data_bytes + facts.bss_bytes),
            ("stack", facts.stack_bytes),
            ("RAM left to models and data", facts.memory_bytes),
        ]

    def to_text(self) -> str:
        """The figures as tables."""
        text = f"{self.board.name}: bytes of the firmware\n{table(self.firmware(), totals=())}"
        for name, step in self.steps.items():
            text += f"\n\n{self.artifact}, {name}, batch size {self.batch_size}\n"
            text += f"  {step}" if isinstance(step, str) else self._step_text(step)
        return text

    def _step_text(self, step: MeasuredStep) -> str:
        bits = "the same as" if step.same_bits_as_host else "NOT the same as"
        return (
            f"{step.density:.2%} stored, bytes\n{table(memory_rows(step), totals=())}\n"
            f"{self.counts} of a step\n{table(part_rows(step), totals=(-1,))}\n"
            f"{self.counts} besides\n{table(other_rows(step), totals=())}\n"
            f"multiply-adds of a step\n{table(work_rows(step), totals=())}\n"
            f"{host_text(step)}\n"
            f"the bits are {bits} those of the portable kernels here"
        )


def memory_rows(step: MeasuredStep) -> list[tuple[str, int]]:
    """RAM by use, in bytes."""
    return [
        ("arena as planned", step.planned_arena_bytes),
        ("arena as touched", step.touched_arena_bytes),
        ("arena planned on this host", step.host_arena_bytes),
        ("examples of a batch", step.example_bytes),
        ("artifact", step.artifact_bytes),
        ("stack as touched", step.touched_stack_bytes),
        ("RAM left", step.ram_left_bytes),
        ("update that is sent", step.update_bytes),
    ]


def part_rows(step: MeasuredStep) -> list[tuple[str, int]]:
    """Ticks of a step by part, and their sum."""
    rows = [(PARTS[name], ticks) for name, ticks in step.step_parts.items()]
    return [*rows, ("whole step", step.step_ticks)]


def other_rows(step: MeasuredStep) -> list[tuple[str, int]]:
    """Ticks of what is not a step."""
    return [
        ("plan", step.plan_ticks),
        ("open", step.open_ticks),
        ("evaluation", step.evaluation_ticks),
        ("Top-K of v, and the update encoded", step.encode_ticks),
    ]


def work_rows(step: MeasuredStep) -> list[tuple[str, int]]:
    """Multiply-adds of a step."""
    return [(name.replace("_", " "), count) for name, count in step.multiply_adds.items()]


def host_text(step: MeasuredStep) -> str:
    """The step on this machine."""
    return "\n".join(
        f"here, {host.kernels} kernels: {1e6 * host.cpu_seconds:,.0f} µs of one thread, "
        f"{host.multiply_adds:,} multiply-adds, arena {host.arena_bytes:,} bytes"
        for host in step.hosts.values()
    )
