"""What a model takes on a board, measured there: on an emulated one, or on one that is attached."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.devices.board import Board, BoardFacts
from sparsyfed.devices.board_fit import fit_on_board
from sparsyfed.devices.feasibility import evenly_spread_state
from sparsyfed.devices.serial_link import SerialLink
from sparsyfed.devices.serial_port import open_port
from sparsyfed.devices.serial_protocol import Computation, SerialObject
from sparsyfed.edge_runtime import Artifact, Session, State
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.errors import ArenaError
from sparsyfed.edge_runtime.format import Loss
from sparsyfed.edge_runtime.plan import table
from sparsyfed.tools.emulator import EmulatedBoard, find_machine
from sparsyfed.tools.firmware import build_firmware

PATIENCE_S = 600.0
STEPS = 2
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One state on a board. Ticks are instructions of an emulated board, cycles of another.

    `evaluation` is a forward pass, `gradients` forward and backward with the choice of kept inputs, `step` these and
    the change of the model, `update` the Top-K of |v| and its encoding. `ram_left_bytes` is what the board had left.
    """

    density: float
    nonzeros: int
    planned_arena_bytes: int
    touched_arena_bytes: int
    host_arena_bytes: int
    touched_stack_bytes: int
    ram_left_bytes: int
    plan_ticks: int
    open_ticks: int
    evaluation_ticks: int
    gradients_ticks: int
    step_ticks: int
    update_ticks: int
    update_bytes: int
    multiply_adds: dict[str, int]
    same_bits_as_host: bool


@dataclass(frozen=True, slots=True)
class BoardReport:
    """A board, and the steps of a model on it; what does not fit has a reason in the place of a step."""

    board: BoardFacts
    artifact: str
    batch_size: int
    counts: str
    steps: dict[str, MeasuredStep | str]

    def to_json(self) -> str:
        """Every number."""
        steps = {name: asdict(s) if not isinstance(s, str) else s for name, s in self.steps.items()}
        content: dict[str, Any] = {**asdict(self), "steps": steps}
        return json.dumps(content, indent=2)

    def to_text(self) -> str:
        """The figures as tables."""
        facts = self.board
        firmware = [
            ("code and constants", facts.text_bytes),
            ("data", facts.data_bytes + facts.bss_bytes),
            ("stack", facts.stack_bytes),
            ("left to models and data", facts.memory_bytes),
        ]
        text = f"{facts.name}: bytes of the firmware\n{table(firmware, totals=())}"
        for name, step in self.steps.items():
            text += f"\n\n{self.artifact}, {name}, batch size {self.batch_size}\n"
            text += f"  {step}" if isinstance(step, str) else self._step_text(step)
        return text

    def _step_text(self, step: MeasuredStep) -> str:
        memory = [
            ("arena as planned", step.planned_arena_bytes),
            ("arena as touched", step.touched_arena_bytes),
            ("arena planned on this host", step.host_arena_bytes),
            ("stack as touched", step.touched_stack_bytes),
            ("RAM left", step.ram_left_bytes),
        ]
        counted = [
            ("plan", step.plan_ticks),
            ("open", step.open_ticks),
            ("forward", step.evaluation_ticks),
            ("forward and backward", step.gradients_ticks),
            ("whole step", step.step_ticks),
            (f"update of {step.update_bytes:,} bytes", step.update_ticks),
        ]
        work = [(name.replace("_", " "), count) for name, count in step.multiply_adds.items()]
        bits = "the same as" if step.same_bits_as_host else "NOT the same as"
        return (
            f"{step.density:.2%} stored, bytes\n{table(memory, totals=())}\n"
            f"{self.counts}\n{table(counted, totals=())}\n"
            f"multiply-adds of a step\n{table(work, totals=())}\n"
            f"the bits are {bits} those of the portable kernels here"
        )


def profile_on_board(
    artifact_path: Path,
    board: str,
    *,
    state: State | None,
    density: float,
    batch_size: int,
    ram_bytes: int | None = None,
    port: str | None = None,
) -> BoardReport:
    """Run steps of a model, with this state or an evenly spread one, and of the same model dense.

    Without a port an emulated board runs them, with all its RAM or with `ram_bytes`, and counts instructions.

    Raises BackendError without QEMU, compiler or an answer.
    """
    artifact = Artifact.load(artifact_path)
    chosen = state if state is not None else evenly_spread_state(artifact, density)
    with _board(board, ram_bytes, port) as device:
        facts = device.hello()
        # Under emulation a tick is as many instructions as nanoseconds of the machine's own time.
        per_tick = 1.0 if port is not None else NANOSECONDS / facts.ticks_per_second
        steps: dict[str, MeasuredStep | str] = {}
        for name, one in (("sparse", chosen), ("dense", evenly_spread_state(artifact, 1.0))):
            try:
                steps[name] = _measure(
                    device, facts, artifact, one, batch_size=batch_size, per_tick=per_tick
                )
            except ArenaError as error:
                steps[name] = f"does not fit: {error}"
    counts = "instructions" if port is None else "ticks of the board's counter"
    return BoardReport(facts, artifact_path.name, batch_size, counts, steps)


@contextmanager
def _board(name: str, ram_bytes: int | None, port: str | None) -> Iterator[Board]:
    if port is not None:
        with closing(SerialLink(partial(open_port, port), patience_s=PATIENCE_S)) as link:
            yield Board(link)
        return
    find_machine(name)
    with (
        EmulatedBoard(name, build_firmware(name, ram_bytes), counts_instructions=True) as machine,
        closing(SerialLink(partial(open_port, machine.port), patience_s=PATIENCE_S)) as link,
    ):
        yield Board(link)


def _measure(
    device: Board,
    facts: BoardFacts,
    artifact: Artifact,
    state: State,
    *,
    batch_size: int,
    per_tick: float,
) -> MeasuredStep:
    """Steps on one random batch, on the board and here."""
    fit_on_board(artifact, state.encode(), batch_size, facts.memory_bytes, batch_size)
    x, y = _batch(artifact, batch_size)
    rates = {"learning_rate": 1e-3, "weight_decay": 0.0}
    device.send(SerialObject.ARTIFACT, artifact.encode())
    device.send(SerialObject.STATE, state.encode())
    planned = device.open(batch_size, examples=batch_size)
    device.send(SerialObject.EXAMPLES, x.tobytes() + y.tobytes())
    device.compute(Computation.EVALUATE, 0, batch_size)
    device.compute(Computation.GRADIENTS, 0, batch_size)
    for step in range(STEPS):
        device.train(range(batch_size), batch_size, steps_before=step, **rates)
    counts = keep_counts(artifact.parameters, 0.0, "global")
    update = device.update(state.round, counts)
    measured = device.profile()
    with Session.open(
        artifact, state, batch_size, kernels="portable", arena_bytes=facts.memory_bytes
    ) as session:
        for _ in range(STEPS):
            session.step(x, y, **rates)
        same = session.update(0.0).encode() == update
        host_arena = session.memory.arena_bytes

    def scaled(ticks: int) -> int:
        return round(ticks * per_tick)

    examples = batch_size * (planned.input_bytes + planned.target_bytes)
    return MeasuredStep(
        density=state.density,
        nonzeros=state.nonzeros,
        planned_arena_bytes=planned.arena_bytes,
        touched_arena_bytes=measured.arena_touched_bytes,
        host_arena_bytes=host_arena,
        touched_stack_bytes=measured.stack_touched_bytes,
        ram_left_bytes=facts.memory_bytes - planned.arena_bytes - examples - len(artifact.encode()),
        plan_ticks=scaled(measured.plan_ticks),
        open_ticks=scaled(measured.open_ticks),
        evaluation_ticks=scaled(measured.evaluate_ticks),
        gradients_ticks=scaled(measured.gradients_ticks),
        step_ticks=scaled(measured.step_ticks),
        update_ticks=scaled(measured.encode_ticks),
        update_bytes=len(update),
        multiply_adds={
            name: getattr(measured, name) // STEPS
            for name in ("forward", "d_input", "d_weight", "recomputed")
        },
        same_bits_as_host=same,
    )


def _batch(artifact: Artifact, size: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Random examples, the same in each run."""
    random = np.random.default_rng(0)
    x = random.normal(size=(size, *artifact.tensors[0].shape)).astype(np.float32)
    outputs = artifact.tensors[artifact.output].size
    if artifact.loss is Loss.CROSS_ENTROPY:
        return x, random.integers(0, outputs, size).astype(np.int32)
    return x, random.normal(size=(size, outputs)).astype(np.float32)
