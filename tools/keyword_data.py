"""Spoken keywords by speaker: features of Speech Commands, as a fleet whose devices are speakers.

The file is an npz with log-mel spectrograms of the official test set of Speech Commands v0.02 (Pete Warden, arXiv
1804.03209; Google, CC BY 4.0), 12 classes. It is no part of this project. Its arrays:

* x, uint8 (n, 98, 40): frames of 10 ms, mel bands; log-mel = x · scale + offset
* scale, offset, float32 ()
* y, uint8 (n,): index into labels
* labels, text (classes,): names of the classes
* speaker, int16 (n,): number of the speaker, -1 for a clip of silence
"""

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime.errors import ConfigurationError, FormatError
from sparsyfed.tools.fleet_data import Examples, FleetData

INPUT_SHAPE = (1, 49, 20)
SPLIT_SEED = 0
HELD_OUT_SHARE = 0.2
FIELDS = ("x", "scale", "offset", "y", "labels", "speaker")


@dataclass(frozen=True, slots=True)
class Clips:
    """Clips of speakers: log-mel float32 (n, 1, 49, 20), classes int32 (n,), speakers int32 (n,), from 0.

    Each value is the mean of two frames and two bands. A clip of silence has no speaker: it is given to one by chance.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int32]
    speaker: NDArray[np.int32]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Speakers:
    """Numbers of the speakers: to train on, to choose settings with, and for the test."""

    training: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def load_clips(path: Path) -> Clips:
    """Reads the file. Raises ConfigurationError if it is not there, FormatError if it is another one."""
    x, scale, offset, y, labels, speaker = _read_fields(path)
    _, frames, bands = INPUT_SHAPE
    wanted = (len(y), 2 * frames, 2 * bands)
    if x.dtype != np.uint8 or x.shape != wanted or len(speaker) != len(y) or not len(y):
        raise FormatError(
            f"{path}: got x {x.dtype} {x.shape}, {len(y)} classes and {len(speaker)} speakers, "
            f"wanted uint8 (n, {2 * frames}, {2 * bands}), and n of each"
        )
    if y.max() >= len(labels) or speaker.max() < 0:
        raise FormatError(f"{path}: wanted classes below {len(labels)}, and a speaker at least")
    pooled = x.reshape(len(x), frames, 2, bands, 2).mean(axis=(2, 4), dtype=np.float32)
    return Clips(
        x=(pooled * scale + offset).astype(np.float32)[:, None],
        y=y.astype(np.int32),
        speaker=_with_silence_shared_out(speaker.astype(np.int32)),
        labels=tuple(map(str, labels)),
    )


def _read_fields(path: Path) -> list[NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in FIELDS]
    except OSError as error:
        raise ConfigurationError(f"cannot read the keywords: {error}") from error
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise FormatError(
            f"{path}: wanted an npz file with {', '.join(FIELDS)}: {error}"
        ) from error


def _with_silence_shared_out(speaker: NDArray[np.int32]) -> NDArray[np.int32]:
    silent, shared = speaker < 0, speaker.copy()
    known = np.unique(speaker[~silent])
    shared[silent] = np.random.default_rng(SPLIT_SEED).choice(known, silent.sum())
    return shared


def split_speakers(clips: Clips) -> Speakers:
    """A fixed split: a fifth of the speakers for the test, a fifth of the others to choose settings with."""
    order = np.random.default_rng(SPLIT_SEED).permutation(np.unique(clips.speaker)).tolist()
    test = order[: round(HELD_OUT_SHARE * len(order))]
    rest = order[len(test) :]
    validation = rest[: round(HELD_OUT_SHARE * len(rest))]
    return Speakers(tuple(rest[len(validation) :]), tuple(validation), tuple(test))


def fleet_of(
    clips: Clips, devices: Mapping[str, Iterable[int]], held_out: Iterable[int]
) -> FleetData:
    """The clips of the speakers of each device, and of those held out.

    Each band is shifted and scaled to mean 0 and deviation 1 over the clips of the devices.
    """
    chosen = {name: np.isin(clips.speaker, list(speakers)) for name, speakers in devices.items()}
    training = clips.x[np.any(list(chosen.values()), axis=0)]
    mean = training.mean(axis=(0, 2), keepdims=True)
    deviation = training.std(axis=(0, 2), keepdims=True)

    def examples(rows: NDArray[np.bool_]) -> Examples:
        scaled = (clips.x[rows] - mean) / deviation
        return Examples(np.ascontiguousarray(scaled, dtype=np.float32), clips.y[rows])

    return FleetData(
        {name: examples(rows) for name, rows in chosen.items()},
        examples(np.isin(clips.speaker, list(held_out))),
    )


def one_speaker_each(speakers: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """A device for each speaker."""
    return {f"speaker-{number:03d}": (number,) for number in sorted(speakers)}
