"""Boards in the demo: emulated, behind a gateway, with windows of two wearers of their own."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsyfed.devices.profiles import DeviceProfile
from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.tools.device_processes import DeviceCommand
from sparsyfed.tools.emulator import EmulatedBoard, find_machine
from sparsyfed.tools.firmware import build_firmware, require_tools

GATEWAY = "watch-board"
BOARDS = ("mps2-an386", "mps3-an547")
"""Cortex-M4F and Cortex-M55."""
RAM_BYTES = 1 << 20
WINDOWS = 16
"""That a board takes over from a watch: emulation is slow."""
LAST_ROUNDS = 5
HELLO_SECONDS = 60.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class DemoBoards:
    """Emulated boards that run: the ids that the gateway gives them, and the command that connects them."""

    names: tuple[str, ...]
    command: DeviceCommand

    def wait_for_hello(self, failed: Callable[[], str | None]) -> None:
        """Wait until the gateway has said hello for every board.

        Raises BackendError if it does not, or once `failed` says that a process has.
        """
        until = time.monotonic() + HELLO_SECONDS
        while time.monotonic() < until:
            problem = failed()
            if problem is not None:
                raise BackendError(problem)
            log = self.command.log
            if log.exists() and log.read_text("utf-8").count("said hello as") >= len(self.names):
                return
            time.sleep(POLL_SECONDS)
        raise BackendError(f"the gateway of the boards says no hello, see {self.command.log}")


def missing_tools() -> str | None:
    """What keeps boards out of the demo, or None."""
    try:
        for board in BOARDS:
            require_tools(board, find_machine(board).program)
    except BackendError as error:
        return str(error)
    return None


def board_names() -> tuple[str, ...]:
    """Ids of the boards."""
    return tuple(f"{GATEWAY}.{number}" for number in range(1, len(BOARDS) + 1))


def share_windows(folders: dict[str, Path]) -> None:
    """Give each board the first windows of one of the last watches, which keeps the others.

    Adds the boards' folders by their ids.
    """
    watches = sorted(name for name in folders if name != "held-out")[-len(BOARDS) :]
    for board, watch in zip(board_names(), watches, strict=True):
        folder = folders[watch].with_name(board)
        folder.mkdir()
        for file in ("x.npy", "y.npy"):
            values = np.load(folders[watch] / file)
            np.save(folder / file, values[:WINDOWS])
            np.save(folders[watch] / file, values[WINDOWS:])
        folders[board] = folder


@contextmanager
def demo_boards(
    broker: str, data: Mapping[str, Path], directory: Path, log: Path
) -> Iterator[DemoBoards]:
    """Emulated boards for as long as the context lasts; nothing connects them yet."""
    with ExitStack() as stack:
        arguments = ["--id", GATEWAY, "--broker", broker, "--directory", str(directory)]
        for name, board in zip(board_names(), BOARDS, strict=True):
            machine = EmulatedBoard(board, build_firmware(board, RAM_BYTES))
            stack.enter_context(machine)
            arguments += ["--port", machine.port, "--data", str(data[name])]
        command = DeviceCommand([*arguments, "--exit-on-finish"], log, action="gateway")
        yield DemoBoards(board_names(), command)


def board_profiles() -> dict[str, DeviceProfile]:
    """What the report says of each board: its RAM is what the firmware was built for."""
    return {
        name: DeviceProfile(
            name=board,
            title=board,
            memory_bytes=RAM_BYTES,
            block_bytes=RAM_BYTES,
            source={"memory_bytes": "the RAM that the firmware was built for"},
        )
        for name, board in zip(board_names(), BOARDS, strict=True)
    }
