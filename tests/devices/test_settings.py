"""Settings of a device."""

from pathlib import Path
from typing import Any

import pytest

from sparsyfed.devices.profiles import find_profile
from sparsyfed.devices.settings import DeviceSettings
from sparsyfed.edge_runtime.errors import ConfigurationError


@pytest.mark.parametrize("change", [{"device": "a/b"}, {"device": ""}, {"memory_bytes": 0}])
def test_wrong_settings_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "device": "watch-1",
        "host": "localhost",
        "port": 1883,
        "data": tmp_path,
        "directory": tmp_path / "device",
        "profile": find_profile("watch"),
        "memory_bytes": 1 << 20,
    }
    DeviceSettings(**settings)
    with pytest.raises(ConfigurationError, match="got"):
        DeviceSettings(**settings | change)
