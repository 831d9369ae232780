"""Topics and control messages between a coordinator and its devices.

Control messages are JSON objects of at most 64 KiB; bulk data (blocks of an object, parts of an
update) is binary and lives in `sparsyfed.edge_runtime.transfer`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.json_message import (
    Message,
    choice,
    flag,
    indices,
    integer,
    matching,
    messages,
    number,
    optional,
    refuse,
    text,
)

TOPIC_PREFIX = "sparsyfed/v1"

# Leaves of the per-device topics, below sparsyfed/v1/d/{device}/.
HELLO = "up/hello"
STATE = "up/state"
ANSWER = "up/ack"
GET = "up/get"
UPDATE = "up/upd"
REPORT = "up/report"
OFFER = "down/offer"
BLOCK = "down/blk"  # followed by the first 8 hex digits of the object's id
RECEIPT = "down/rcpt"
CONTROL = "down/ctl"

ROUND_TOPIC = f"{TOPIC_PREFIX}/bcast/round"
COORDINATOR_FILTER = f"{TOPIC_PREFIX}/d/+/up/#"

# Quality of service a message is published with, by leaf. The device asks again for blocks that do
# not come, so that the broker need not keep them or the requests.
QOS = {
    HELLO: 1, STATE: 1, ANSWER: 1, GET: 0, UPDATE: 1, REPORT: 1, OFFER: 1, BLOCK: 0, RECEIPT: 1, CONTROL: 1,
}  # fmt: skip

MIN_BLOCK_BYTES = 256
MAX_BLOCK_BYTES = 256 * 1024
# Of one object: its hash list is at most 512 KiB, below a broker's packet limit of 1 MiB.
MAX_BLOCKS = 16_384
MAX_OBJECT_BYTES = 2**31 - 1
MAX_REQUESTED_BLOCKS = 16
MAX_PARTS = 65_535
MAX_EXPORT_FILES = 64
MAX_MISSING = 4_096  # parts named by one receipt; the rest is asked for by the next
MAX_REASON_CHARACTERS = 500
HASH_LIST_INDEX = 0xFFFF_FFFF

_UINT32 = 2**32 - 1
_UINT63 = 2**63 - 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""Of a job, a device, a profile: what may stand in a topic."""
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def device_topic(device: str, leaf: str) -> str:
    """Topic of one device, for example `sparsyfed/v1/d/watch-1/up/hello`.

    Raises FormatError if the device id may not stand in a topic (letters, digits, `.`, `_`, `-`; at
    most 64).
    """
    _name("device", device)
    return f"{TOPIC_PREFIX}/d/{device}/{leaf}"


def block_topic(device: str, object_id: str) -> str:
    """Topic on which the device receives the blocks of the object with this id (sha256, hex)."""
    return f"{device_topic(device, BLOCK)}/{object_id[:8]}"


def device_filter(device: str) -> str:
    """Subscription filter for everything sent to this device."""
    return device_topic(device, "down/#")


def parse_topic(topic: str) -> tuple[str, str]:
    """Device id and leaf of a per-device topic; for blocks the leaf includes the object prefix.

    Raises FormatError for any other topic.
    """
    prefix = f"{TOPIC_PREFIX}/d/"
    device, _, leaf = topic.removeprefix(prefix).partition("/")
    if not topic.startswith(prefix) or not leaf or not NAME.fullmatch(device):
        raise FormatError(f"topic: got {topic[:120]!r}, wanted {prefix}<device>/<leaf>")
    return device, leaf


def printable_reason(text: str) -> str:
    """The text as a `reason` field takes it: in one line, cut to its limit."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_REASON_CHARACTERS]


def _block_index(name: str, value: object) -> object:
    return value if value == HASH_LIST_INDEX else integer(0, MAX_BLOCKS - 1)(name, value)


def _budget(name: str, value: object) -> object:
    if isinstance(value, str):
        return choice("global", "erk")(name, value)
    if not isinstance(value, Mapping) or not 1 <= len(value) <= 4096:
        raise refuse(name, value, '"global", "erk" or an object of counts by layer name')
    layer, count = text(256), integer(0, _UINT32)
    return {layer(name, key): count(f"{name}[{key!r}]", item) for key, item in value.items()}


_name = matching(NAME, "a name of letters, digits, '.', '_', '-', at most 64 characters")
_sha256 = matching(_SHA256, "64 lower-case hexadecimal digits")
_reason = text(MAX_REASON_CHARACTERS)

ReceiptStatus = Literal["missing", "commit", "late", "rejected"]
ControlKind = Literal["finish", "hello", "abort", "wait"]

Name = Annotated[str, _name]
Sha256 = Annotated[str, _sha256]
Reason = Annotated[str, _reason]
Uint32 = Annotated[int, integer(0, _UINT32)]
Bytes = Annotated[int, integer(0, _UINT63)]
OptionalBytes = Annotated[int | None, optional(integer(0, _UINT63))]
BlockBytes = Annotated[int, integer(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES)]
Budget = Annotated[str | Mapping[str, int], _budget]


@dataclass(frozen=True, slots=True)
class HeldUpdate(Message):
    """A finished update that a device keeps: the work it answers, and the sha256 of its bytes."""

    job: Name
    round: Uint32
    attempt: Uint32
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """What a device is and holds; sent after each connection and whenever the coordinator asks.

    `boot` changes each time the device's program starts. `memory_bytes` is what training may use; `macs_per_second`
    is the measured or declared number of multiply-adds, None if unknown. `block_bytes` is the largest block or part
    that the device can buffer. `backend` is the engine that it trains with, as in `Session.open`.
    """

    device: Name
    boot: Name
    runtime: Annotated[str, text(64)]
    profile: Name
    memory_bytes: Bytes
    macs_per_second: Annotated[float | None, optional(number(0, above=True))]
    examples: Uint32
    block_bytes: BlockBytes
    holding: HeldUpdate | None = None
    backend: Name = "native"


@dataclass(frozen=True, slots=True)
class Online(Message):
    """Whether a device is connected.

    The broker publishes the one with `online` false as the device's will.
    """

    device: Name
    boot: Name
    online: Annotated[bool, flag]


@dataclass(frozen=True, slots=True)
class RoundNotice(Message):
    """Retained notice of the running round.

    A `boot` that a device has not seen makes it say hello again.
    """

    job: Name
    round: Uint32
    boot: Name


@dataclass(frozen=True, slots=True)
class ObjectReference(Message):
    """An object to pull in blocks.

    `id` is its sha256; `hashes` the sha256 of its hash list, which is the concatenated sha256 of
    each block and is itself pulled as block HASH_LIST_INDEX.
    """

    id: Sha256
    size: Annotated[int, integer(1, MAX_OBJECT_BYTES)]
    block_bytes: BlockBytes
    hashes: Sha256

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        if self.blocks > MAX_BLOCKS:
            raise refuse(
                "size", self.size, f"at most {MAX_BLOCKS} blocks of {self.block_bytes} bytes"
            )

    @property
    def blocks(self) -> int:
        """Number of blocks; the last one may be short."""
        return -(-self.size // self.block_bytes)


@dataclass(frozen=True, slots=True)
class ExportFile(Message):
    """A file of an export: its name in the folder of the export, and its bytes."""

    name: Name
    object: ObjectReference


@dataclass(frozen=True, slots=True)
class Export(Message):
    """The model for a device that trains on another engine than the native core.

    `opened` is the file that `Session.open` takes, None for the folder of them all. `memory_bytes` is what training
    took, beside program and engine, where it was measured.
    """

    backend: Name
    files: Annotated[tuple[ExportFile, ...], messages(ExportFile, MAX_EXPORT_FILES)]
    opened: Annotated[str | None, optional(_name)]
    memory_bytes: Bytes

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        names = [file.name for file in self.files]
        if len(set(names)) != len(names) or not {self.opened} <= {None, *names}:
            raise refuse("opened", self.opened, f"one of these files, each once: {names}")


@dataclass(frozen=True, slots=True)
class Offer(Message):
    """The work of one device in one round.

    `deadline_s` is in seconds from the moment the offer arrives, so that the device needs no right
    clock. `sparsity` and `budget` say how many entries the update keeps. `export` is None for the native core.
    """

    job: Name
    round: Uint32
    attempt: Uint32
    artifact: ObjectReference
    state: ObjectReference
    batch_size: Annotated[int, integer(1, 65_535)]
    epochs: Annotated[int, integer(1, 1_000)]
    learning_rate: Annotated[float, number(0, 1e6, above=True)]
    weight_decay: Annotated[float, number(0, 1e6)]
    sparsity: Annotated[float, number(0, 1, below=True)]
    budget: Budget
    seed: Bytes
    deadline_s: Annotated[float, number(0, 1e9, above=True)]
    export: Export | None = None

    @property
    def objects(self) -> tuple[ObjectReference, ...]:
        """Everything that the device pulls, each object once."""
        files = self.export.files if self.export else ()
        return tuple(dict.fromkeys((self.artifact, self.state, *(file.object for file in files))))

    @property
    def backend(self) -> str:
        """The engine that the work is for."""
        return self.export.backend if self.export else "native"


@dataclass(frozen=True, slots=True)
class OfferAnswer(Message):
    """A device takes the offered work or declines it, with the reason."""

    job: Name
    round: Uint32
    attempt: Uint32
    accept: Annotated[bool, flag]
    reason: Reason = ""


@dataclass(frozen=True, slots=True)
class BlockRequest(Message):
    """A device asks for blocks of an object, by index; HASH_LIST_INDEX asks for the hash list."""

    object: Sha256
    block_bytes: BlockBytes
    blocks: Annotated[tuple[int, ...], indices(MAX_REQUESTED_BLOCKS, _block_index, least=1)]


@dataclass(frozen=True, slots=True)
class MultiplyAddsReport(Message):
    """Multiply-adds that a device really did over the prunable layers in one local round.

    `forward` has those of what was computed again, too.
    """

    forward: Bytes
    d_input: Bytes
    d_weight: Bytes


@dataclass(frozen=True, slots=True)
class DeviceProfileReport(Message):
    """What one local round took on the device, in bytes and multiply-adds; None is not known.

    An arena is planned and measured, and multiply-adds are counted, by the native core alone.
    `peak_rss_bytes` is the largest resident set of the process since it started, `base_rss_bytes`
    its resident set with the engine loaded, before any model. `engine` is name and version, or for
    the native core its kernels.
    """

    planned_arena_bytes: OptionalBytes
    arena_peak_bytes: OptionalBytes
    peak_rss_bytes: OptionalBytes
    multiply_adds: MultiplyAddsReport | None
    base_rss_bytes: OptionalBytes = None
    backend: Name = "native"
    engine: Annotated[str, text(128)] = ""


@dataclass(frozen=True, slots=True)
class Report(Message):
    """A device has sent its update in `parts` parts and asks for the receipt.

    Repeated until answered.
    """

    job: Name
    round: Uint32
    attempt: Uint32
    sha256: Sha256
    size: Annotated[int, integer(1, MAX_OBJECT_BYTES)]
    parts: Annotated[int, integer(1, MAX_PARTS)]
    examples: Annotated[int, integer(1, _UINT32)]
    loss: Annotated[float, number(0)]
    seconds: Annotated[float, number(0)]
    profile: DeviceProfileReport


@dataclass(frozen=True, slots=True)
class Receipt(Message):
    """Answer to a report.

    After "commit", "late" or "rejected" the device may drop its update; "missing" names the parts
    to send again.
    """

    job: Name
    round: Uint32
    attempt: Uint32
    sha256: Sha256
    status: Annotated[ReceiptStatus, choice(*get_args(ReceiptStatus))]
    missing: Annotated[tuple[int, ...], indices(MAX_MISSING, integer(0, MAX_PARTS - 1))] = ()
    reason: Reason = ""


@dataclass(frozen=True, slots=True)
class Control(Message):
    """Order to a device: say "hello", "abort" the work in hand, or "finish" (the job is over).

    "wait" only tells that it is not admitted to the round, and the reason. The order is about the
    work that `job`, `round` and `attempt` name: it may arrive after the next offer. What is None is
    any.
    """

    kind: Annotated[ControlKind, choice(*get_args(ControlKind))]
    job: Annotated[str | None, optional(_name)] = None
    round: Annotated[int | None, optional(integer(0, _UINT32))] = None
    attempt: Annotated[int | None, optional(integer(0, _UINT32))] = None
    reason: Reason = ""
