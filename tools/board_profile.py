"""What a model takes on a board, measured there: on an emulated one, or on one that is attached."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.devices.board import Board, BoardFacts, BoardPlan, BoardProfile
from sparsyfed.devices.board_fit import BoardFit, examples_bytes, fit_on_board
from sparsyfed.devices.board_operations import operations_of
from sparsyfed.devices.board_training import examples_of
from sparsyfed.devices.dataset import Batch
from sparsyfed.devices.feasibility import evenly_spread_state
from sparsyfed.devices.profiles import list_profiles
from sparsyfed.devices.serial_link import SerialLink
from sparsyfed.devices.serial_port import open_port
from sparsyfed.devices.serial_protocol import SerialObject
from sparsyfed.edge_runtime import Artifact, Session, State
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.errors import ArenaError, ConfigurationError
from sparsyfed.edge_runtime.format import Loss
from sparsyfed.tools.board_report import BoardReport, HostStep, MeasuredStep
from sparsyfed.tools.emulator import EmulatedBoard, find_machine
from sparsyfed.tools.firmware import build_firmware

PATIENCE_S = 600.0
STEPS = 2
RATES = {"learning_rate": 1e-3, "weight_decay": 0.0}
WORK = ("forward", "d_input", "d_weight", "recomputed")
NANOSECONDS = 1_000_000_000
HOST_STEPS = 5
"""That are timed here, after those that warm up."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Random examples, the same in each run."""

    x: NDArray[np.float32]
    y: NDArray[Any]

    @classmethod
    def of(cls, artifact: Artifact, size: int) -> "_Batch":
        random = np.random.default_rng(0)
        x = random.normal(size=(size, *artifact.tensors[0].shape)).astype(np.float32)
        outputs = artifact.tensors[artifact.output].size
        if artifact.loss is Loss.CROSS_ENTROPY:
            return cls(x, random.integers(0, outputs, size).astype(np.int32))
        return cls(x, random.normal(size=(size, outputs)).astype(np.float32))

    def flat(self) -> Batch:
        """The same as a batch of a data set."""
        return Batch(self.x.ravel().data, self.y.ravel().data, len(self.x))


def profile_on_board(
    artifact_path: Path,
    board: str,
    *,
    state: State | None,
    density: float,
    batch_size: int,
    ram_bytes: int | None = None,
    port: str | None = None,
    vectors: bool = False,
    say: Say = lambda _: None,
) -> BoardReport:
    """Run steps of a model, with this state or an evenly spread one, and of the same model dense.

    Without a port an emulated board runs them, with all its RAM or with `ram_bytes`, and counts instructions; its
    firmware has the operations of this model alone, and with `vectors` the board's vector instructions. `say` is told
    what goes on.

    Raises BackendError without QEMU, compiler or an answer, ConfigurationError for a port that is not there.
    """
    artifact = Artifact.load(artifact_path)
    chosen = state if state is not None else evenly_spread_state(artifact, density)
    build = partial(build_firmware, board, ram_bytes, operations_of(artifact), vectors=vectors)
    with _board(board, build, port, say) as device:
        facts = device.hello()
        # Under emulation a tick is as many instructions as nanoseconds of the machine's own time.
        per_tick = 1.0 if port is not None else NANOSECONDS / facts.ticks_per_second
        steps: dict[str, MeasuredStep | str] = {}
        for name, one in (("sparse", chosen), ("dense", evenly_spread_state(artifact, 1.0))):
            measuring = _Measuring(device, facts, artifact, one, batch_size, per_tick)
            try:
                steps[name] = measuring.run(lambda text, name=name: say(f"{name}: {text}"))  # type: ignore[misc]
            except ArenaError as error:
                steps[name] = f"does not fit: {error}"
    counts = "instructions" if port is None else "ticks of the board's counter"
    flash = {each.name: each.flash_bytes for each in list_profiles()}.get(facts.name)
    return BoardReport(facts, flash, artifact_path.name, batch_size, counts, steps)


@contextmanager
def _board(name: str, build: Callable[[], Path], port: str | None, say: Say) -> Iterator[Board]:
    if port is not None:
        _require_port(port)
        with closing(SerialLink(partial(open_port, port), patience_s=PATIENCE_S)) as link:
            yield Board(link)
        return
    find_machine(name)
    say(f"{name}: build the firmware")
    firmware = build()
    say(f"{name}: start the machine")
    with (
        EmulatedBoard(name, firmware, counts_instructions=True) as machine,
        closing(SerialLink(partial(open_port, machine.port), patience_s=PATIENCE_S)) as link,
    ):
        yield Board(link)


def _require_port(port: str) -> None:
    """Raise ConfigurationError for a port that is not there: a link would wait for it to come."""
    try:
        open_port(port).close()
    except OSError as error:
        raise ConfigurationError(f"cannot open port {port}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class _Measuring:
    """Steps of one state on one random batch, on the board and here."""

    device: Board
    facts: BoardFacts
    artifact: Artifact
    state: State
    batch_size: int
    per_tick: float

    def run(self, say: Say) -> MeasuredStep:
        """Raises ArenaError where it does not fit."""
        batch = _Batch.of(self.artifact, self.batch_size)
        in_flash = self.facts.artifact_in_flash.holds(self.artifact.encode())
        say("see whether it fits")
        fit = fit_on_board(
            self.artifact,
            self.state.encode(),
            self.batch_size,
            self.facts.memory_bytes,
            self.batch_size,
            in_flash=in_flash,
        )
        planned = self._open(fit, batch, say)
        update, measured = self._train(say)
        say("the same steps here")
        hosts, wanted = self._on_host(fit, batch)
        examples = examples_bytes(self.artifact, self.batch_size)
        return MeasuredStep(
            density=self.state.density,
            nonzeros=self.state.nonzeros,
            planned_arena_bytes=planned.arena_bytes,
            touched_arena_bytes=measured.arena_touched_bytes,
            host_arena_bytes=hosts["portable"].arena_bytes,
            example_bytes=examples,
            artifact_bytes=fit.artifact_bytes,
            touched_stack_bytes=measured.stack_touched_bytes,
            ram_left_bytes=self.facts.memory_bytes
            - planned.arena_bytes
            - examples
            - fit.artifact_bytes,
            **self._ticks(measured),
            update_bytes=len(update),
            multiply_adds={name: getattr(measured, name) // STEPS for name in WORK},
            hosts=hosts,
            same_bits_as_host=update == wanted,
        )

    def _open(self, fit: BoardFit, batch: _Batch, say: Say) -> BoardPlan:
        artifact, state = self.artifact.encode(), self.state.encode()
        say(f"send {len(artifact):,} bytes of artifact, {len(state):,} of state")
        self.device.send(SerialObject.ARTIFACT, artifact)
        self.device.send(SerialObject.STATE, state)
        say("plan, and open a session")
        planned = self.device.open(self.batch_size, fit.plan.layout, examples=self.batch_size)
        self.device.send(SerialObject.EXAMPLES, examples_of(self.artifact, batch.flat()))
        return planned

    def _train(self, say: Say) -> tuple[bytes, BoardProfile]:
        """The update of some steps, and what the board has measured."""
        say("an evaluation")
        self.device.evaluate(0, self.batch_size)
        for step in range(STEPS):
            say(f"step {step + 1} of {STEPS}")
            places = range(self.batch_size)
            self.device.train(places, self.batch_size, steps_before=step, **RATES)
        counts = keep_counts(self.artifact.parameters, 0.0, "global")
        update = self.device.update(self.state.round, counts)
        return update, self.device.profile()

    def _ticks(self, measured: BoardProfile) -> dict[str, Any]:
        def scaled(ticks: int) -> int:
            return round(ticks * self.per_tick)

        return {
            "plan_ticks": scaled(measured.plan_ticks),
            "open_ticks": scaled(measured.open_ticks),
            "evaluation_ticks": scaled(measured.evaluate_ticks),
            "step_ticks": scaled(measured.step_ticks),
            "step_parts": {
                "forward": scaled(measured.step_forward_ticks),
                "backward": scaled(measured.step_backward_ticks),
                "top_k": scaled(measured.step_top_k_ticks),
                "update": scaled(measured.step_update_ticks),
            },
            "encode_ticks": scaled(measured.encode_ticks),
        }

    def _on_host(self, fit: BoardFit, batch: _Batch) -> tuple[dict[str, HostStep], bytes]:
        """The step here by the portable and the best kernels, and the update of the former."""
        hosts, updates = {}, {}
        for name, kernels in (("portable", "portable"), ("best", None)):
            with Session.open(
                self.artifact,
                self.state,
                self.batch_size,
                kernels=kernels,
                memory=fit.memory if kernels else "fast",
                arena_bytes=fit.arena_limit if kernels else None,
            ) as session:
                seconds = []
                for step in range(STEPS + HOST_STEPS):
                    if step == STEPS:
                        updates[name] = session.update(0.0).encode()
                    began = time.process_time()
                    session.step(batch.x, batch.y, **RATES)
                    seconds.append(time.process_time() - began)
                work = session.counters
                hosts[name] = HostStep(
                    kernels=session.kernels,
                    arena_bytes=session.memory.arena_bytes,
                    cpu_seconds=median(seconds[STEPS:]),
                    multiply_adds=sum(getattr(work, part) for part in WORK) // len(seconds),
                )
        return hosts, updates["portable"]
