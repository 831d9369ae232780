"""Local rounds by the firmware, on a line that loses, damages and cuts, on a board that resets.

The firmware runs on this host under sanitizers; `test_emulated_boards` has it on emulated boards.
"""

import itertools
import logging
import random
import select
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from board_firmware import HostBoard, HostPort

from sparsyfed.devices.board import MAX_PLACES, MAX_STEPS, Board, BoardResetError
from sparsyfed.devices.board_fit import examples_bytes, fit_on_board
from sparsyfed.devices.board_operations import EVERYTHING
from sparsyfed.devices.board_training import RESETS, examples_of, train_on_board
from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.serial_link import SerialLink
from sparsyfed.devices.serial_protocol import (
    Command,
    Frame,
    FrameReader,
    SerialObject,
    Status,
)
from sparsyfed.devices.training import LocalResult, LocalRound, TrainingStopped, train_locally
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import (
    ArenaError,
    BackendError,
    DivergedError,
    FormatError,
    InputError,
)
from sparsyfed.edge_runtime.quantization import Quantization
from sparsyfed.edge_runtime.state import State

MEMORY = 1 << 20
WORK = LocalRound(
    round=4,
    batch_size=8,
    epochs=2,
    learning_rate=0.1,
    weight_decay=1e-3,
    sparsity=0.5,
    budget="global",
    seed=5,
)


@pytest.fixture
def dataset(data_directory: Path) -> Iterator[Dataset]:
    with closing(Dataset(data_directory)) as opened:
        yield opened


@dataclass(frozen=True)
class Task:
    """A local round to do."""

    artifact: Artifact
    state: bytes
    dataset: Dataset

    def train(self, board: Board, memory: int = MEMORY) -> LocalResult:
        """The round on a board."""
        return train_on_board(
            board, self.artifact, self.state, self.dataset, WORK, memory_bytes=memory
        )

    def least_memory(self) -> int:
        """Memory in which a batch fits, and not all examples."""
        with pytest.raises(ArenaError) as caught:
            fit_on_board(self.artifact, self.state, WORK.batch_size, 100, len(self.dataset))
        return caught.value.wanted


@pytest.fixture
def task(artifact: Artifact, state: State, dataset: Dataset) -> Task:
    return Task(artifact, state.encode(), dataset)


@pytest.fixture
def expected(task: Task, monkeypatch: pytest.MonkeyPatch) -> LocalResult:
    """The same round by the portable kernels of this process."""
    monkeypatch.setenv("SPARSYFED_KERNELS", "portable")
    return train_locally(task.artifact, task.state, task.dataset, WORK, memory_bytes=MEMORY)


@pytest.mark.parametrize("holds_all", [True, False])
def test_the_update_is_that_of_the_portable_kernels(
    holds_all: bool,
    host_board: HostBoard,
    task: Task,
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
    holds_all: bool, host_board: HostBoard, task: Task, monkeypatch: pytest.MonkeyPatch
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
    more: int, host_board: HostBoard, task: Task, monkeypatch: pytest.MonkeyPatch
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


def test_examples_that_a_board_holds_are_sent_once(host_board: HostBoard, task: Task) -> None:
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
    assert sizes[1] < len(task.state) + 100


def test_five_percent_of_damaged_bytes_change_nothing(
    host_board: HostBoard,
    task: Task,
    expected: LocalResult,
) -> None:
    host_board.damage_share = 0.05
    link = host_board.link()
    result = task.train(Board(link))
    assert result.update == expected.update
    assert result.loss == expected.loss
    assert link.resent > 100


def test_a_line_that_is_cut_again_and_again_changes_nothing(
    host_board: HostBoard,
    task: Task,
    expected: LocalResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparsyfed.devices.serial_link.FIRST_REOPEN_SECONDS", 0.001)
    host_board.cut_every = 700  # the largest frames never come through whole
    result = task.train(Board(host_board.link()))
    assert result.update == expected.update
    assert host_board.cuts > 5


@pytest.mark.parametrize("moment", ["before_write", "after_half", "after_write"])
def test_a_reset_before_within_or_after_any_frame_changes_nothing(
    moment: str, host_board: HostBoard, task: Task, expected: LocalResult
) -> None:
    board = Board(host_board.link())
    writes, reset_at = 0, -1

    def count() -> None:
        nonlocal writes
        writes += 1
        if writes == reset_at:
            host_board.reset()

    setattr(host_board, moment, count)
    undisturbed = task.train(board).profile
    for reset_at in range(1, writes + 1):
        host_board.reset()
        writes = 0
        result = task.train(board)
        assert result.update == expected.update, reset_at
        assert result.loss == expected.loss
        assert result.profile == undisturbed, reset_at


REQUESTS = {
    Command.HELLO: b"",
    Command.BEGIN: struct.pack("<3I", SerialObject.STATE, 100, 1),
    Command.DATA: struct.pack("<2I", 0, 0),
    Command.OPEN: struct.pack("<4I", 8, 0, 37, 8),
    Command.TRAIN: struct.pack("<I2fI16H", 0, 0.1, 0.0, 8, *range(16)),
    Command.EVALUATE: struct.pack("<2I", 0, 8),
    Command.ENCODE: struct.pack("<2I", 1, 20),
    Command.READ: struct.pack("<3I", SerialObject.VALUES, 0, 64),
    Command.PROFILE: b"",
    Command.RESET: b"",
    Command.COLLECT: struct.pack("<I", 30),
}
"""One of each command."""


@pytest.mark.parametrize("command", REQUESTS)
def test_a_reset_in_the_middle_of_any_command_is_survived(
    command: Command, host_board: HostBoard, task: Task, expected: LocalResult
) -> None:
    assert set(REQUESTS) == set(Command) - {Command.COMPLAIN}
    link = host_board.link()
    board = Board(link)
    for moment in ("before_write", "after_half", "after_write"):
        task.train(board)

        def reset_once(moment: str = moment) -> None:
            setattr(host_board, moment, lambda: None)
            host_board.reset()

        setattr(host_board, moment, reset_once)
        answer = link.ask(command, REQUESTS[command])
        # What wants a session finds none; the rest begins anew.
        quiet = {Command.HELLO, Command.RESET}
        assert answer.status == (Status.OK if command in quiet else Status.MISSING)
        result = task.train(board)
        assert (result.update, result.loss) == (expected.update, expected.loss)


def test_damage_cuts_and_resets_at_once_change_nothing(
    host_board: HostBoard,
    task: Task,
    expected: LocalResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparsyfed.devices.serial_link.FIRST_REOPEN_SECONDS", 0.001)
    monkeypatch.setattr("sparsyfed.devices.serial_link.LONGEST_REOPEN_SECONDS", 0.01)
    host_board.damage_share = 0.05
    host_board.cut_every = 1500
    writes = 0

    def reset_at_times() -> None:
        nonlocal writes
        writes += 1
        if writes in {40, 90, 150}:
            host_board.reset()

    host_board.after_half = reset_at_times
    result = task.train(Board(host_board.link()))
    assert writes > 150
    assert host_board.cuts > 3
    assert (result.update, result.loss) == (expected.update, expected.loss)


def damaged(frame: bytes, chance: random.Random) -> bytes:
    """A frame with bytes changed, cut out or repeated, and still between zero bytes."""
    content = bytearray(frame[1:-1])
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(content))
        match chance.choice(["change", "flip", "cut", "repeat", "zero"]):
            case "change":
                content[at] = chance.randrange(256)
            case "flip":
                content[at] ^= 1 << chance.randrange(8)
            case "cut":
                del content[at : at + chance.choice([1, 4, 30])]
            case "repeat":
                content[at:at] = content[at : at + chance.choice([1, 4, 30])]
            case _:
                content[at] = 0
        content = content or bytearray(b"\1")
    return b"\0" + bytes(content) + b"\0"


def test_ten_thousand_damaged_requests_are_not_carried_out(
    host_board: HostBoard, task: Task, expected: LocalResult
) -> None:
    board = Board(host_board.link())
    count = sum(tensor.count for tensor in State.decode(task.state).tensors)
    task.train(board)
    before, profile = board.values(count), board.profile()
    chance = random.Random(11)
    sent = 0
    while sent < 10_000:
        command = chance.choice(list(REQUESTS))
        frame = Frame(command, chance.randrange(2**32), REQUESTS[command]).encode()
        noise = damaged(frame, chance)
        if any(read is not None for read in FrameReader().feed(noise)):
            continue  # what was changed has left a whole frame
        host_board.write(noise)
        sent += 1
        while select.select([host_board], [], [], 0)[0]:
            host_board.read()
    assert board.values(count) == before
    assert board.profile() == profile
    assert task.train(board).update == expected.update


def test_a_board_that_resets_again_and_again_fails_the_round(
    host_board: HostBoard, task: Task
) -> None:
    begun = 0

    def reset_on_training() -> None:
        nonlocal begun
        begun += 1
        if begun % 9 == 0:
            host_board.reset()

    memory = task.least_memory()
    host_board.before_write = reset_on_training
    with pytest.raises(BoardResetError, match="reset"):
        task.train(Board(host_board.link()), memory)
    assert begun > 9 * RESETS


def test_ten_thousand_senseless_frames_leave_a_board_that_trains(
    host_board: HostBoard,
    task: Task,
    expected: LocalResult,
) -> None:
    link = host_board.link()
    board = Board(link)
    task.train(board)
    chance = random.Random(7)
    seen: set[int] = set()
    numbers = [0, 1, 2, 3, 4, 7, 8, 100, 1 << 16, 1 << 31, (1 << 32) - 1]
    commands = [command for command in Command if command is not Command.RESET]
    for _ in range(10_000):
        words = [chance.choice(numbers) for _ in range(chance.choice([0, 1, 2, 3, 4, 5, 9]))]
        tail = chance.randbytes(chance.choice([0, 0, 0, 1, 2, 300]))
        payload = struct.pack(f"<{len(words)}I", *words) + tail
        answer = link.ask(chance.choice(commands), payload)
        seen.add(answer.status)
    host_board.require_healthy()
    assert seen > {
        *(Status.OK, Status.COMMAND, Status.LENGTH, Status.ORDER, Status.MISSING),
        *(Status.MEMORY, Status.RANGE),
    }
    result = task.train(board)
    assert result.update == expected.update


def test_examples_without_a_session_are_missing_what_they_belong_to(
    host_board: HostBoard, task: Task
) -> None:
    board = Board(host_board.link())
    board.send(SerialObject.ARTIFACT, task.artifact.encode())
    board.send(SerialObject.EXAMPLES, bytes(100))
    with pytest.raises(BoardResetError):
        board.evaluate(0, 1)
    with pytest.raises(BoardResetError):
        board.train([1, 0], 2, steps_before=0, learning_rate=0.1, weight_decay=0.0)
    host_board.require_healthy()


def test_random_bytes_are_complained_about_and_forgotten(host_board: HostBoard) -> None:
    board = Board(host_board.link())
    chance = random.Random(3)
    for _ in range(200):
        host_board.write(chance.randbytes(chance.randrange(1, 3000)))
        while host_board.read():
            pass
    assert board.hello().name == "host"
    assert board.hello().operations == EVERYTHING


def test_values_can_be_read_and_training_goes_on(host_board: HostBoard, task: Task) -> None:
    board = Board(host_board.link())
    board.send(SerialObject.ARTIFACT, task.artifact.encode())
    board.send(SerialObject.STATE, task.state)
    board.open(8, examples=8)
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


def test_a_board_that_keeps_other_bytes_fails_the_transfer(
    host_board: HostBoard, task: Task
) -> None:
    link = host_board.link()
    ask_piece = link.ask_piece
    asked = 0

    def changed(command: Command, payload: bytes) -> Frame | None:
        nonlocal asked
        asked += 1
        return ask_piece(command, payload[:-1] + bytes([payload[-1] ^ 1]))

    link.ask_piece = changed  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="the board lost what it had of ARTIFACT 4 times"):
        Board(link).send(SerialObject.ARTIFACT, task.artifact.encode())
    assert asked >= 4


def test_what_does_not_fit_is_refused_with_numbers(host_board: HostBoard, task: Task) -> None:
    board = Board(host_board.link())
    with pytest.raises(ArenaError, match="got 1048576 bytes of memory left, wanted 2000000"):
        board.send(SerialObject.ARTIFACT, b"\1" * 2_000_000)
    board.send(SerialObject.ARTIFACT, task.artifact.encode())
    board.send(SerialObject.STATE, task.state)
    with pytest.raises(ArenaError):
        board.open(8, examples=40_000)
    with pytest.raises(InputError):
        board.open(0, examples=1)
    assert board.open(8, examples=8).arena_bytes > 0
    with pytest.raises(ArenaError, match="are missing"):
        task.train(board, 3000)


def test_a_damaged_artifact_is_refused_where_it_is_wrong(host_board: HostBoard, task: Task) -> None:
    board = Board(host_board.link())
    damaged = bytearray(task.artifact.encode())
    damaged[20] ^= 1
    board.send(SerialObject.ARTIFACT, bytes(damaged))
    board.send(SerialObject.STATE, task.state)
    with pytest.raises(FormatError, match="damaged"):
        board.open(8, examples=8)


def test_training_stops_when_told_to(host_board: HostBoard, task: Task) -> None:
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


def test_a_board_that_is_not_there_is_an_error(host_board: HostBoard) -> None:
    host_board.damage_share = 1.0
    with pytest.raises(BackendError, match=r"no answer from the board to HELLO in 0\.3 s"):
        Board(host_board.link(patience_s=0.3)).hello()


def test_a_link_that_is_stopped_says_so(host_board: HostBoard) -> None:
    host_board.damage_share = 1.0
    link = SerialLink(lambda: HostPort(host_board), should_stop=lambda: True)
    with pytest.raises(BackendError, match="stopped before the board answered HELLO"):
        Board(link).hello()


def test_a_port_that_is_not_there_is_tried_at_growing_intervals(
    host_board: HostBoard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    tries: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def open_port() -> HostPort:
        tries.append(now)
        if now < 100:
            raise FileNotFoundError(2, "No such file or directory", "/dev/ttyACM7")
        return HostPort(host_board)

    monkeypatch.setattr("sparsyfed.devices.serial_link.time.sleep", sleep)
    monkeypatch.setattr("sparsyfed.devices.serial_link.time.monotonic", lambda: now)
    link = SerialLink(open_port, patience_s=300, name="porch.1 on /dev/ttyACM7")
    assert Board(link).hello().name == "host"
    waits = [after - before for before, after in itertools.pairwise(tries)]
    assert waits == pytest.approx([0.5, 1, 2, 4, 8, *[15] * (len(waits) - 5)])
    assert len(tries) < 15
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(waits)
    assert all(line.startswith("porch.1 on /dev/ttyACM7: no line: ") for line in lines)


def test_errors_name_the_board(host_board: HostBoard) -> None:
    link = SerialLink(lambda: HostPort(host_board), name="porch.2 on ttyUSB0")
    with pytest.raises(BoardResetError, match=r"porch\.2 on ttyUSB0, TRAIN: the board has lost"):
        Board(link).train([0], 1, steps_before=0, learning_rate=0.1, weight_decay=0.0)
    host_board.damage_share = 1.0
    silent = SerialLink(lambda: HostPort(host_board), patience_s=0.2, name="porch.2 on ttyUSB0")
    with pytest.raises(BackendError, match=r"no answer from porch\.2 on ttyUSB0 to HELLO"):
        Board(silent).hello()
