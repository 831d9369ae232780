"""The smartwatch set that the package `seglearn` carries, as a fleet of wearers.

140 recordings of shoulder exercises by 10 wearers, three axes of acceleration and three of rotation
at 50 Hz, 7 exercises (Burns et al., arXiv 1802.01489). A wearer is a device: what one wearer's watch
measured stays on that device.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.tools.fleet_data import Examples, FleetData

WINDOW = 256
STEP = 128
CLASSES = 7
INPUT_SHAPE = (6, WINDOW)
HELD_OUT_WEARERS = (9, 10)
DATA_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"


def load_fleet(held_out: tuple[int, ...] = HELD_OUT_WEARERS) -> FleetData:
    """Cuts the recordings into windows and splits them by wearer.

    Each recording gives windows of 256 samples that start every 128 samples: 1,693 windows, 364 of
    them of the two wearers held out. Each channel is shifted and scaled to mean 0 and deviation 1
    over the windows of the training wearers.

    Raises ConfigurationError if seglearn is not installed or its data file is not the known one.
    """
    recordings = _load_recordings()
    windows = [_windows(np.asarray(signal, dtype=np.float64)) for signal in recordings["X"]]
    counts = [len(part) for part in windows]
    x = np.concatenate(windows)
    y = np.repeat(np.asarray(recordings["y"], dtype=np.int32), counts)
    wearer = np.repeat(np.asarray(recordings["subject"], dtype=np.int32), counts)

    training = ~np.isin(wearer, held_out)
    mean = x[training].mean(axis=(0, 2), keepdims=True)
    deviation = x[training].std(axis=(0, 2), keepdims=True)
    scaled = ((x - mean) / deviation).astype(np.float32)

    def examples(chosen: NDArray[np.bool_]) -> Examples:
        return Examples(np.ascontiguousarray(scaled[chosen]), y[chosen])

    devices = {
        f"watch-{number:02d}": examples(wearer == number) for number in np.unique(wearer[training])
    }
    return FleetData(devices, examples(~training))


def _windows(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Windows (n, 6, 256) of a recording (samples, 6); a rest shorter than a window is left out."""
    windows = np.lib.stride_tricks.sliding_window_view(signal, WINDOW, axis=0)[::STEP]
    return np.ascontiguousarray(windows)


def _load_recordings() -> dict[str, Any]:
    # The file is a pickle, which may run code: so it is read only where its hash is the one known.
    # It is found without importing seglearn, whose import needs pandas, which it does not declare.
    specification = importlib.util.find_spec("seglearn")
    if specification is None or specification.origin is None:
        raise ConfigurationError(
            "the smartwatch data comes with the package seglearn, which is not installed: "
            "pip install 'sparsyfed-edge[demo]'"
        )
    path = Path(specification.origin).parent / "data" / "watch_dataset.npy"
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing: install seglearn 1.2.5 again")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != DATA_SHA256:
        raise ConfigurationError(
            f"{path} has SHA-256 {found}, wanted {DATA_SHA256}: install seglearn 1.2.5"
        )
    recordings: dict[str, Any] = np.load(path, allow_pickle=True).item()
    return recordings
