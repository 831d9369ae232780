"""Memory of this process, as the system tells it."""

from __future__ import annotations

from pathlib import Path


def peak_rss_bytes() -> int | None:
    """Largest resident set of this process so far (Linux VmHWM); None where it is not told."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
