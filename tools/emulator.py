"""Emulated boards: QEMU machines with their serial line on a TCP socket."""

import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError
from sparsyfed.tools.child_process import spawn

ARM = "qemu-system-arm"
RISCV = "qemu-system-riscv32"
STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of QEMU: the program, and what it is told before the firmware."""

    program: str
    arguments: tuple[str, ...]


MACHINES: Mapping[str, Machine] = {
    "mps2-an385": Machine(ARM, ("-M", "mps2-an385")),
    "mps2-an386": Machine(ARM, ("-M", "mps2-an386")),
    "mps2-an500": Machine(ARM, ("-M", "mps2-an500")),
    "mps3-an547": Machine(ARM, ("-M", "mps3-an547")),
    "rv32-virt": Machine(RISCV, ("-M", "virt", "-bios", "none")),
}
"""Emulated boards by the name of their folder in `devices/boards`."""


def find_machine(board: str) -> Machine:
    """The machine of a board. Raises ConfigurationError for one that is not emulated."""
    if board not in MACHINES:
        raise ConfigurationError(f"got board {board!r}, wanted one of {', '.join(MACHINES)}")
    return MACHINES[board]


class EmulatedBoard:
    """One running machine. `port` is what a gateway takes; connections may come and go.

    with EmulatedBoard("mps2-an386", firmware) as board:
        print(board.port)  # socket://127.0.0.1:...

    With `counts_instructions` its counter runs by instructions alone, the same in each run.

    Raises BackendError if QEMU is not there.
    """

    def __init__(self, board: str, firmware: Path, *, counts_instructions: bool = False) -> None:
        self._machine = find_machine(board)
        self.board = board
        self._firmware = firmware
        self._count = ("-icount", "shift=0") if counts_instructions else ()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = f"socket://127.0.0.1:{self._listener.getsockname()[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._listener.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._listener.close()

    def start(self) -> None:
        """Switch the board on."""
        if shutil.which(self._machine.program) is None:
            raise BackendError(f"{self._machine.program} is not installed: emulated boards need it")
        # The socket listens before QEMU runs, and survives it: a port is never lost to another program.
        listener = self._listener.fileno()
        self._process = spawn(
            [
                *(self._machine.program, *self._machine.arguments, *self._count),
                *("-display", "none", "-monitor", "none", "-kernel", str(self._firmware)),
                *("-chardev", f"socket,id=line,fd={listener},server=on,wait=off"),
                *("-serial", "chardev:line"),
            ],
            subprocess.DEVNULL,
            pass_fds=[listener],
        )

    def failed(self) -> str | None:
        """How the machine has ended; None while it runs."""
        code = None if self._process is None else self._process.poll()
        return None if code is None else f"{self.board}: QEMU ended with status {code}"

    def stop(self) -> None:
        """Switch the board off: what it held is lost."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
