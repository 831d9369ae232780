"""The serial protocol of boards: numbers, frames, no I/O. docs/serial.md is the text.

A frame is a header, a payload and a CRC-32, stuffed (COBS) so that it has no zero bytes, between zero
bytes.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from sparsyfed.edge_runtime.errors import FormatError, InputError

VERSION = 3
HEADER = struct.Struct("<BbI")
"""Command, status, sequence number."""
CHECKSUM = struct.Struct("<I")
MAX_PAYLOAD = 1024
MAX_FRAME = HEADER.size + MAX_PAYLOAD + CHECKSUM.size
ANSWER = 0x80


class Command(IntEnum):
    """What a frame asks of a board."""

    COMPLAIN = 0
    HELLO = 1
    BEGIN = 2
    DATA = 3
    OPEN = 4
    TRAIN = 5
    EVALUATE = 6
    ENCODE = 7
    READ = 8
    PROFILE = 9
    RESET = 10
    COLLECT = 11


class SerialObject(IntEnum):
    """What is sent to a board in pieces, or read from it."""

    ARTIFACT = 0
    STATE = 1
    EXAMPLES = 2
    LAYOUT = 3
    UPDATE = 4
    VALUES = 5


class Status(IntEnum):
    """Status of an answer; negative ones are codes of the core."""

    OK = 0
    DAMAGED = 1
    COMMAND = 2
    LENGTH = 3
    ORDER = 4
    MEMORY = 5
    MISSING = 6
    CHECKSUM = 7
    RANGE = 8


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. `status` is 0 in a request."""

    command: int
    sequence: int
    payload: bytes = b""
    status: int = 0

    def encode(self) -> bytes:
        """The bytes for the line, with the zero bytes around them. Raises InputError for a payload too long."""
        if len(self.payload) > MAX_PAYLOAD:
            raise InputError(
                f"got a payload of {len(self.payload)} bytes, wanted up to {MAX_PAYLOAD}"
            )
        content = HEADER.pack(self.command, self.status, self.sequence) + self.payload
        return b"\0" + stuff(content + CHECKSUM.pack(zlib.crc32(content))) + b"\0"

    @classmethod
    def decode(cls, stuffed: bytes) -> "Frame":
        """Frame of the bytes between two zero bytes. Raises FormatError for a damaged one."""
        content = unstuff(stuffed)
        if not HEADER.size + CHECKSUM.size <= len(content) <= MAX_FRAME:
            raise FormatError(f"got a frame of {len(content)} bytes, wanted up to {MAX_FRAME}")
        body, checksum = content[: -CHECKSUM.size], content[-CHECKSUM.size :]
        if CHECKSUM.pack(zlib.crc32(body)) != checksum:
            raise FormatError("the checksum of a frame does not match")
        command, status, sequence = HEADER.unpack_from(body)
        return cls(command, sequence, body[HEADER.size :], status)


def stuff(data: bytes) -> bytes:
    """The same without zero bytes: Consistent Overhead Byte Stuffing (Cheshire and Baker, 1999)."""
    out = bytearray()
    pieces = data.split(b"\0")
    for number, piece in enumerate(pieces, start=1):
        at = 0
        while len(piece) - at >= 254:
            out += b"\xff" + piece[at : at + 254]
            at += 254
        if at < len(piece) or at == 0 or number < len(pieces):
            out += bytes([len(piece) - at + 1]) + piece[at:]
    return bytes(out)


def unstuff(stuffed: bytes) -> bytes:
    """What was stuffed. Raises FormatError where a group is cut short."""
    out = bytearray()
    at = 0
    while at < len(stuffed):
        code = stuffed[at]
        group = stuffed[at + 1 : at + code]
        if code == 0 or len(group) != code - 1:
            raise FormatError("a frame ends within a group of its stuffing")
        out += group
        at += code
        if code < 0xFF and at < len(stuffed):
            out.append(0)
    return bytes(out)


class FrameReader:
    """Takes what comes from a line, gives the frames in it. Holds one frame at most."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame | None]:
        """Frames that `data` completes, None for each that came damaged."""
        *ended, rest = data.split(b"\0")
        for piece in ended:
            self._take(piece)
            if self._pending:
                yield self._finish()
        self._take(rest)

    def _take(self, piece: bytes) -> None:
        # One byte over the longest frame is enough to know that a frame is too long.
        longest = MAX_FRAME + MAX_FRAME // 254 + 2
        self._pending += piece[: longest + 1 - len(self._pending)]

    def _finish(self) -> Frame | None:
        stuffed = bytes(self._pending)
        self._pending.clear()
        try:
            return Frame.decode(stuffed)
        except FormatError:
            return None
