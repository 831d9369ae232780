"""What a job gives back: figures of each round, what training took on each device, the trained state."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsyfed.edge_runtime import Artifact, BackendError, State
from sparsyfed.edge_runtime.messages import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFinished:
    """A finished round. Bytes are MQTT payloads that the coordinator sent (down) and received (up)."""

    round: int
    # Of the new state on the held-out data; None without it, accuracy also for a regression.
    accuracy: float | None
    loss: float | None
    density_down: float  # of the state that the devices trained
    bytes_down: int
    bytes_up: int
    update_bytes: int  # of the largest update that counts
    devices: int  # whose updates count
    examples: int  # of these devices
    # Of those of these devices that count them: forward, d_input, d_weight.
    multiply_adds: Mapping[str, int]
    attempts: int
    seconds: float  # since the round before, while the coordinator ran
    learning_rate: float

    def to_mapping(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """What one local round took on a device."""

    round: int
    backend: str
    engine: str  # name and version, or the kernels of the native core
    planned_arena_bytes: int | None  # None, with the next one: the engine has no arena
    arena_peak_bytes: int | None
    base_rss_bytes: int | None  # of the process with its engine loaded, before any model
    peak_rss_bytes: int | None  # of the process since it started, as the system tells it
    multiply_adds: Mapping[str, int] | None  # forward, d_input, d_weight; None: not counted
    examples: int
    loss: float
    seconds: float

    @classmethod
    def of_report(cls, report: Report) -> "TrainingReport":
        """The training that a device reports."""
        profile = report.profile
        work = profile.multiply_adds
        return cls(
            round=report.round,
            backend=profile.backend,
            engine=profile.engine,
            planned_arena_bytes=profile.planned_arena_bytes,
            arena_peak_bytes=profile.arena_peak_bytes,
            base_rss_bytes=profile.base_rss_bytes,
            peak_rss_bytes=profile.peak_rss_bytes,
            multiply_adds=None if work is None else asdict(work),
            examples=report.examples,
            loss=report.loss,
            seconds=report.seconds,
        )

    def to_mapping(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceResult:
    """A device of the job: its round with the largest planned arena (the first without plans), and its latest."""

    id: str
    rounds: int  # in which its update counted
    peak: TrainingReport
    latest: TrainingReport


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """A finished job."""

    name: str
    artifact: Artifact
    state: State
    rounds: tuple[RoundFinished, ...]
    devices: tuple[DeviceResult, ...]


class JobFailedError(BackendError):
    """The job can't go on: too few devices, or a round that failed too often. Started again, it goes on from there."""
