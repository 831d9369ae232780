"""Which tools emulated boards need, and their firmware built once for all tests."""

import shutil
from collections.abc import Sequence

import pytest

from sparsyfed.tools.emulator import MACHINES
from sparsyfed.tools.firmware import build_firmware, compiler_of


def require_tools(*boards: str) -> None:
    """Skip the test where a tool of one of these boards is missing; else build their firmware."""
    require_compilers(*boards, tools=[MACHINES[board].program for board in boards])


def require_compilers(*boards: str, tools: Sequence[str] = ()) -> None:
    """Skip the test where a compiler of one of these boards, or a tool, is missing; else build their firmware."""
    wanted = {*tools, *map(compiler_of, boards), "make"}
    missing = sorted(tool for tool in wanted if shutil.which(tool) is None)
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    for board in boards:
        build_firmware(board)
