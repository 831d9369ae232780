"""A board at the other end of a serial link: its commands as methods."""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from sparsyfed.devices.board_operations import EVERYTHING
from sparsyfed.devices.serial_link import SerialLink
from sparsyfed.devices.serial_protocol import (
    MAX_PAYLOAD,
    VERSION,
    Command,
    Frame,
    SerialObject,
    Status,
)
from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.errors import ArenaError, BackendError, FormatError, InputError

MAX_COUNTS = MAX_PAYLOAD // 4 - 1
MAX_PLACES = (MAX_PAYLOAD - 16) // 2
"""That one request trains on."""
MAX_STEPS = MAX_PAYLOAD // 4 - 1
"""Whose losses one answer holds."""
RESTARTS = 3
"""How often a transfer may lose what it had sent: a frame's checksum misses one damage in four billion."""
_FACTS = struct.Struct("<13I")
_PLAN = struct.Struct("<4I4Q")
_PROBLEM = struct.Struct("<3I")
_PROFILE = struct.Struct("<4I13Q")
_RING = struct.Struct("<4I")


class BoardResetError(BackendError):
    """The board has lost what it was given: it was reset."""


@dataclass(frozen=True, slots=True)
class FlashObject:
    """Bytes that are part of the firmware; none where `size` is 0."""

    size: int = 0
    checksum: int = 0

    def holds(self, data: bytes) -> bool:
        """Whether it is these bytes."""
        return self.size == len(data) and self.checksum == zlib.crc32(data)


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """What a board says of itself. Sizes in bytes.

    `memory_bytes` is what artifact, examples and arena share; text, data, bss and stack are the firmware's, and so is
    the model in flash, which is part of text. `ticks_per_second` is the rate of its counter. `operations` are the bits
    of those that it has (`board_operations.NAMES`).
    """

    name: str
    memory_bytes: int
    stack_bytes: int
    text_bytes: int
    data_bytes: int
    bss_bytes: int
    ticks_per_second: int
    operations: int = EVERYTHING
    artifact_in_flash: FlashObject = FlashObject()
    state_in_flash: FlashObject = FlashObject()


@dataclass(frozen=True, slots=True)
class BoardPlan:
    """The plan of a session on the board.

    Bytes of the arena, of one example and of its target; multiply-adds of a step.
    """

    arena_bytes: int
    transient_bytes: int
    input_bytes: int
    target_bytes: int
    forward: int
    d_input: int
    d_weight: int
    recomputed: int


@dataclass(frozen=True, slots=True)
class BoardProfile:
    """What a board has measured.

    Bytes, ticks of its counter that the last of each took, and the multiply-adds of all steps. The step has its ticks
    by part, too: top_k is the choice of the inputs that layers keep, update the change of the model.
    """

    steps: int
    arena_bytes: int
    arena_touched_bytes: int
    stack_touched_bytes: int
    plan_ticks: int
    open_ticks: int
    step_ticks: int
    evaluate_ticks: int
    encode_ticks: int
    step_forward_ticks: int
    step_backward_ticks: int
    step_top_k_ticks: int
    step_update_ticks: int
    forward: int
    d_input: int
    d_weight: int
    recomputed: int


@dataclass(frozen=True, slots=True)
class CollectedExamples:
    """Examples that a board has collected itself.

    `held` are there, of the `collected` since it began, `capacity` at most, the oldest overwritten first: example
    number k, from 0, is at place k modulo `capacity`. `wanted` are still to be collected.
    """

    held: int
    collected: int
    wanted: int
    capacity: int


class Board:
    """One board.

    Every method raises BackendError when no answer comes, BoardResetError when the board has lost what it was given.
    """

    def __init__(self, link: SerialLink) -> None:
        self._link = link
        self.name = link.name

    def hello(self) -> BoardFacts:
        """What the board is. Raises BackendError for a firmware of another protocol version."""
        payload = self._ask(Command.HELLO).payload
        (version,) = _unpack(struct.Struct("<I"), payload)
        if version != VERSION:
            raise BackendError(
                f"got a board of protocol version {version}, wanted {VERSION}: flash the firmware of "
                "this release"
            )
        _, _, memory, stack, text, data, bss, rate, operations, *flash = _unpack(_FACTS, payload)
        name = payload[_FACTS.size :].decode("ascii", "replace")
        return BoardFacts(
            name,
            *(memory, stack, text, data, bss, rate, operations),
            artifact_in_flash=FlashObject(*flash[:2]),
            state_in_flash=FlashObject(*flash[2:]),
        )

    def send(
        self,
        what: SerialObject,
        data: bytes,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Send an artifact, a state or examples; what the board has already is not sent again.

        False: `should_stop` said so before the end. Raises ArenaError if it does not fit, BackendError if the board
        keeps other bytes than were sent.
        """
        begin = struct.pack("<3I", what, len(data), zlib.crc32(data))
        received = self._received(self._ask(Command.BEGIN, begin, len(data)))
        restarts = 0
        while received < len(data):
            if should_stop():
                return False
            piece = data[received : received + self._link.piece_bytes]
            answer = self._link.ask_piece(Command.DATA, struct.pack("<I", received) + piece)
            if answer is None:
                continue
            if answer.status not in {Status.OK, Status.ORDER, Status.CHECKSUM}:
                self._raise(Command.DATA, answer, len(data))
            before, received = received, self._received(answer)
            restarts += received <= before
            if restarts > RESTARTS:
                raise BackendError(
                    f"the board lost what it had of {what.name} {restarts} times, the last time with "
                    f"{Status(answer.status).name} at {before} of {len(data)} bytes: is its memory damaged?"
                )
        return True

    def open(
        self, batch_size: int, layout: bytes, *, examples: int, gathered: int = 0
    ) -> BoardPlan:
        """Open a session on the state that was sent, with room for so many examples.

        `layout` is that of a plan for the portable kernels (`MemoryPlan`): the board checks it, and makes none itself.
        `gathered` is the room, in examples, for batches whose examples do not follow one another.

        Raises ArenaError when it does not fit, FormatError, MismatchError or InputError for what the core refuses.
        """
        self.send(SerialObject.LAYOUT, layout)
        request = struct.pack("<3I", batch_size, examples, gathered)
        return BoardPlan(*_unpack(_PLAN, self._ask(Command.OPEN, request).payload))

    def train(
        self,
        places: Sequence[int],
        batch_size: int,
        *,
        steps_before: int,
        learning_rate: float,
        weight_decay: float,
    ) -> list[float]:
        """Train, and return the loss of each step.

        Each `batch_size` of `places` among the examples are a step, the last one may have fewer: MAX_PLACES
        and MAX_STEPS in all. `steps_before` are the steps that the session has done, so that none is done twice.

        Raises InputError for more, and DivergedError or InputError as `Session.step` does.
        """
        steps = -(-len(places) // batch_size)
        if len(places) > MAX_PLACES or steps > MAX_STEPS:
            raise InputError(
                f"got {len(places)} places in {steps} steps, one request takes up to {MAX_PLACES} in "
                f"{MAX_STEPS}: send several"
            )
        request = struct.pack(
            f"<I2fI{len(places)}H", steps_before, learning_rate, weight_decay, batch_size, *places
        )
        answer = self._ask(Command.TRAIN, request)
        done, *losses = struct.unpack(f"<I{steps}f", _exactly(answer.payload, 4 + 4 * steps))
        if done != steps_before + steps:
            raise FormatError(f"the board has done {done} steps, wanted {steps_before + steps}")
        return losses

    def collect(self, count: int) -> CollectedExamples:
        """Have the board collect so many more examples from its sensors, in the room that `open` kept; 0 stops it.

        They take the place of examples that were sent. The session that comes next still has them if it keeps as much
        room. Wait until none is wanted, or stop it, before training on them. Raises BoardResetError without a session
        or, for 0, without collected examples.
        """
        return self._collect(struct.pack("<I", count))

    def collected(self) -> CollectedExamples:
        """What the board has collected. Raises BoardResetError if it was never asked to, or has lost it."""
        return self._collect(b"")

    def _collect(self, payload: bytes) -> CollectedExamples:
        answer = self._ask(Command.COLLECT, payload)
        return CollectedExamples(*_unpack(_RING, answer.payload))

    def evaluate(self, first: int, count: int) -> tuple[float, int]:
        """Loss and right answers of examples, without a change of the model."""
        answer = self._ask(Command.EVALUATE, struct.pack("<2I", first, count))
        loss, correct = _unpack(struct.Struct("<fI"), answer.payload)
        return loss, correct

    def update(self, round: int, counts: Sequence[int]) -> bytes:
        """The encoded update: `counts` has one number over all layers, or one a parameter."""
        if not 1 <= len(counts) <= MAX_COUNTS:
            raise InputError(
                f"got {len(counts)} counts, a board takes up to {MAX_COUNTS}: use the global budget"
            )
        answer = self._ask(Command.ENCODE, struct.pack(f"<{len(counts) + 1}I", round, *counts))
        size, checksum = _unpack(struct.Struct("<2I"), answer.payload)
        data = self._read(SerialObject.UPDATE, size)
        if zlib.crc32(data) != checksum:
            raise FormatError("the update was read with another checksum than the board has")
        return data

    def values(self, count: int) -> bytes:
        """`count` float32 values of all parameters, in the order of the artifact."""
        return self._read(SerialObject.VALUES, 4 * count)

    def profile(self) -> BoardProfile:
        """What the board has measured until now with the session that is open."""
        return BoardProfile(*_unpack(_PROFILE, self._ask(Command.PROFILE).payload))

    def reset(self) -> None:
        """Start the firmware again."""
        self._ask(Command.RESET)

    def _read(self, what: SerialObject, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            length = self._link.piece_bytes // 4 * 4
            answer = self._link.ask_piece(Command.READ, struct.pack("<3I", what, len(data), length))
            if answer is None:
                continue
            if answer.status != Status.OK:
                self._raise(Command.READ, answer, size)
            if not 0 < len(answer.payload) <= size - len(data):
                raise FormatError(f"got {len(answer.payload)} bytes of {size - len(data)} left")
            data += answer.payload
        return bytes(data)

    def _ask(self, command: Command, payload: bytes = b"", size: int = 0) -> Frame:
        answer = self._link.ask(command, payload)
        if answer.status != Status.OK:
            self._raise(command, answer, size)
        return answer

    def _received(self, answer: Frame) -> int:
        received: int = struct.unpack("<I", _exactly(answer.payload, 4))[0]
        return received

    def _raise(self, command: Command, answer: Frame, size: int) -> NoReturn:
        """Raise the exception of an answer; `size` is that of the object that was to be sent."""
        what = f"{self.name}, {command.name}"
        problem = _native.Problem()
        if command is Command.OPEN and len(answer.payload) == _PROBLEM.size:
            problem.position, problem.got, problem.wanted = _PROBLEM.unpack(answer.payload)
        if answer.status < 0:
            _native.raise_error(answer.status, what, problem)
        if answer.status == Status.MISSING:
            raise BoardResetError(f"{what}: the board has lost what it was given; was it reset?")
        if answer.status == Status.MEMORY:
            got, wanted = problem.got, problem.wanted
            if command is Command.BEGIN:
                got, wanted = self._received(answer), size
            raise ArenaError(
                f"{what}: got {got} bytes of memory left, wanted {wanted}", got=got, wanted=wanted
            )
        if answer.status == Status.COMMAND:
            raise FormatError(
                f"{what}: the board answers COMMAND: its firmware was built without it"
            )
        known = Status(answer.status).name if answer.status in set(Status) else answer.status
        raise FormatError(f"{what}: the board answers {known}")


def _exactly(payload: bytes, size: int) -> bytes:
    if len(payload) != size:
        raise FormatError(f"got an answer of {len(payload)} bytes, wanted {size}")
    return payload


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    """The numbers of an answer; only a hello has more after them."""
    if len(payload) < layout.size:
        raise FormatError(f"got an answer of {len(payload)} bytes, wanted {layout.size}")
    return layout.unpack_from(payload)
