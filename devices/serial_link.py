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

FIRST_WAIT_SECONDS = 0.5
LEAST_WAIT_SECONDS = 0.005
LONGEST_WAIT_SECONDS = 2.0
FIRST_REOPEN_SECONDS = 0.5
LONGEST_REOPEN_SECONDS = 15.0
STOP_SECONDS = 0.2
"""How often a wait looks whether it is to end."""
MAX_PIECE = MAX_PAYLOAD - 4
LEAST_PIECE = 16
PIECE_ATTEMPTS = 3
FRAME_BYTES = 28
"""Of a request and its answer, besides what they carry."""
USUAL_ANSWER_BYTES = 64
TIMED_ANSWERS = 8
QUICK = {Command.HELLO, Command.BEGIN}
"""Commands for which a board computes nothing."""


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

    `open_port` is called again when the line was cut, at growing intervals while that fails. A request without an
    answer for `patience_s` seconds raises BackendError: the longest that a board may compute in one go, or a line may
    stay cut. `name` is the board's in messages.
    """

    def __init__(
        self,
        open_port: Callable[[], Port],
        *,
        patience_s: float = 120.0,
        should_stop: Callable[[], bool] = lambda: False,
        name: str = "the board",
    ) -> None:
        self._open_port = open_port
        self.name = name
        self._patience_s = patience_s
        self._should_stop = should_stop
        self._port: Port | None = None
        self._reader = FrameReader()
        self._sequence = secrets.randbits(32)  # never that of a host before
        self._rates: deque[float] = deque(maxlen=TIMED_ANSWERS)
        self._lost_since: float | None = None
        self._reopen_s = FIRST_REOPEN_SECONDS
        self.piece_bytes = MAX_PIECE
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
        request = self._next(command, payload)
        began = time.monotonic()
        wait = self._first_wait(request)
        while True:
            tried = time.monotonic()
            answer = self._try_once(request, wait)
            if answer is not None:
                if command in QUICK:
                    self._learn(request, answer, time.monotonic() - tried)
                return answer
            self._require_patience(command, began)
            # A board that says nothing computes; one whose answer came damaged is there.
            is_silent = time.monotonic() - tried >= wait
            wait = min(2 * wait, LONGEST_WAIT_SECONDS) if is_silent else self._first_wait(request)

    def ask_piece(self, command: Command, payload: bytes) -> Frame | None:
        """The answer to a request about a piece of an object, or None: then a smaller one may come through.

        `piece_bytes` is chosen anew. The board may have carried the request out. Raises BackendError if nothing
        has come through for `patience_s`.
        """
        request = self._next(command, payload)
        for attempt in range(PIECE_ATTEMPTS):
            began = time.monotonic()
            answer = self._try_once(request, self._first_wait(request))
            if answer is not None:
                self._learn(request, answer, time.monotonic() - began)
                self._lost_since = None
                if attempt == 0:
                    self.piece_bytes = min(MAX_PIECE, self.piece_bytes + self.piece_bytes // 4)
                return answer
            self._lost_since = self._lost_since or began
            self._require_patience(command, self._lost_since)
        self.piece_bytes = max(LEAST_PIECE, self.piece_bytes // 2)
        return None

    def _learn(self, request: Frame, answer: Frame, seconds: float) -> None:
        """Take note of how long a board that computed nothing took for these bytes."""
        self._rates.append(seconds / (FRAME_BYTES + len(request.payload) + len(answer.payload)))

    def _first_wait(self, request: Frame) -> float:
        """Seconds until an answer counts as lost: some times what its bytes may take."""
        if not self._rates:
            return FIRST_WAIT_SECONDS
        size = FRAME_BYTES + len(request.payload) + USUAL_ANSWER_BYTES
        if request.command == Command.READ:
            size += self.piece_bytes
        return min(LONGEST_WAIT_SECONDS, LEAST_WAIT_SECONDS + 4 * max(self._rates) * size)

    def _next(self, command: Command, payload: bytes) -> Frame:
        self._sequence = (self._sequence + 1) % 2**32
        return Frame(command, self._sequence, payload)

    def _require_patience(self, command: Command, since: float) -> None:
        self.resent += 1
        if self._should_stop():
            raise BackendError(f"stopped before {self.name} answered {command.name}")
        if time.monotonic() - since >= self._patience_s:
            raise BackendError(
                f"no answer from {self.name} to {command.name} in {self._patience_s:g} s: is it connected, "
                "does it run the firmware, is no other program on its port?"
            )

    def _try_once(self, request: Frame, seconds: float) -> Frame | None:
        """Send the request and wait for its answer. None: it came damaged, or not in time."""
        try:
            return self._exchange(request, time.monotonic() + seconds)
        except OSError as error:
            self.close()
            wait = min(self._reopen_s, self._patience_s)
            logger.info("%s: no line: %s; again in %.3g s", self.name, error, wait)
            self._wait(wait)
            self._reopen_s = min(2 * self._reopen_s, LONGEST_REOPEN_SECONDS)
            return None

    def _wait(self, seconds: float) -> None:
        """Wait, unless told to stop."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._should_stop():
            time.sleep(min(left, STOP_SECONDS))

    def _exchange(self, request: Frame, until: float) -> Frame | None:
        if self._port is None:
            self._port = self._open_port()
            self._reader = FrameReader()
        self._port.write(request.encode())
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._port], [], [], left)[0]:
                break
            for answer in self._reader.feed(self._port.read()):
                if answer is None or _is_complaint(answer):
                    return None
                if answer.command == request.command | ANSWER and (
                    answer.sequence == request.sequence
                ):
                    self._reopen_s = FIRST_REOPEN_SECONDS
                    return answer
        return None


def _is_complaint(answer: Frame) -> bool:
    return answer.command == Command.COMPLAIN | ANSWER and answer.status == Status.DAMAGED
