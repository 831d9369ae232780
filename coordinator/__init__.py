"""The server of a federation: runs rounds with a fleet of devices over MQTT."""

from sparsyfed.coordinator.config import Configuration
from sparsyfed.coordinator.results import (
    DeviceResult,
    JobFailedError,
    JobResult,
    RoundFinished,
    TrainingReport,
)
from sparsyfed.coordinator.service import run

__all__ = [
    "Configuration",
    "DeviceResult",
    "JobFailedError",
    "JobResult",
    "RoundFinished",
    "TrainingReport",
    "run",
]
