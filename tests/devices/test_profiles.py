import re
from dataclasses import fields
from pathlib import Path

import pytest

from sparsyfed.devices.profiles import (
    DeviceProfile,
    find_profile,
    list_profiles,
    load_profiles,
    parse_bytes,
)
from sparsyfed.edge_runtime.errors import ConfigurationError

REQUIRED = {
    "raspberry_pi_zero_2w",
    "raspberry_pi_4",
    "phone_midrange",
    "esp32_s3",
    "stm32f746",
    "nrf5340",
    "cortex_m4f_256k",
    "rp2350",
    "watch",
    "linux_host",
}

OWN = """
[board]
title = "Our board"
memory_bytes = "100 KiB"
block_bytes = 1024
[board.source]
memory_bytes = "assumed"
block_bytes = "assumed"
"""


def test_the_shipped_profiles_are_there() -> None:
    assert {profile.name for profile in list_profiles()} >= REQUIRED


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda p: p.name)
def test_each_number_of_a_profile_has_a_source(profile: DeviceProfile) -> None:
    for field in fields(profile):
        if (
            field.name not in {"name", "title", "source"}
            and getattr(profile, field.name) is not None
        ):
            assert profile.source[field.name], field.name
    # What the rest of a program needs is anybody's guess, but for our own firmware.
    assert profile.source["memory_bytes"].startswith(("assumed", "the RAM less 8 KiB"))
    if profile.ram_bytes is not None:
        assert profile.memory_bytes < profile.ram_bytes
    for text in profile.source.values():
        reference = re.fullmatch(r"as (\w+)", text)
        assert reference is None or reference[1] in profile.source


def test_known_sizes() -> None:
    assert find_profile("stm32f746").ram_bytes == (320 + 16 + 4) * 1024
    assert find_profile("rp2350").ram_bytes == 520 * 1024
    assert find_profile("nrf5340").ram_bytes == 512 * 1024
    m4 = find_profile("cortex_m4f_256k")
    assert m4.clock_hz is not None
    assert m4.multiply_adds_per_second == m4.clock_hz / 5


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'stm32'.*cortex_m4f_256k.*watch"):
        find_profile("stm32")


def test_own_profiles_come_first_and_replace_shipped_ones(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN + OWN.replace("board", "watch"))
    profiles = list_profiles(path)
    assert [profile.name for profile in profiles[:2]] == ["board", "watch"]
    assert find_profile("board", path).memory_bytes == 100 * 1024
    assert find_profile("watch", path).title == "Our watch"
    assert find_profile("rp2350", path) == find_profile("rp2350")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title", "titel"), "titel"),
        (('memory_bytes = "100 KiB"', ""), "'memory_bytes' is missing"),
        (('"100 KiB"', "-1"), r"board\.memory_bytes: got -1"),
        (('"100 KiB"', "true"), "memory_bytes: got True"),
        (('"100 KiB"', '"much"'), "got size 'much'"),
        (("block_bytes = 1024", "block_bytes = 100"), "block_bytes: got 100, wanted 256"),
        (('block_bytes = "assumed"', ""), "says nothing of 'block_bytes'"),
        (("[board]", "[board"), "own.toml"),
        (("[board.source]", 'fpu = "half"\n[board.source]\nfpu = "x"'), "fpu: got 'half'"),
    ],
)
def test_a_wrong_profile_is_refused_by_its_key(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace(*change))
    with pytest.raises(ConfigurationError, match=message):
        load_profiles(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml"):
        load_profiles(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4MiB", 4 << 20),
        ("256 kib", 256 << 10),
        ("1.5 GB", 1_500_000_000),
        ("1B", 1),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1", "0", "4 MiBs", "MiB", "1e6", "4,5MB", "٤MB"])
def test_wrong_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="got size"):
        parse_bytes(text)
