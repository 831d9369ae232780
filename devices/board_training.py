"""One local round whose steps a board makes: the host carries examples, and computes nothing."""

import logging
import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

from sparsyfed.devices.board import Board, BoardFacts, BoardResetError
from sparsyfed.devices.board_fit import MAX_HELD, BoardFit, fit_on_board
from sparsyfed.devices.board_operations import require_operations
from sparsyfed.devices.dataset import Batch, Dataset, permutation
from sparsyfed.devices.serial_protocol import SerialObject
from sparsyfed.devices.training import (
    LocalResult,
    LocalRound,
    TrainingStopped,
    require_fitting_data,
)
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.batches import model_inputs
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.errors import (
    BackendError,
    ConfigurationError,
    InputError,
    SparsyFedError,
)
from sparsyfed.edge_runtime.messages import DeviceProfileReport, MultiplyAddsReport

logger = logging.getLogger(__name__)

COLLECTING_SECONDS = 0.2
"""How often a board that collects examples is asked whether it has them."""
WAITING_SECONDS = 60.0
"""How often a log line says that a board waits for its next example."""
EXAMPLE_SECONDS = 3600.0
"""The longest that a board may wait for one: a label may come from a button that somebody presses."""
RESETS = 3
"""How many resets a round survives: it begins again, and comes to the same update."""


@dataclass(frozen=True, slots=True)
class OwnExamples:
    """So many examples that a board collects from its own sensors.

    It keeps them over rounds, unless its update takes their memory: then it collects anew for the next round.
    """

    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_HELD:
            raise ConfigurationError(
                f"got {self.count} examples for a board to collect, wanted 1 to {MAX_HELD}"
            )

    def __len__(self) -> int:
        return self.count


def _fit(
    facts: BoardFacts,
    artifact: Artifact,
    state: bytes,
    batch_size: int,
    *,
    memory_bytes: int,
    dataset: Sized,
) -> BoardFit:
    """How a board that says these facts trains on its data.

    Raises what `fit_on_board` raises, and UnsupportedOperationError for a firmware without an operation.
    """
    require_operations(artifact, facts.operations)
    fit = fit_on_board(
        *(artifact, state, batch_size, min(memory_bytes, facts.memory_bytes), len(dataset)),
        in_flash=facts.artifact_in_flash.holds(artifact.encode()),
    )
    if isinstance(dataset, OwnExamples) and fit.held_examples < dataset.count:
        raise InputError(
            f"got {dataset.count} examples for the board to collect, which do not fit beside the least arena of "
            f"batch size {batch_size}: have it collect fewer"
        )
    return fit


def refusal_of_board(
    facts: BoardFacts, dataset: Sized
) -> Callable[[Path, Path, int, int], str | None]:
    """What an agent asks whether work fits (`refusal.refusal_of_plan`), for a board with such data."""

    def refuse(artifact: Path, state: Path, batch_size: int, memory_bytes: int) -> str | None:
        try:
            model = Artifact.load(artifact)
            _fit(
                *(facts, model, state.read_bytes(), batch_size),
                memory_bytes=memory_bytes,
                dataset=dataset,
            )
        except SparsyFedError as error:
            return str(error)
        return None

    return refuse


def train_on_board(
    board: Board,
    artifact: str | Path | bytes | Artifact,
    state: bytes,
    dataset: Dataset | OwnExamples,
    work: LocalRound,
    *,
    memory_bytes: int,
    clock: Callable[[], float] = time.perf_counter,
    should_stop: Callable[[], bool] = lambda: False,
) -> LocalResult:
    """Train `state` on a board and read its update: byte by byte that of the portable kernels here.

    Arguments, result and errors are those of `train_locally`, but that `memory_bytes` is what artifact, examples
    and arena may take together, and that examples may be the board's own. BackendError besides, when the board does
    not answer, its sensors give no example for EXAMPLE_SECONDS, or it was reset more than RESETS times: a board that
    was reset begins the round again.
    """
    structure = Artifact.of(artifact)
    if isinstance(dataset, Dataset):
        require_fitting_data(structure, dataset)
    started = clock()
    attempt = 0
    while True:
        try:
            training = _Round(
                board, structure, state, dataset, work, memory=memory_bytes, should_stop=should_stop
            )
            loss, update = training.run()
            profile = training.profile()
            break
        except BoardResetError as error:
            attempt += 1
            if attempt > RESETS:
                raise
            logger.warning("%s: the round begins again: %s", board.name, error)
    return LocalResult(
        update=update,
        loss=loss,
        examples=len(dataset),
        seconds=clock() - started,
        profile=profile,
    )


class _Round:
    """One attempt at a local round."""

    def __init__(
        self,
        board: Board,
        artifact: Artifact,
        state: bytes,
        dataset: Dataset | OwnExamples,
        work: LocalRound,
        *,
        memory: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self._board = board
        self._artifact = artifact
        self._dataset = dataset
        self._work = work
        self._should_stop = should_stop
        self._facts = board.hello()
        self._fit = _fit(
            *(self._facts, artifact, state, work.batch_size), memory_bytes=memory, dataset=dataset
        )
        self._send(SerialObject.ARTIFACT, artifact.encode())
        self._send(SerialObject.STATE, state)
        self._plan = board.open(
            *(work.batch_size, self._fit.plan.layout),
            examples=self._fit.held_examples,
            gathered=self._fit.gathered_examples,
        )
        self._steps = 0
        if isinstance(dataset, OwnExamples):
            self._collect(dataset)

    def run(self) -> tuple[float, bytes]:
        """Mean loss over all epochs, and the update."""
        loss_sum = 0.0
        for epoch in range(self._work.epochs):
            loss_sum += self._epoch(epoch)
        counts = keep_counts(self._artifact.parameters, self._work.sparsity, self._work.budget)
        update = self._board.update(self._work.round, counts)
        return loss_sum / (len(self._dataset) * self._work.epochs), update

    def _collect(self, own: OwnExamples) -> None:
        """Wait until the board has its own examples: it keeps those of the round before."""
        try:
            held = self._board.collected().held
        except BoardResetError:
            held = 0  # it was not asked yet; one that was reset has no session, and says so below
        wanted = self._board.collect(own.count - held).wanted
        since, lines = time.monotonic(), 1
        while wanted:
            if self._should_stop():
                raise TrainingStopped
            time.sleep(COLLECTING_SECONDS)
            before, wanted = wanted, self._board.collected().wanted
            now = time.monotonic()
            if wanted < before:
                since, lines = now, 1
            elif now - since > EXAMPLE_SECONDS:
                raise BackendError(
                    f"{self._board.name}: got no example from its sensors in {EXAMPLE_SECONDS:g} s, wanted {wanted} "
                    "more: has the board sensors, and do they measure?"
                )
            elif now - since > lines * WAITING_SECONDS:
                lines += 1
                logger.info("%s: waits for %d examples of its sensors", self._board.name, wanted)

    def _epoch(self, epoch: int) -> float:
        """Sum of the loss over all examples."""
        work, total = self._work, 0.0
        if self._fit.gathered_examples or isinstance(self._dataset, OwnExamples):
            if isinstance(self._dataset, Dataset):
                self._send(
                    SerialObject.EXAMPLES, examples_of(self._artifact, self._dataset.everything())
                )
            order: Sequence[int] = range(len(self._dataset))  # as they lie, where one batch has all
            if self._fit.gathered_examples:
                order = permutation(len(self._dataset), work.seed, epoch)
            for start in range(0, len(order), work.batch_size):
                total += self._step(order[start : start + work.batch_size])
            return total
        for batch in self._dataset.batches(work.batch_size, work.seed, epoch):
            self._send(SerialObject.EXAMPLES, examples_of(self._artifact, batch))
            total += self._step(range(batch.count))
        return total

    def _step(self, places: Sequence[int]) -> float:
        if self._should_stop():
            raise TrainingStopped
        (loss,) = self._board.train(
            places,
            len(places),
            steps_before=self._steps,
            learning_rate=self._work.learning_rate,
            weight_decay=self._work.weight_decay,
        )
        self._steps += 1
        return loss * len(places)

    def _send(self, what: SerialObject, data: bytes) -> None:
        if self._should_stop() or not self._board.send(what, data, self._should_stop):
            raise TrainingStopped

    def profile(self) -> DeviceProfileReport:
        """What the round has taken.

        A board's resident set is the firmware's data, its stack as touched, arena, artifact and examples.
        """
        measured, facts, fit = self._board.profile(), self._facts, self._fit
        held = fit.artifact_bytes + fit.examples_bytes
        own = facts.data_bytes + facts.bss_bytes + measured.stack_touched_bytes
        return DeviceProfileReport(
            planned_arena_bytes=self._plan.arena_bytes,
            arena_peak_bytes=measured.arena_touched_bytes,
            peak_rss_bytes=own + measured.arena_touched_bytes + held,
            multiply_adds=MultiplyAddsReport(
                forward=measured.forward + measured.recomputed,
                d_input=measured.d_input,
                d_weight=measured.d_weight,
            ),
        )


def examples_of(artifact: Artifact, batch: Batch) -> bytes:
    """A batch as boards take it: all inputs, int8 ones up to a multiple of 4 bytes, then all targets, labels as int32.

    Raises InputError for a label that int32 does not hold.
    """
    inputs = bytes(model_inputs(batch.x, artifact.tensors[0], artifact.quantization)[0])
    inputs += bytes(-len(inputs) % 4)
    if batch.y.format != "q":
        return inputs + batch.y.tobytes()
    try:
        labels = b"".join(label.to_bytes(4, "little", signed=True) for label in batch.y)
    except OverflowError:
        raise InputError("got a label that does not fit int32, which boards take") from None
    return inputs + labels
