"""What a board's folder says of its firmware."""

from pathlib import Path

import pytest

from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError
from sparsyfed.tools import firmware
from sparsyfed.tools.emulator import EmulatedBoard


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a board that nobody has heard of."""
    monkeypatch.setattr(firmware, "sources", lambda: tmp_path)
    board = tmp_path / "nucleo-h743"
    board.mkdir()
    return board


def test_a_board_names_its_compiler(folder: Path) -> None:
    (folder / "board.mk").write_text("CPU := -mthumb\nTOOLS := arm-zephyr-eabi-\n")
    assert firmware.compiler_of("nucleo-h743") == "arm-zephyr-eabi-gcc"


def test_a_board_without_a_compiler_is_refused(folder: Path) -> None:
    (folder / "board.mk").write_text("CPU := -mthumb\n")
    with pytest.raises(ConfigurationError, match="wanted a line such as TOOLS := arm-none-eabi-"):
        firmware.compiler_of("nucleo-h743")


def test_a_board_that_does_not_start_leaves_no_port_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _program: None)
    board = EmulatedBoard("mps2-an386", Path("firmware.elf"))
    with pytest.raises(BackendError, match="is not installed"), board:
        pytest.fail("it started")
    assert board._listener.fileno() == -1
