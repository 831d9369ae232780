"""What is known of devices: memory, clock, cores, and where each number comes from."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.messages import MAX_BLOCK_BYTES, MIN_BLOCK_BYTES, NAME

_UNITS = {
    "": 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A kind of device. Sizes in bytes; None where nothing is known.

    `memory_bytes` is what the arena of a training session may take, `ram_bytes` and `flash_bytes` what the device has.
    `fpu` is "none", "single" or "double". `multiply_adds_per_second` is an estimate. `block_bytes` is the largest
    block that the device buffers. `kernels` is "portable" where no vectorised set runs. `source` says for each number
    where it comes from; "assumed" begins an assumption.
    """

    name: str
    title: str
    memory_bytes: int
    block_bytes: int
    source: Mapping[str, str]
    ram_bytes: int | None = None
    flash_bytes: int | None = None
    clock_hz: int | None = None
    cores: int | None = None
    simd: str | None = None
    fpu: str | None = None
    multiply_adds_per_second: float | None = None
    kernels: str | None = None


_SIZES = {"memory_bytes", "block_bytes", "ram_bytes", "flash_bytes"}
_COUNTS = {"clock_hz", "cores", "multiply_adds_per_second"}
_TEXTS = {"title", "simd", "fpu", "kernels"}
_CHOICES = {"fpu": ("none", "single", "double"), "kernels": ("portable",)}


def parse_bytes(text: str) -> int:
    """Number of bytes in a text such as "4MiB", "1.5 GB" or "4096". Raises ConfigurationError."""
    match = _SIZE.fullmatch(text.strip())
    unit = match and {name.lower(): factor for name, factor in _UNITS.items()}.get(match[2].lower())
    if not match or not unit:
        known = ", ".join(name for name in _UNITS if name)
        raise ConfigurationError(f"got size {text!r}, wanted a number and one of {known}")
    size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if size < 1:
        raise ConfigurationError(f"got size {text!r}, wanted at least 1 byte")
    return size


def load_profiles(path: str | Path) -> dict[str, DeviceProfile]:
    """Profiles of a TOML file, by name: one table each, as in `devices/profiles.toml`.

    Raises ConfigurationError naming the profile and the key that is wrong.
    """
    try:
        return _parse_profiles(str(path), Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read profiles: {error}") from error


@cache
def _shipped() -> dict[str, DeviceProfile]:
    text = resources.files("sparsyfed.devices").joinpath("profiles.toml").read_text("utf-8")
    return _parse_profiles("profiles.toml", text)


def list_profiles(own: str | Path | None = None) -> tuple[DeviceProfile, ...]:
    """All known profiles; those of the file `own` come first and replace shipped ones by name."""
    named = load_profiles(own) if own is not None else {}
    named = {**named, **{name: item for name, item in _shipped().items() if name not in named}}
    return tuple(named.values())


def find_profile(name: str, own: str | Path | None = None) -> DeviceProfile:
    """The profile of this name. Raises ConfigurationError with the known names."""
    profiles = {profile.name: profile for profile in list_profiles(own)}
    if name not in profiles:
        raise ConfigurationError(
            f"got device {name!r}, wanted one of {', '.join(sorted(profiles))}"
        )
    return profiles[name]


def _parse_profiles(where: str, text: str) -> dict[str, DeviceProfile]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    return {name: _parse_profile(f"{where}: {name}", name, item) for name, item in content.items()}


def _parse_profile(where: str, name: str, content: object) -> DeviceProfile:
    if not NAME.fullmatch(name):
        raise ConfigurationError(f"{where}: a name has letters, digits, '.', '_', '-', at most 64")
    if not isinstance(content, dict):
        raise ConfigurationError(f"{where}: got {content!r:.80}, wanted a table [{name}]")
    known = {field.name for field in fields(DeviceProfile)} - {"name"}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ConfigurationError(
            f"{where}: unknown key {unknown[0]!r}, known: {', '.join(sorted(known))}"
        )
    missing = sorted({"title", "memory_bytes", "block_bytes", "source"} - set(content))
    if missing:
        raise ConfigurationError(f"{where}: the key {missing[0]!r} is missing")
    values = {key: _parse_value(f"{where}.{key}", key, value) for key, value in content.items()}
    source = values["source"]
    assert isinstance(source, dict)
    unsourced = sorted(set(values) - {"title", "source"} - set(source))
    if unsourced:
        raise ConfigurationError(f"{where}.source: says nothing of {unsourced[0]!r}")
    profile = DeviceProfile(name=name, **values)
    if not MIN_BLOCK_BYTES <= profile.block_bytes <= MAX_BLOCK_BYTES:
        raise ConfigurationError(
            f"{where}.block_bytes: got {profile.block_bytes}, wanted {MIN_BLOCK_BYTES} to {MAX_BLOCK_BYTES}"
        )
    return profile


def _parse_value(where: str, key: str, value: object) -> Any:
    if key in _SIZES and isinstance(value, str):
        value = parse_bytes(value)
    if key in _SIZES | _COUNTS:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**63:
            raise ConfigurationError(f"{where}: got {value!r:.80}, wanted a whole number above 0")
        return value
    if key in _TEXTS:
        if not isinstance(value, str) or not value or not value.isprintable():
            raise ConfigurationError(f"{where}: got {value!r:.80}, wanted a text")
        if value not in _CHOICES.get(key, (value,)):
            raise ConfigurationError(
                f"{where}: got {value!r:.80}, wanted one of {', '.join(_CHOICES[key])}"
            )
        return value
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ConfigurationError(f"{where}: got {value!r:.80}, wanted a table of texts")
    return value
