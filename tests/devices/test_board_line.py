"""Local rounds over a line that loses, damages and cuts, to a board that resets.

The firmware runs on this host under sanitizers.
"""

import itertools
import logging
import random
import select
import struct

import pytest
from board_firmware import HostBoard, HostPort
from board_task import BoardTask

from sparsyfed.devices.board import Board, BoardResetError
from sparsyfed.devices.board_operations import EVERYTHING
from sparsyfed.devices.board_training import RESETS
from sparsyfed.devices.serial_link import SerialLink
from sparsyfed.devices.serial_protocol import (
    Command,
    Frame,
    FrameReader,
    SerialObject,
    Status,
)
from sparsyfed.devices.training import LocalResult
from sparsyfed.edge_runtime.errors import (
    BackendError,
)
from sparsyfed.edge_runtime.state import State


def test_five_percent_of_damaged_bytes_change_nothing(
    host_board: HostBoard,
    task: BoardTask,
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
    task: BoardTask,
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
    moment: str, host_board: HostBoard, task: BoardTask, expected: LocalResult
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
    Command.OPEN: struct.pack("<3I", 8, 37, 8),
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
    command: Command, host_board: HostBoard, task: BoardTask, expected: LocalResult
) -> None:
    assert set(REQUESTS) == set(Command) - {Command.COMPLAIN}
    link = host_board.link()
    board = Board(link)
    for moment in ("before_write", "after_half", "after_write"):
        task.train(board)
        host_board.reset_at(moment, {1})
        answer = link.ask(command, REQUESTS[command])
        # What wants a session finds none; the rest begins anew.
        quiet = {Command.HELLO, Command.RESET}
        assert answer.status == (Status.OK if command in quiet else Status.MISSING)
        result = task.train(board)
        assert (result.update, result.loss) == (expected.update, expected.loss)


def test_damage_cuts_and_resets_at_once_change_nothing(
    host_board: HostBoard,
    task: BoardTask,
    expected: LocalResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparsyfed.devices.serial_link.FIRST_REOPEN_SECONDS", 0.001)
    monkeypatch.setattr("sparsyfed.devices.serial_link.LONGEST_REOPEN_SECONDS", 0.01)
    host_board.damage_share = 0.05
    host_board.cut_every = 1500
    resets = host_board.reset_at("after_half", {40, 90, 150})
    result = task.train(Board(host_board.link()))
    assert resets == [40, 90, 150]
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
    host_board: HostBoard, task: BoardTask, expected: LocalResult
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
    host_board: HostBoard, task: BoardTask
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
    task: BoardTask,
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


def test_random_bytes_are_complained_about_and_forgotten(host_board: HostBoard) -> None:
    board = Board(host_board.link())
    chance = random.Random(3)
    for _ in range(200):
        host_board.write(chance.randbytes(chance.randrange(1, 3000)))
        while host_board.read():
            pass
    assert board.hello().name == "host"
    assert board.hello().operations == EVERYTHING


def test_a_board_that_keeps_other_bytes_fails_the_transfer(
    host_board: HostBoard, task: BoardTask
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
