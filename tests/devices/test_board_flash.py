"""A model that is part of the firmware: it is found there, and not sent."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board_firmware import HostBoard, build_host_firmware
from model_strategies import random_state

from sparsyfed.devices.board import Board
from sparsyfed.devices.board_fit import fit_on_board
from sparsyfed.devices.board_training import refusal_of_board, train_on_board
from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.serial_protocol import Command, Frame, SerialObject
from sparsyfed.devices.training import LocalRound, train_locally
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import ArenaError
from sparsyfed.edge_runtime.state import State
from sparsyfed.tools.model_source import HEADER, model_source

WORK = LocalRound(
    round=4,
    batch_size=8,
    epochs=1,
    learning_rate=0.1,
    weight_decay=1e-3,
    sparsity=0.5,
    budget="global",
    seed=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the firmware is kept, for all tests."""
    return tmp_path_factory.mktemp("flash")


@pytest.fixture
def host_board(artifact: Artifact, state: State, folder: Path) -> Iterator[HostBoard]:
    """A board with this model in flash."""
    program = folder / "firmware"
    if not program.exists():
        (folder / "model.h").write_text(HEADER)
        (folder / "model.c").write_text(model_source(artifact, state))
        build_host_firmware(program, model=folder / "model.c")
    board = HostBoard(program)
    yield board
    board.stop()


@pytest.fixture
def dataset(data_directory: Path) -> Iterator[Dataset]:
    opened = Dataset(data_directory)
    yield opened
    opened.close()


class CountingBoard(Board):
    """A board that counts the bytes it is sent, by object."""

    def __init__(self, host_board: HostBoard) -> None:
        link = host_board.link()
        super().__init__(link)
        self.sent = dict.fromkeys(SerialObject, 0)
        self._begun = SerialObject.ARTIFACT
        self._ask_piece, self._ask_link = link.ask_piece, link.ask
        link.ask_piece = self._count  # type: ignore[method-assign]
        link.ask = self._note  # type: ignore[method-assign]

    def _note(self, command: Command, payload: bytes = b"") -> Frame:
        if command is Command.BEGIN:
            self._begun = SerialObject(payload[0])
        return self._ask_link(command, payload)

    def _count(self, command: Command, payload: bytes) -> Frame | None:
        if command is Command.DATA:
            self.sent[self._begun] += len(payload) - 4
        return self._ask_piece(command, payload)


def test_the_first_round_sends_examples_alone(
    host_board: HostBoard,
    artifact: Artifact,
    state: State,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = CountingBoard(host_board)
    given = artifact, state.encode(), dataset, WORK
    result = train_on_board(board, *given, memory_bytes=1 << 20)
    assert board.sent[SerialObject.ARTIFACT] == board.sent[SerialObject.STATE] == 0
    monkeypatch.setenv("SPARSYFED_KERNELS", "portable")
    assert result.update == train_locally(*given, memory_bytes=1 << 20).update
    host_board.reset()
    again = train_on_board(board, *given, memory_bytes=1 << 20)
    assert again.update == result.update
    assert board.sent[SerialObject.ARTIFACT] == 0


def test_a_later_state_is_sent_and_another_artifact_too(
    host_board: HostBoard, artifact: Artifact, state: State, dataset: Dataset
) -> None:
    board = CountingBoard(host_board)
    later = replace(random_state(artifact, np.random.default_rng(3), 0.5), round=4)
    train_on_board(board, artifact, later.encode(), dataset, WORK, memory_bytes=1 << 20)
    assert board.sent[SerialObject.ARTIFACT] == 0
    assert board.sent[SerialObject.STATE] == len(later.encode())
    other = replace(artifact, beta=1.5)
    train_on_board(board, other, state.encode(), dataset, WORK, memory_bytes=1 << 20)
    assert board.sent[SerialObject.ARTIFACT] == len(other.encode())
    train_on_board(board, artifact, state.encode(), dataset, WORK, memory_bytes=1 << 20)
    assert board.sent[SerialObject.ARTIFACT] == len(other.encode())


def test_what_is_in_flash_takes_no_memory(
    host_board: HostBoard, artifact: Artifact, state: State, dataset: Dataset, tmp_path: Path
) -> None:
    board = Board(host_board.link())
    facts = board.hello()
    assert facts.artifact_in_flash.holds(artifact.encode())
    assert facts.state_in_flash.holds(state.encode())
    with pytest.raises(ArenaError) as caught:
        fit_on_board(artifact, state.encode(), WORK.batch_size, 100, len(dataset))
    least = caught.value.wanted
    with pytest.raises(ArenaError) as caught:
        fit_on_board(artifact, state.encode(), WORK.batch_size, 100, len(dataset), in_flash=True)
    in_flash = caught.value.wanted
    assert least - in_flash == -(-len(artifact.encode()) // 4) * 4
    given = artifact, state.encode(), dataset, WORK
    assert train_on_board(board, *given, memory_bytes=in_flash).update
    artifact.save(tmp_path / "model.sfd")
    state.save(tmp_path / "model.sfs")
    files = tmp_path / "model.sfd", tmp_path / "model.sfs"
    assert refusal_of_board(facts, dataset)(*files, 8, in_flash) is None
    bare = replace(facts, artifact_in_flash=type(facts.artifact_in_flash)())
    assert refusal_of_board(bare, dataset)(*files, 8, in_flash) is not None
