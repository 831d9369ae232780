"""Devices: what they are, their data, their local round, and their side of the protocol.

`sparsyfed.devices.client` runs one over MQTT and needs the extra `agent`; nothing else here needs
more than the standard library and the runtime.
"""

from sparsyfed.devices.agent import Agent
from sparsyfed.devices.dataset import Batch, Dataset
from sparsyfed.devices.feasibility import Feasibility, Fit, evenly_spread_state, feasibility
from sparsyfed.devices.profiles import (
    DeviceProfile,
    find_profile,
    list_profiles,
    load_profiles,
    parse_bytes,
)
from sparsyfed.devices.settings import AgentSettings, DeviceSettings, TlsFiles
from sparsyfed.devices.storage import DeviceStorage
from sparsyfed.devices.training import LocalResult, LocalRound, shuffle_seed, train_locally
from sparsyfed.devices.virtual import VirtualDevice, train_devices

__all__ = [
    "Agent",
    "AgentSettings",
    "Batch",
    "Dataset",
    "DeviceProfile",
    "DeviceSettings",
    "DeviceStorage",
    "Feasibility",
    "Fit",
    "LocalResult",
    "LocalRound",
    "TlsFiles",
    "VirtualDevice",
    "evenly_spread_state",
    "feasibility",
    "find_profile",
    "list_profiles",
    "load_profiles",
    "parse_bytes",
    "shuffle_seed",
    "train_devices",
    "train_locally",
]
