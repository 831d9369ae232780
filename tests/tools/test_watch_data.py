import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.tools import watch_data
from sparsyfed.tools.fleet_data import FleetData

installed = pytest.mark.skipif(
    importlib.util.find_spec("seglearn") is None, reason="the package seglearn is not installed"
)


@pytest.fixture(scope="module")
def fleet() -> FleetData:
    return watch_data.load_fleet()


@installed
def test_eight_wearers_are_devices_and_the_last_two_are_held_out(
    fleet: FleetData,
) -> None:
    assert list(fleet.devices) == [f"watch-0{number}" for number in range(1, 9)]
    assert len(fleet.held_out) == 364
    assert sum(map(len, fleet.devices.values())) + len(fleet.held_out) == 1693


@installed
def test_windows_have_the_shape_and_types_that_a_session_takes(
    fleet: FleetData,
) -> None:
    for examples in [*fleet.devices.values(), fleet.held_out]:
        assert examples.x.shape == (len(examples), 6, 256)
        assert examples.x.dtype == np.float32
        assert examples.x.flags.c_contiguous
        assert examples.y.shape == (len(examples),)
        assert examples.y.dtype == np.int32
        assert set(np.unique(examples.y)) <= set(range(watch_data.CLASSES))


@installed
def test_channels_are_standardised_over_the_training_wearers_alone(
    fleet: FleetData,
) -> None:
    training = np.concatenate([examples.x for examples in fleet.devices.values()]).astype(float)
    np.testing.assert_allclose(training.mean(axis=(0, 2)), 0.0, atol=1e-6)
    np.testing.assert_allclose(training.std(axis=(0, 2)), 1.0, atol=1e-6)
    assert np.abs(fleet.held_out.x.mean(axis=(0, 2))).max() > 1e-3


@installed
def test_neighbouring_windows_of_a_recording_overlap_by_half(
    fleet: FleetData,
) -> None:
    x = fleet.devices["watch-01"].x
    assert np.array_equal(x[0][:, watch_data.STEP :], x[1][:, : watch_data.STEP])


@installed
def test_saved_files_hold_the_same_examples(fleet: FleetData, tmp_path: Path) -> None:
    folders = fleet.save(tmp_path)
    assert sorted(folders) == sorted([*fleet.devices, "held-out"])
    x = np.load(folders["watch-03"] / "x.npy", allow_pickle=False)
    y = np.load(folders["held-out"] / "y.npy", allow_pickle=False)
    assert np.array_equal(x, fleet.devices["watch-03"].x)
    assert np.array_equal(y, fleet.held_out.y)


@installed
def test_a_data_file_with_another_hash_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_data, "DATA_SHA256", "0" * 64)
    with pytest.raises(ConfigurationError, match=r"has SHA-256 eb122f.*, wanted 000"):
        watch_data.load_fleet()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=re.escape("pip install 'sparsyfed-edge[demo]'")):
        watch_data.load_fleet()
