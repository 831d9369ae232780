"""The firmware of boards, built from the sources in `devices/boards` of a checkout."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from sparsyfed.devices.board_operations import NAMES
from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError

TOOLS = re.compile(r"^TOOLS\s*:=\s*(\S+)\s*$", re.MULTILINE)
"""In `board.mk`: how the names of a board's compiler and its tools begin."""
BUILD_SECONDS = 600


def sources() -> Path:
    """The folder of the firmware. Raises BackendError outside a checkout."""
    folder = Path(str(resources.files("sparsyfed.devices"))) / "boards"
    if not (folder / "Makefile").is_file():
        raise BackendError("the firmware's sources are not installed: run this from a checkout")
    return folder.resolve()


def list_boards() -> tuple[str, ...]:
    """Names of the boards that the firmware is written for."""
    return tuple(sorted(path.parent.name for path in sources().glob("*/board.mk")))


def compiler_of(board: str) -> str:
    """The compiler that `board.mk` names. Raises ConfigurationError for an unknown board, or one that names none."""
    if board not in list_boards():
        raise ConfigurationError(f"got board {board!r}, wanted one of {', '.join(list_boards())}")
    makefile = sources() / board / "board.mk"
    tools = TOOLS.search(makefile.read_text(encoding="utf-8"))
    if tools is None:
        raise ConfigurationError(f"{makefile}: wanted a line such as TOOLS := arm-none-eabi-")
    return f"{tools[1]}gcc"


def require_tools(board: str, *more: str) -> None:
    """Raise BackendError unless make and the compiler of a board are there, and these programs besides."""
    tools = ("make", compiler_of(board), *more)
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise BackendError(f"{' and '.join(missing)} not installed: {board} needs it")


def build_firmware(
    board: str, ram_bytes: int | None = None, operations: Sequence[str] = ()
) -> Path:
    """Build the firmware of a board, unless it is up to date, and return the ELF file.

    With `ram_bytes` it is that of a board that has so much RAM, with `operations` one that has only these
    (`board_operations.operations_of` names those of a model). Raises BackendError without compiler and make, or when
    they fail, ConfigurationError for an operation that there is not.
    """
    unknown = sorted(set(operations) - set(NAMES))
    if unknown:
        raise ConfigurationError(
            f"got operations {', '.join(unknown)}, wanted of {', '.join(NAMES)}"
        )
    folder = sources()
    require_tools(board)
    file = "firmware.elf"
    command = ["make", "--no-print-directory", "-C", str(folder), f"BOARD={board}"]
    if ram_bytes is not None:
        command.append(f"RAM_BYTES={ram_bytes}")
        file = f"firmware-{ram_bytes}.elf"
    place = board
    if operations:
        command.append(f"OPERATIONS={' '.join(operations)}")
        place = "-".join((board, *sorted(set(operations))))
    # What make hands down, when make started us, is not for this one.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise BackendError(f"the firmware of {board} was not built: {done.stderr.strip()[-2000:]}")
    return folder.parents[1] / "build" / "boards" / place / file
