"""Local rounds by the firmware, as a gateway has them done, and what a board refuses.

The firmware runs on this host under sanitizers; `test_emulated_boards` has it on emulated boards.
"""

from dataclasses import replace

import pytest
from board_firmware import HostBoard
from board_task import MEMORY, WORK, BoardTask

from sparsyfed.devices.board import MAX_PLACES, MAX_STEPS, Board, BoardResetError
from sparsyfed.devices.board_fit import examples_bytes, fit_on_board
from sparsyfed.devices.board_training import examples_of, train_on_board
from sparsyfed.devices.serial_protocol import (
    Command,
    Frame,
    SerialObject,
)
from sparsyfed.devices.training import LocalResult, TrainingStopped, train_locally
from sparsyfed.edge_runtime.errors import (
    ArenaError,
    DivergedError,
    FormatError,
    InputError,
)
from sparsyfed.edge_runtime.quantization import Quantization
from sparsyfed.edge_runtime.state import State


@pytest.mark.parametrize("holds_all", [True, False])
def test_the_update_is_that_of_the_portable_kernels(
    holds_all: bool,
    host_board: HostBoard,
    task: BoardTask,
    expected: LocalResult,
) -> None:
    memory = MEMORY if holds_all else task.least_memory()
    board = Board(host_board.link())
    for _ in range(2):  # another round on the same board
        result = task.train(board, memory)
        assert result.update == expected.update
        assert (result.loss, result.examples) == (expected.loss, expected.examples)
        assert result.profile.multiply_adds == expected.profile.multiply_adds
        assert result.profile.arena_peak_bytes == result.profile.planned_arena_bytes


@pytest.mark.parametrize("holds_all", [True, False])
def test_int8_inputs_take_a_quarter_and_give_the_bits_of_the_portable_kernels(
    holds_all: bool, host_board: HostBoard, task: BoardTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = len(examples_of(task.artifact, task.dataset.everything()))
    form = Quantization.of(task.dataset.everything().x)
    task = replace(task, artifact=replace(task.artifact, quantization=form))
    inputs, count = task.artifact.tensors[0].size, len(task.dataset)
    narrow = len(examples_of(task.artifact, task.dataset.everything()))
    assert 0 <= narrow - (wide - 3 * inputs * count) < 4
    assert narrow == examples_bytes(task.artifact, count)
    memory = MEMORY if holds_all else task.least_memory()
    result = task.train(Board(host_board.link()), memory)
    monkeypatch.setenv("SPARSYFED_KERNELS", "portable")
    expected = train_locally(task.artifact, task.state, task.dataset, WORK, memory_bytes=MEMORY)
    assert result.update == expected.update
    assert result.loss == expected.loss
    assert result.profile.arena_peak_bytes == result.profile.planned_arena_bytes


@pytest.mark.parametrize("more", [0, 11])
def test_all_examples_in_one_batch_need_no_room_besides(
    more: int, host_board: HostBoard, task: BoardTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = len(task.dataset)
    work = replace(WORK, batch_size=examples + more)
    with pytest.raises(ArenaError) as caught:
        fit_on_board(task.artifact, task.state, work.batch_size, 100, examples)
    memory = caught.value.wanted
    fit = fit_on_board(task.artifact, task.state, work.batch_size, memory, examples)
    assert (fit.held_examples, fit.gathered_examples) == (examples, 0)
    board = Board(host_board.link())
    given = task.artifact, task.state, task.dataset, work
    result = train_on_board(board, *given, memory_bytes=memory)
    monkeypatch.setenv("SPARSYFED_KERNELS", "portable")
    assert result.update == train_locally(*given, memory_bytes=MEMORY).update


def test_examples_that_a_board_holds_are_sent_once(host_board: HostBoard, task: BoardTask) -> None:
    sent: list[int] = []
    link = host_board.link()
    ask_piece = link.ask_piece

    def counted(command: Command, payload: bytes) -> Frame | None:
        sent.append(len(payload) if command is Command.DATA else 0)
        return ask_piece(command, payload)

    link.ask_piece = counted  # type: ignore[method-assign]
    board = Board(link)
    sizes = []
    for _ in range(2):
        sent.clear()
        task.train(board)
        sizes.append(sum(sent))
    examples = len(examples_of(task.artifact, task.dataset.everything()))
    assert sizes[0] - sizes[1] >= examples + len(task.artifact.encode())
    assert sizes[1] < len(task.state) + len(task.layout(WORK.batch_size)) + 100


def test_examples_without_a_session_are_missing_what_they_belong_to(
    host_board: HostBoard, task: BoardTask
) -> None:
    board = Board(host_board.link())
    board.send(SerialObject.ARTIFACT, task.artifact.encode())
    board.send(SerialObject.EXAMPLES, bytes(100))
    with pytest.raises(BoardResetError):
        board.evaluate(0, 1)
    with pytest.raises(BoardResetError):
        board.train([1, 0], 2, steps_before=0, learning_rate=0.1, weight_decay=0.0)
    host_board.require_healthy()


def test_values_can_be_read_and_training_goes_on(host_board: HostBoard, task: BoardTask) -> None:
    board = Board(host_board.link())
    board.send(SerialObject.ARTIFACT, task.artifact.encode())
    board.send(SerialObject.STATE, task.state)
    board.open(8, task.layout(8), examples=8)
    count = sum(tensor.count for tensor in State.decode(task.state).tensors)
    before = board.values(count)
    assert before == b"".join(tensor.value.tobytes() for tensor in State.decode(task.state).tensors)
    batch = next(task.dataset.batches(8, 0, 0))
    board.send(SerialObject.EXAMPLES, examples_of(task.artifact, batch))
    board.train(range(8), 8, steps_before=0, learning_rate=0.1, weight_decay=0.0)
    assert board.values(count) != before
    with pytest.raises(FormatError, match="ORDER"):  # the same step twice
        board.train(range(8), 8, steps_before=0, learning_rate=0.1, weight_decay=0.0)
    with pytest.raises(FormatError, match="RANGE"):
        board.train([9], 8, steps_before=1, learning_rate=0.1, weight_decay=0.0)
    with pytest.raises(DivergedError):
        board.train(range(8), 8, steps_before=1, learning_rate=1e30, weight_decay=1e30)
    assert board.profile().steps == 1


@pytest.mark.parametrize(("places", "batch_size"), [(MAX_PLACES + 1, 8), (MAX_STEPS + 1, 1)])
def test_more_than_one_request_takes_is_refused(
    places: int, batch_size: int, host_board: HostBoard
) -> None:
    with pytest.raises(InputError, match=r"one request takes up to 504 in 255"):
        Board(host_board.link()).train(
            [0] * places, batch_size, steps_before=0, learning_rate=0.1, weight_decay=0.0
        )


def test_what_does_not_fit_is_refused_with_numbers(host_board: HostBoard, task: BoardTask) -> None:
    board = Board(host_board.link())
    with pytest.raises(ArenaError, match="got 1048576 bytes of memory left, wanted 2000000"):
        board.send(SerialObject.ARTIFACT, b"\1" * 2_000_000)
    board.send(SerialObject.ARTIFACT, task.artifact.encode())
    board.send(SerialObject.STATE, task.state)
    with pytest.raises(ArenaError):
        board.open(8, task.layout(8), examples=40_000)
    with pytest.raises(InputError):
        board.open(0, task.layout(8), examples=1)
    assert board.open(8, task.layout(8), examples=8).arena_bytes > 0
    with pytest.raises(ArenaError, match="are missing"):
        task.train(board, 3000)


def test_a_damaged_artifact_is_refused_where_it_is_wrong(
    host_board: HostBoard, task: BoardTask
) -> None:
    board = Board(host_board.link())
    damaged = bytearray(task.artifact.encode())
    damaged[20] ^= 1
    board.send(SerialObject.ARTIFACT, bytes(damaged))
    board.send(SerialObject.STATE, task.state)
    with pytest.raises(FormatError, match="damaged"):
        board.open(8, task.layout(8), examples=8)


def test_training_stops_when_told_to(host_board: HostBoard, task: BoardTask) -> None:
    asked = iter([False] * 9)
    with pytest.raises(TrainingStopped):
        train_on_board(
            Board(host_board.link()),
            task.artifact,
            task.state,
            task.dataset,
            WORK,
            memory_bytes=MEMORY,
            should_stop=lambda: next(asked, True),
        )
