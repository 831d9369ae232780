"""Questions to a board and their answers, over a line that may lose, damage or cut them.

A request is sent until its answer comes: the board carries a frame out once, and gives the same answer to
the same frame. A line that is gone is opened again.
"""

import logging
import secrets
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from sparsyfed.devices.serial_protocol import (
    ANSWER,
    MAX_PAYLOAD,
    Command,
    Frame,
    FrameReader,
    Status,
)
from sparsyfed.edge_runtime.errors import BackendError

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 2.0
REOPEN_SECONDS = 0.5
LEAST_PIECE = 16
TIMED_ANSWERS = 8


class Port(Protocol):
    """A line of bytes. All methods raise OSError once it is cut."""

    def fileno(self) -> int:
        """What `select` takes."""
        ...

    def read(self) -> bytes:
        """What has come; waits for nothing."""
        ...

    def write(self, data: bytes) -> None:
        """Send all of it."""
        ...

    def close(self) -> None:
        """Give the line back."""
        ...


class SerialLink:
    """The host's end of a line to one board; one caller at a time.

    `open_port` is called again when the line was cut. A request without an answer for `patience_s` seconds
    raises BackendError: the longest that a board may compute in one go, or a line may stay cut.
    """

    def __init__(
        self,
        open_port: Callable[[], Port],
        *,
        patience_s: float = 120.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._open_port = open_port
        self._patience_s = patience_s
        self._should_stop = should_stop
        self._port: Port | None = None
        self._reader = FrameReader()
        self._sequence = secrets.randbits(32)  # never that of a host before
        self._answer_times: deque[float] = deque(maxlen=TIMED_ANSWERS)
        self.piece_bytes = MAX_PAYLOAD
        """Bytes to send or ask for at a time: fewer on a noisy line."""
        self.resent = 0
        """Frames that were sent again."""

    def close(self) -> None:
        """Give the line back; the next request opens it again."""
        if self._port is not None:
            with suppress(OSError):
                self._port.close()
        self._port = None

    def ask(self, command: Command, payload: bytes = b"") -> Frame:
        """The answer to a request, whatever its status. Raises BackendError if none comes."""
        self._sequence = (self._sequence + 1) % 2**32
        request = Frame(command, self._sequence, payload)
        until = time.monotonic() + self._patience_s
        wait = self._first_wait(command)
        attempts = 0
        while time.monotonic() < until and not self._should_stop():
            began = time.monotonic()
            try:
                answer = self._try_once(request, min(wait, until - began))
            except OSError as error:
                logger.info("the line to the board is cut: %s", error)
                self.close()
                time.sleep(min(REOPEN_SECONDS, max(0.0, until - time.monotonic())))
                continue
            if answer is not None:
                if command in {Command.DATA, Command.READ}:
                    self._learn(attempts, time.monotonic() - began)
                return answer
            attempts += 1
            self.resent += 1
            if time.monotonic() - began >= wait:
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        raise BackendError(
            f"no answer from the board to {command.name} in {self._patience_s:g} s: is it connected, "
            "does it run the firmware, is no other program on its port?"
        )

    def _first_wait(self, command: Command) -> float:
        """Seconds until an answer counts as lost: pieces take about as long as those before."""
        if command not in {Command.DATA, Command.READ} or not self._answer_times:
            return FIRST_WAIT_SECONDS
        return min(FIRST_WAIT_SECONDS, 0.005 + 4 * max(self._answer_times))

    def _learn(self, attempts: int, seconds: float) -> None:
        """Choose the size of pieces: one that came through at once may grow, else half."""
        self._answer_times.append(seconds)
        if attempts == 0:
            self.piece_bytes = min(MAX_PAYLOAD, self.piece_bytes + self.piece_bytes // 4 // 4 * 4)
        elif attempts > 1:
            self.piece_bytes = max(LEAST_PIECE, self.piece_bytes // 8 * 4)

    def _try_once(self, request: Frame, seconds: float) -> Frame | None:
        """Send the request and wait for its answer. None: it came damaged, or not in time."""
        if self._port is None:
            self._port = self._open_port()
            self._reader = FrameReader()
        self._port.write(request.encode())
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._port], [], [], left)[0]:
                break
            for answer in self._reader.feed(self._port.read()):
                if answer is None or _is_complaint(answer):
                    return None
                if answer.command == request.command | ANSWER and (
                    answer.sequence == request.sequence
                ):
                    return answer
        return None


def _is_complaint(answer: Frame) -> bool:
    return answer.command == Command.COMPLAIN | ANSWER and answer.status == Status.DAMAGED
