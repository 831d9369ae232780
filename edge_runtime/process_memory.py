"""Memory of this process, as the system tells it."""

from __future__ import annotations

from pathlib import Path

CLEAR_REFERENCES = Path("/proc/self/clear_refs")


def peak_rss_bytes() -> int | None:
    """Largest resident set of this process so far (Linux VmHWM); None where it is not told."""
    return _status("VmHWM:")


def rss_bytes() -> int | None:
    """Resident set of this process now (Linux VmRSS); None where it is not told."""
    return _status("VmRSS:")


def reset_peak_rss() -> None:
    """Let `peak_rss_bytes` count from now on. Raises OSError where the system can't."""
    CLEAR_REFERENCES.write_text("5", encoding="ascii")


def _status(field: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None
    for line in status.splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return None
