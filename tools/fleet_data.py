"""Examples of a fleet: what each device trains on, and what none of them sees."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HELD_OUT = "held-out"


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs with their classes: x float32 (n, *input shape), y int32 (n,)."""

    x: NDArray[np.float32]
    y: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True)
class FleetData:
    """The examples of each device by its name, and those held out."""

    devices: dict[str, Examples]
    held_out: Examples

    def save(self, folder: Path) -> dict[str, Path]:
        """Writes x.npy and y.npy for each device and for `held-out`; returns the folders by name."""
        folders = {}
        for name, examples in {**self.devices, HELD_OUT: self.held_out}.items():
            folders[name] = folder / name
            folders[name].mkdir(parents=True, exist_ok=True)
            np.save(folders[name] / "x.npy", examples.x)
            np.save(folders[name] / "y.npy", examples.y)
        return folders
