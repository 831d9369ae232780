"""The firmware of boards on this host, under sanitizers, behind lines that damage, lose and cut."""

import itertools
import os
import random
import select
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

from sparsyfed.devices.serial_link import SerialLink

ROOT = Path(__file__).parents[1]
FIRMWARE = ROOT / "devices" / "boards"
CORE = ROOT / "edge_runtime" / "csrc"
MEMORY_BYTES = 1 << 20
SANITIZED = (
    "-std=c99 -O1 -g1 -ffp-contract=off -fno-math-errno -fno-strict-aliasing -fno-omit-frame-pointer "
    "-fsanitize=address,undefined -fno-sanitize-recover=all"
)


def build_host_firmware(
    program: Path, memory_bytes: int = MEMORY_BYTES, model: Path = FIRMWARE / "no_model.c"
) -> Path:
    """Compile the firmware with a board made of standard input and output, and return it.

    Its sensors are the test source. `model` is a C file with a model for its flash.
    """
    sources = [path for path in sorted(FIRMWARE.glob("*.c")) if path.name != "no_model.c"]
    sources += [model, FIRMWARE / "drivers" / "test_source.c"]
    sources += [ROOT / "tests" / "c" / "host_board.c", *sorted(CORE.glob("*.c"))]
    definitions = [f"-DMEMORY_BYTES={memory_bytes}", '-DBOARD_NAME="host"']
    includes = [f"-I{FIRMWARE}", f"-I{CORE}"]
    symbols = [f"-Wl,--defsym=board_memory_end=board_memory_start+{memory_bytes}"]
    symbols += [
        f"-Wl,--defsym=board_{section}_{end}=board_memory_start"
        for section in ("text", "data", "bss")
        for end in ("start", "end")
    ]
    command = [
        "cc",
        *SANITIZED.split(),
        *definitions,
        *includes,
        *symbols,
        *map(str, sources),
        "-lm",
    ]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=300)
    return program


class HostBoard:
    """A board that is a process; `open_port` gives its line. `reset` loses all that it holds."""

    def __init__(self, program: Path, seed: int = 0) -> None:
        self._program = program
        self.random = random.Random(seed)
        self.damage_share = 0.0
        """Of the bytes, each way."""
        self.cut_every = 0
        """Bytes sent after which the line is cut; 0: never."""
        self.cuts = 0
        self.before_write: Callable[[], None] = lambda: None
        self.after_half: Callable[[], None] = lambda: None
        """Called between the two halves of what is written."""
        self.after_write: Callable[[], None] = lambda: None
        self._sent_since_cut = 0
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [str(self._program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def reset(self) -> None:
        """Switch the board off and on."""
        self.require_healthy()
        self._process.kill()
        self._end()
        self._process = self._start()

    def reset_at(self, moment: str, writes: Collection[int]) -> list[int]:
        """Reset at this moment of these writes, counted from 1, and no more; returns those that came, as they come."""
        counter, came = itertools.count(1), list[int]()

        def reset_if_so() -> None:
            if (number := next(counter)) in writes:
                came.append(number)
                self.reset()

        setattr(self, moment, reset_if_so)
        return came

    def require_healthy(self) -> None:
        """Fail if a sanitizer has ended the firmware."""
        assert self._process.poll() is None, "the firmware has ended"

    def stop(self) -> None:
        """Switch the board off."""
        self.require_healthy()
        self._process.kill()
        self._end()

    def _end(self) -> None:
        self._process.communicate()

    def link(self, patience_s: float = 30.0) -> SerialLink:
        """A link to this board."""
        return SerialLink(lambda: HostPort(self), patience_s=patience_s)

    def damaged(self, data: bytes) -> bytes:
        """The same with a share of its bytes changed."""
        if not self.damage_share:
            return data
        return bytes(
            self.random.randrange(256) if self.random.random() < self.damage_share else byte
            for byte in data
        )

    def write(self, data: bytes) -> None:
        """Bytes for the firmware, as they come out of the line."""
        self.before_write()
        assert self._process.stdin is not None
        data = self.damaged(data)
        if self.cut_every and self._sent_since_cut + len(data) > self.cut_every:
            self._process.stdin.write(data[: self.cut_every - self._sent_since_cut])
            self._sent_since_cut = 0
            self.cuts += 1
            raise ConnectionResetError("the line is cut")
        self._sent_since_cut += len(data)
        half = len(data) // 2
        self._process.stdin.write(data[:half])
        self.after_half()
        assert self._process.stdin is not None
        self._process.stdin.write(data[half:])
        self.after_write()

    def read(self) -> bytes:
        """What the firmware has sent, as it comes out of the line."""
        assert self._process.stdout is not None
        return self.damaged(self._process.stdout.read(4096) or b"")

    def fileno(self) -> int:
        """What `select` takes."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()


class HostPort:
    """One connection to a board on this host."""

    def __init__(self, board: HostBoard) -> None:
        self._board = board
        while select.select([board], [], [], 0)[0] and board.read():
            pass  # what came while nobody listened

    def fileno(self) -> int:
        """What `select` takes."""
        return self._board.fileno()

    def read(self) -> bytes:
        """What has come."""
        return self._board.read()

    def write(self, data: bytes) -> None:
        """Send all of it, or raise ConnectionResetError."""
        self._board.write(data)

    def close(self) -> None:
        """Nothing is left to give back."""
