"""What the core of a device takes in (events) and asks for (actions)."""

from dataclasses import dataclass
from pathlib import Path

from sparsyfed.devices.training import LocalResult
from sparsyfed.edge_runtime import messages
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.messages import Control, Offer, Receipt, RoundNotice
from sparsyfed.edge_runtime.transfer import decode_block

# ---- events ----


@dataclass(frozen=True, slots=True)
class Connected:
    """The link to the broker stands, new or again."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The link to the broker is gone: nothing is sent until it stands again."""


@dataclass(frozen=True, slots=True)
class OfferReceived:
    """The coordinator offers work."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class BlockReceived:
    """A block of an object arrived; `prefix` is the beginning of the object's id."""

    prefix: str
    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ReceiptReceived:
    """The coordinator answers a report."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class ControlReceived:
    """The coordinator gives an order."""

    control: Control


@dataclass(frozen=True, slots=True)
class RoundNoticeReceived:
    """The coordinator has announced a round."""

    notice: RoundNotice


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """The local round of this offer is done."""

    offer: Offer
    result: LocalResult


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """The local round of this offer could not be done."""

    offer: Offer
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. `room` is the number of parts of an update that the link can take now."""

    room: int = 16


Event = (
    Connected
    | Disconnected
    | OfferReceived
    | BlockReceived
    | ReceiptReceived
    | ControlReceived
    | RoundNoticeReceived
    | TrainingFinished
    | TrainingFailed
    | Tick
)

# ---- actions ----


@dataclass(frozen=True, slots=True)
class Publish:
    """Send a message."""

    topic: str
    payload: bytes
    qos: int


@dataclass(frozen=True, slots=True)
class StartTraining:
    """Train as the offer says, then answer with TrainingFinished or TrainingFailed.

    `artifact` is what a session on the offer's engine opens.
    """

    offer: Offer
    artifact: Path
    state: Path


@dataclass(frozen=True, slots=True)
class StopTraining:
    """The training in hand is no longer wanted."""


@dataclass(frozen=True, slots=True)
class JobFinished:
    """The coordinator has said that the job is over, and no work of another one is in hand."""

    job: str | None


Action = Publish | StartTraining | StopTraining | JobFinished


def received(device: str, topic: str, payload: bytes | bytearray) -> Event:
    """The event that a message means for this device.

    Raises FormatError for anything malformed or not for it.
    """
    if topic == messages.ROUND_TOPIC:
        return RoundNoticeReceived(RoundNotice.from_json(payload))
    addressee, leaf = messages.parse_topic(topic)
    if addressee != device:
        raise FormatError(f"topic: got a message for {addressee}, wanted one for {device}")
    if leaf == messages.OFFER:
        return OfferReceived(Offer.from_json(payload))
    if leaf == messages.RECEIPT:
        return ReceiptReceived(Receipt.from_json(payload))
    if leaf == messages.CONTROL:
        return ControlReceived(Control.from_json(payload))
    kind, _, prefix = leaf.rpartition("/")
    if kind == messages.BLOCK:
        index, data = decode_block(payload)
        return BlockReceived(prefix, index, data)
    raise FormatError(f"topic: got {topic[:120]!r}, which is none that a device listens to")
