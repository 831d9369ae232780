"""What the round machine takes in (events) and what it asks for (actions).

Actions are carried out in the order given: what goes to the journal stands before what is sent because of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sparsyfed.coordinator.admission import Needs
from sparsyfed.edge_runtime.messages import ControlKind, ReceiptStatus

# ---- events ----


@dataclass(frozen=True, slots=True)
class DeviceHello:
    """A device says what it is. `boot` changes each time its program starts."""

    device: str
    boot: str
    memory_bytes: int
    block_bytes: int
    backend: str = "native"


@dataclass(frozen=True, slots=True)
class DeviceOffline:
    """The broker has lost a device."""

    device: str
    boot: str


@dataclass(frozen=True, slots=True)
class OfferAnswered:
    """A device has taken or declined an offer."""

    device: str
    round: int
    attempt: int
    accept: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UpdateReported:
    """A device says that all parts of its update have been sent."""

    device: str
    round: int
    attempt: int
    sha256: str
    examples: int


@dataclass(frozen=True, slots=True)
class UpdateInspected:
    """What was found on InspectUpdate: parts that are not there, or why the update is refused, or nothing wrong."""

    report: UpdateReported
    missing: tuple[int, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class RoundAggregated:
    """The new state is in the journal. `needs` is what training it takes on a device, by engine."""

    needs: Mapping[str, Needs]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; `now` is in seconds on any clock that never goes back."""

    now: float


Event = (
    DeviceHello
    | DeviceOffline
    | OfferAnswered
    | UpdateReported
    | UpdateInspected
    | RoundAggregated
    | Tick
)

# ---- actions ----


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """Journal: an attempt at a round begins, with offers to these devices."""

    round: int
    attempt: int
    goal: int
    quorum: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AddOffer:
    """Journal: one more device takes part in the open attempt, in place of one that dropped out."""

    round: int
    attempt: int
    device: str


@dataclass(frozen=True, slots=True)
class DropDevice:
    """Journal: a device is out of the open attempt. `status` is declined, lost or rejected."""

    round: int
    attempt: int
    device: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class CommitUpdate:
    """Journal: the inspected update counts."""

    report: UpdateReported


@dataclass(frozen=True, slots=True)
class FailAttempt:
    """Journal: the attempt did not reach its quorum; its updates are dropped."""

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class SendOffer:
    """Send the work of a round; `deadline_s` is the time left."""

    device: str
    round: int
    attempt: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class SendReceipt:
    """Answer a report."""

    device: str
    round: int
    attempt: int
    sha256: str
    status: ReceiptStatus
    missing: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SendControl:
    """Order a device to `abort` the work of this round and attempt, or to `finish`: the job is over."""

    device: str
    kind: ControlKind
    round: int | None = None
    attempt: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RefuseDevice:
    """A device is not admitted to this round: to be logged, and told to the device."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class InspectUpdate:
    """Look at the parts of a reported update and answer with UpdateInspected."""

    report: UpdateReported


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Average the updates of these devices into the next state, journal it, answer with RoundAggregated."""

    round: int
    attempt: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnnounceRound:
    """Publish the number of the running round."""

    round: int


@dataclass(frozen=True, slots=True)
class FinishJob:
    """All rounds are done."""


@dataclass(frozen=True, slots=True)
class FailJob:
    """The job can't go on."""

    reason: str


Action = (
    OpenAttempt
    | AddOffer
    | DropDevice
    | CommitUpdate
    | FailAttempt
    | SendOffer
    | SendReceipt
    | SendControl
    | RefuseDevice
    | InspectUpdate
    | Aggregate
    | AnnounceRound
    | FinishJob
    | FailJob
)


# ---- what a restart takes up again ----


@dataclass(frozen=True, slots=True)
class OpenRound:
    """An attempt as the journal holds it: devices offered (with their status) and updates that count (sha256)."""

    round: int
    attempt: int
    goal: int
    quorum: int
    offers: Mapping[str, str]
    committed: Mapping[str, str]
