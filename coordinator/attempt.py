"""What the round machine keeps: its phase, and the open attempt with what became of its offers."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

OPEN, COMMITTED = "open", "committed"
DECLINED, LOST, REJECTED = "declined", "lost", "rejected"


class Phase(Enum):
    """Where the machine stands."""

    WAITING = "waiting"  # for enough devices
    COLLECTING = "collecting"  # offers are out, updates come in
    AGGREGATING = "aggregating"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(slots=True)
class DeviceOffer:
    """The part of one device in the attempt. `Attempt.move` changes its status."""

    status: str
    answered: bool = False
    boot: str | None = None  # program that the offer was sent to; None: sent before a restart
    answer_by: float = 0.0
    send_again: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class Attempt:
    """An attempt that collects updates until `goal` of them are there or `deadline` has come."""

    goal: int
    quorum: int
    deadline: float
    offers: dict[str, DeviceOffer] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)  # offers by status

    def add(self, device: str, offer: DeviceOffer) -> None:
        """Take a device in."""
        self.offers[device] = offer
        self.counts[offer.status] += 1

    def move(self, offer: DeviceOffer, status: str) -> None:
        """Give an offer another status."""
        self.counts[offer.status] -= 1
        self.counts[status] += 1
        offer.status = status

    def with_status(self, status: str) -> list[str]:
        """Devices with this status, sorted by name."""
        return sorted(device for device, offer in self.offers.items() if offer.status == status)

    @property
    def within_reach(self) -> int:
        """Updates that are there or may still come."""
        return self.counts[OPEN] + self.counts[COMMITTED]

    def shortfall(self) -> str:
        """What came, what was wanted and what became of the others."""
        rest = (f"{self.counts[status]} {status}" for status in (OPEN, LOST, DECLINED, REJECTED))
        return f"got {self.counts[COMMITTED]} updates, wanted {self.quorum} ({', '.join(rest)})"
