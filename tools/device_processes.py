"""Devices as processes of this machine: started together, watched, and ended with their owner."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.tools.child_process import spawn

STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DeviceCommand:
    """How to start one device: the arguments after `sparsyfed device run`, or another action, its log file, its Python.

    `environment` is added to that of this process.
    """

    arguments: Sequence[str]
    log: Path
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    action: str = "run"


class DeviceProcesses:
    """One process a device. Start it in a thread that lives as long as the devices shall.

    with DeviceProcesses({"watch-01": DeviceCommand([...], log)}) as fleet:
        ...
    """

    def __init__(self, commands: Mapping[str, DeviceCommand]) -> None:
        self._commands = dict(commands)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for name, command in self._commands.items():
                self._processes[name] = _start(command)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def add(self, name: str, command: DeviceCommand) -> None:
        """Start one more."""
        self._commands[name] = command
        self._processes[name] = _start(command)

    def failed(self) -> str | None:
        """Which device has ended with an error, and the end of its log; None if none has."""
        for name, process in self._processes.items():
            if process.poll():
                log = self._commands[name].log.read_text(encoding="utf-8", errors="replace")
                last = log.strip().splitlines()[-1:] or ["it wrote no log"]
                return f"{name} ended with status {process.returncode}: {last[0]}"
        return None

    def wait(self, seconds: float) -> None:
        """Waits until all have ended by themselves.

        Raises BackendError if one has not within this time, or ended with an error.
        """
        until = time.monotonic() + seconds
        for name, process in self._processes.items():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise BackendError(
                    f"{name} still runs {seconds:.0f} s after the end of the job"
                ) from None
        problem = self.failed()
        if problem is not None:
            raise BackendError(problem)

    def stop(self) -> None:
        """Ends those that still run: asks first, then kills."""
        running = [process for process in self._processes.values() if process.poll() is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(command: DeviceCommand) -> subprocess.Popen[bytes]:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    program = [command.python, "-m", "sparsyfed.tools", "device", command.action]
    program += command.arguments
    with command.log.open("ab") as log:
        return spawn(program, log, command.environment)
