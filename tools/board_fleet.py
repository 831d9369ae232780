"""Emulated boards behind a gateway, as devices of a fleet on this machine."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparsyfed.devices.agent import SAID_HELLO
from sparsyfed.devices.profiles import DeviceProfile
from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.tools.device_processes import DeviceCommand
from sparsyfed.tools.emulator import EmulatedBoard, find_machine
from sparsyfed.tools.firmware import build_firmware, require_tools

HELLO_SECONDS = 60.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class BoardFleet:
    """A gateway and its boards, by name of the board; each has so much RAM."""

    gateway: str
    boards: tuple[str, ...]
    ram_bytes: int

    @property
    def names(self) -> tuple[str, ...]:
        """Ids of the boards, in their order."""
        return tuple(f"{self.gateway}.{number}" for number in range(1, len(self.boards) + 1))

    def missing_tools(self) -> str | None:
        """What keeps them from running here, or None."""
        try:
            for board in self.boards:
                require_tools(board, find_machine(board).program)
        except BackendError as error:
            return str(error)
        return None

    def profiles(self) -> dict[str, DeviceProfile]:
        """What a report says of each board: its RAM is what the firmware was built for."""
        return {
            name: DeviceProfile(
                name=board,
                title=board,
                memory_bytes=self.ram_bytes,
                block_bytes=self.ram_bytes,
                source={"memory_bytes": "the RAM that the firmware was built for"},
            )
            for name, board in zip(self.names, self.boards, strict=True)
        }

    @contextmanager
    def running(
        self, broker: str, data: Mapping[str, Path], directory: Path, log: Path
    ) -> Iterator["RunningBoards"]:
        """The emulated boards for as long as the context lasts; nothing connects them yet."""
        with ExitStack() as stack:
            arguments = ["--id", self.gateway, "--broker", broker, "--directory", str(directory)]
            for name, board in zip(self.names, self.boards, strict=True):
                machine = EmulatedBoard(board, build_firmware(board, self.ram_bytes))
                stack.enter_context(machine)
                arguments += ["--port", machine.port, "--data", str(data[name])]
            command = DeviceCommand([*arguments, "--exit-on-finish"], log, action="gateway")
            yield RunningBoards(self.names, command)


@dataclass(frozen=True, slots=True)
class RunningBoards:
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
            if log.exists() and log.read_text("utf-8").count(SAID_HELLO) >= len(self.names):
                return
            time.sleep(POLL_SECONDS)
        raise BackendError(f"the gateway of the boards says no hello, see {self.command.log}")
