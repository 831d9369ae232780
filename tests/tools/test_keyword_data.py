"""The loader of keywords, on made-up clips of the file's form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keyword_clips import write_clips

from sparsyfed.edge_runtime.errors import ConfigurationError, FormatError
from sparsyfed.tools.keyword_data import (
    INPUT_SHAPE,
    Clips,
    fleet_of,
    load_clips,
    one_speaker_each,
    split_speakers,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("keywords") / "clips.npz")


@pytest.fixture(scope="module")
def clips(path: Path) -> Clips:
    return load_clips(path)


def test_values_are_means_of_two_frames_and_two_bands(path: Path, clips: Clips) -> None:
    with np.load(path) as arrays:
        raw = arrays["x"].astype(np.float64) * float(arrays["scale"]) + float(arrays["offset"])
    assert clips.x.shape == (len(raw), *INPUT_SHAPE)
    assert clips.x.dtype == np.float32
    np.testing.assert_allclose(clips.x[3, 0, 4, 5], raw[3, 8:10, 10:12].mean(), atol=1e-5)


def test_silence_is_shared_out_among_the_speakers(path: Path, clips: Clips) -> None:
    with np.load(path) as arrays:
        speaker = arrays["speaker"]
    assert (speaker < 0).any()
    assert clips.speaker.min() >= 0
    assert (clips.speaker == speaker)[speaker >= 0].all()
    assert set(clips.speaker) == set(speaker[speaker >= 0])


def test_no_speaker_is_on_two_sides_of_the_split(clips: Clips) -> None:
    split = split_speakers(clips)
    everybody = (*split.training, *split.validation, *split.test)
    assert sorted(everybody) == sorted(set(clips.speaker))
    assert len(split.test) == round(0.2 * len(everybody))
    assert split == split_speakers(clips)


def test_devices_have_their_own_clips_scaled_by_those_of_all_devices(clips: Clips) -> None:
    split = split_speakers(clips)
    fleet = fleet_of(clips, one_speaker_each(split.training), split.test)
    assert len(fleet.devices) == len(split.training)
    for speaker in split.training:
        own = fleet.devices[f"speaker-{speaker:03d}"]
        assert len(own) == (clips.speaker == speaker).sum()
        assert own.x.flags.c_contiguous
    everything = np.concatenate([own.x for own in fleet.devices.values()])
    np.testing.assert_allclose(everything.mean(axis=(0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(everything.std(axis=(0, 1, 2)), 1.0, atol=1e-3)
    assert len(fleet.held_out) == np.isin(clips.speaker, split.test).sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((80, 98, 39), np.uint8)}, "wanted uint8"),
        ({"x": np.zeros((80, 98, 40), np.float32)}, "got x float32"),
        ({"x": np.zeros((79, 98, 40), np.uint8)}, "79"),
        ({"speaker": np.full(80, -1)}, "a speaker at least"),
        ({"y": np.full(80, 12, np.uint8)}, "classes below 12"),
        ({"y": None}, "wanted an npz file with x, scale"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        load_clips(write_clips(tmp_path / "clips.npz", **change))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.npz"):
        load_clips(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    with pytest.raises(FormatError, match=r"text\.npz"):
        load_clips(tmp_path / "text.npz")
