"""Made-up clips in the form of the file of keywords: classes that can be told apart, by ten speakers."""

from pathlib import Path
from typing import Any

import numpy as np

CLASSES, SPEAKERS, COUNT = 12, 10, 80


def write_clips(path: Path, **changes: Any) -> Path:
    """Writes the file; an array of `changes` takes the place of another, None leaves it out."""
    random = np.random.default_rng(0)
    y = np.arange(COUNT, dtype=np.uint8) % CLASSES
    patterns = random.integers(0, 200, (CLASSES, 98, 40))
    speaker = random.integers(0, SPEAKERS, COUNT, dtype=np.int16)
    speaker[y == 0] = -1
    arrays = {
        "x": (patterns[y] + random.integers(0, 55, (COUNT, 98, 40))).astype(np.uint8),
        "scale": np.float32(0.1),
        "offset": np.float32(-8.0),
        "y": y,
        "labels": np.array([f"word-{number}" for number in range(CLASSES)]),
        "speaker": speaker,
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path
