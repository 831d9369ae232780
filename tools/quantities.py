"""Numbers as people read them."""

from collections.abc import Sequence


def byte_text(count: float) -> str:
    """A number of bytes with three digits and a decimal prefix: "388 kB"."""
    return _scaled(count, ["B", "kB", "MB", "GB", "TB"])


def optional_bytes(count: int | None) -> str:
    """The same for a number that may not be known."""
    return "unknown" if count is None else byte_text(count)


def count_text(count: float) -> str:
    """A number with three digits and a decimal prefix: "1.2 G"."""
    return _scaled(count, ["", "k", "M", "G", "T", "P"])


def _scaled(value: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}".rstrip()
        value /= 1000
    return f"{value:.3g} {units[-1]}"
