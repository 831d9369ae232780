"""Which tools emulated boards need, and their firmware built once for all tests."""

import fcntl
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from sparsyfed.tools.emulator import MACHINES
from sparsyfed.tools.firmware import build_firmware, compiler_of

LOCK = Path(__file__).parents[1] / "build" / "boards.lock"


def require_tools(*boards: str) -> None:
    """Skip the test where a tool of one of these boards is missing; else build their firmware."""
    require_compilers(*boards, tools=[MACHINES[board].program for board in boards])


def require_compilers(*boards: str, tools: Sequence[str] = ()) -> None:
    """Skip the test where a compiler of one of these boards, or a tool, is missing; else build their firmware.

    Processes do that one after the other. Whatever a test builds then is there already, or linked to
    a file of its own.
    """
    wanted = {*tools, *map(compiler_of, boards), "make"}
    missing = sorted(tool for tool in wanted if shutil.which(tool) is None)
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for board in boards:
            build_firmware(board)
