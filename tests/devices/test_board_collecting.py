"""Examples that a board collects itself: a ring, and training on it."""

import logging
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import board_task
import numpy as np
import pytest
from board_firmware import HostBoard
from numpy.typing import NDArray

from sparsyfed.devices import board_training
from sparsyfed.devices.board import Board, BoardResetError, CollectedExamples
from sparsyfed.devices.board_fit import MAX_HELD, fit_on_board
from sparsyfed.devices.board_training import OwnExamples, train_on_board
from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.serial_protocol import Command, SerialObject, Status
from sparsyfed.devices.training import train_locally
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.errors import (
    ArenaError,
    BackendError,
    ConfigurationError,
    FormatError,
    InputError,
)
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.quantization import Quantization
from sparsyfed.edge_runtime.session import Session
from sparsyfed.edge_runtime.state import State

BATCH = 4
ROOM = 7
RATES = {"learning_rate": 0.1, "weight_decay": 1e-3}
WORK = replace(board_task.WORK, batch_size=BATCH)


def sensed(artifact: Artifact, numbers: range) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """What drivers/test_source.c gives for these examples of a classifier."""
    place = np.arange(artifact.tensors[0].size)
    pattern = (np.array(numbers)[:, None] * 31 + place * 17) % 64
    shape = (len(numbers), *artifact.tensors[0].shape)
    return (pattern / 32 - 1).astype(np.float32).reshape(shape), np.array(numbers, np.int32) % 2


def opened(board: Board, artifact: Artifact, state: State, room: int = ROOM) -> None:
    """Open a session with room for so many examples."""
    board.send(SerialObject.ARTIFACT, artifact.encode())
    board.send(SerialObject.STATE, state.encode())
    layout = plan(artifact, state, BATCH, kernels="portable").layout
    board.open(BATCH, layout, examples=room, gathered=BATCH)


def collected(board: Board, count: int) -> CollectedExamples:
    """Collect so many and wait for them."""
    progress = board.collect(count)
    while progress.wanted:
        progress = board.collected()
    return progress


def require_training_as_here(
    board: Board, artifact: Artifact, state: State, places: list[int], numbers: range
) -> None:
    """Train on `places`, where the examples of these numbers are, and compare with the same here."""
    x, y = sensed(artifact, numbers)
    with Session.open(artifact, state, BATCH, kernels="portable") as session:
        losses = [
            session.step(x[at : at + BATCH], y[at : at + BATCH], **RATES) for at in (0, BATCH)
        ]
        wanted = session.update(0.5).encode()
    assert board.train(places, BATCH, steps_before=0, **RATES) == losses
    keep = keep_counts(artifact.parameters, 0.5, "global")
    assert board.update(state.round, keep) == wanted


@pytest.mark.parametrize("form", [None, Quantization(1 / 31, 3)])
def test_a_board_trains_on_what_it_has_collected(
    form: Quantization | None, host_board: HostBoard, artifact: Artifact, state: State
) -> None:
    artifact = replace(artifact, quantization=form)
    board = Board(host_board.link())
    opened(board, artifact, state)
    assert collected(board, ROOM) == CollectedExamples(ROOM, ROOM, 0, ROOM)
    require_training_as_here(board, artifact, state, list(range(ROOM)), range(ROOM))


def test_rounds_on_what_a_board_collects_are_those_on_the_same_examples(
    host_board: HostBoard,
    artifact: Artifact,
    state: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARSYFED_KERNELS", "portable")
    count = 30
    x, y = sensed(artifact, range(count))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    with closing(Dataset(tmp_path)) as dataset:
        given = artifact, state.encode()
        wanted = train_locally(*given, dataset, WORK, memory_bytes=board_task.MEMORY)
    board = Board(host_board.link())
    own = OwnExamples(count)
    for _ in range(2):  # the second round has them already
        result = train_on_board(board, *given, own, WORK, memory_bytes=board_task.MEMORY)
        assert (result.update, result.loss) == (wanted.update, wanted.loss)
        assert result.examples == count
        assert board.collected().collected == count
    resets = host_board.reset_at("after_half", {12})
    again = train_on_board(board, *given, own, WORK, memory_bytes=board_task.MEMORY)
    assert resets == [12]
    assert again.update == wanted.update


def test_sensors_that_give_nothing_are_logged_and_then_an_error(
    host_board: HostBoard,
    artifact: Artifact,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(board_training, "COLLECTING_SECONDS", 0.01)
    monkeypatch.setattr(board_training, "WAITING_SECONDS", 0.1)
    monkeypatch.setattr(board_training, "EXAMPLE_SECONDS", 0.5)
    board = Board(host_board.link())
    nothing = CollectedExamples(held=0, collected=0, wanted=ROOM, capacity=ROOM)
    monkeypatch.setattr(board, "collected", lambda: nothing)
    monkeypatch.setattr(board, "collect", lambda _count: nothing)
    with pytest.raises(BackendError, match=f"no example from its sensors in 0.5 s, wanted {ROOM}"):
        train_on_board(
            board, artifact, state.encode(), OwnExamples(ROOM), WORK, memory_bytes=board_task.MEMORY
        )
    lines = [line for line in caplog.messages if f"waits for {ROOM} examples" in line]
    assert 1 < len(lines) < 5


def test_a_batch_of_all_that_it_collects_and_more_than_it_can_hold(
    host_board: HostBoard, artifact: Artifact, state: State
) -> None:
    with pytest.raises(ArenaError) as caught:
        fit_on_board(artifact, state.encode(), WORK.batch_size, 100, WORK.batch_size)
    least = caught.value.wanted
    board = Board(host_board.link())
    given = artifact, state.encode()
    few, many = OwnExamples(WORK.batch_size), OwnExamples(WORK.batch_size + 1)
    assert train_on_board(board, *given, few, WORK, memory_bytes=least).update
    with pytest.raises(InputError, match="have it collect fewer"):
        train_on_board(board, *given, many, WORK, memory_bytes=least)


@pytest.mark.parametrize("count", [0, MAX_HELD + 1])
def test_a_number_of_examples_that_no_board_collects_is_refused(count: int) -> None:
    with pytest.raises(ConfigurationError, match="wanted 1 to 65536"):
        OwnExamples(count)


def test_once_it_is_full_the_oldest_are_overwritten(
    host_board: HostBoard, artifact: Artifact, state: State
) -> None:
    board = Board(host_board.link())
    opened(board, artifact, state)
    collected(board, ROOM - 2)
    progress = collected(board, ROOM)
    count = 2 * ROOM - 2
    assert progress == CollectedExamples(ROOM, count, 0, ROOM)
    numbers = range(count - ROOM, count)
    require_training_as_here(board, artifact, state, [k % ROOM for k in numbers], numbers)


def test_they_stay_for_the_next_state_with_as_much_room(
    host_board: HostBoard, artifact: Artifact, state: State
) -> None:
    board = Board(host_board.link())
    opened(board, artifact, state)
    collected(board, ROOM)
    board.train(range(BATCH), BATCH, steps_before=0, **RATES)
    opened(board, artifact, state)
    assert board.collected() == CollectedExamples(ROOM, ROOM, 0, ROOM)
    require_training_as_here(board, artifact, state, list(range(ROOM)), range(ROOM))
    opened(board, artifact, state, ROOM + 1)
    with pytest.raises(BoardResetError):
        board.collected()


def test_sent_and_collected_examples_take_the_place_of_one_another(
    host_board: HostBoard, artifact: Artifact, state: State
) -> None:
    board = Board(host_board.link())
    opened(board, artifact, state)
    x, y = sensed(artifact, range(3))
    board.send(SerialObject.EXAMPLES, x.tobytes() + y.tobytes())
    board.train(range(3), BATCH, steps_before=0, **RATES)
    assert collected(board, 2).held == 2
    with pytest.raises(FormatError, match="RANGE"):
        board.train(range(3), BATCH, steps_before=1, **RATES)
    board.train(range(2), BATCH, steps_before=1, **RATES)
    board.send(SerialObject.EXAMPLES, x.tobytes() + y.tobytes())
    board.train(range(3), BATCH, steps_before=2, **RATES)
    with pytest.raises(BoardResetError):
        board.collected()


def test_what_a_host_sends_is_never_taken_for_what_was_collected(
    host_board: HostBoard, artifact: Artifact, state: State
) -> None:
    link = host_board.link()
    board = Board(link)
    opened(board, artifact, state)
    collected(board, ROOM)
    size = ROOM * (artifact.tensors[0].size + 1) * 4
    begin = b"".join(number.to_bytes(4, "little") for number in (SerialObject.EXAMPLES, size, 0))
    answer = link.ask(Command.BEGIN, begin)
    assert (answer.status, answer.payload) == (Status.OK, bytes(4))


def test_collecting_wants_a_session_with_room(
    host_board: HostBoard, artifact: Artifact, state: State
) -> None:
    link = host_board.link()
    board = Board(link)
    with pytest.raises(BoardResetError):
        board.collect(1)
    opened(board, artifact, state, 0)
    with pytest.raises(FormatError, match="RANGE"):
        board.collect(1)
    opened(board, artifact, state)
    with pytest.raises(BoardResetError):
        board.collect(0)
    assert link.ask(Command.COLLECT, b"\1\0").status == Status.LENGTH
    assert link.ask(Command.COLLECT, bytes(5)).status == Status.LENGTH


def test_a_reset_while_it_collects_loses_all_and_a_new_start_finds_all(
    host_board: HostBoard, artifact: Artifact, state: State
) -> None:
    board = Board(host_board.link())
    for moment in ("before_write", "after_half", "after_write"):
        opened(board, artifact, state)
        collected(board, 3)

        host_board.reset_at(moment, {1})
        with suppress(BoardResetError):  # which comes before its answer, or after it
            board.collect(100_000)
        with pytest.raises(BoardResetError):
            board.collected()
        opened(board, artifact, state)
        collected(board, ROOM)
        require_training_as_here(board, artifact, state, list(range(ROOM)), range(ROOM))
        host_board.reset()


def test_a_noisy_line_changes_nothing(
    host_board: HostBoard, artifact: Artifact, state: State
) -> None:
    host_board.damage_share = 0.05
    board = Board(host_board.link())
    opened(board, artifact, state)
    assert collected(board, 500).collected == 500
    numbers = range(500 - ROOM, 500)
    require_training_as_here(board, artifact, state, [k % ROOM for k in numbers], numbers)


def test_an_endless_wish_can_be_taken_back(
    host_board: HostBoard, artifact: Artifact, state: State
) -> None:
    board = Board(host_board.link())
    opened(board, artifact, state)
    progress = board.collect(2**32 - 1)
    while progress.collected < ROOM:
        progress = board.collected()
    stopped = board.collect(0)
    assert stopped.wanted == 0
    assert board.collected() == stopped
    numbers = range(stopped.collected - ROOM, stopped.collected)
    require_training_as_here(board, artifact, state, [k % ROOM for k in numbers], numbers)
