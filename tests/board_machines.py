"""Which tools emulated boards need."""

import shutil

import pytest

from sparsyfed.tools.emulator import MACHINES
from sparsyfed.tools.firmware import compiler_of


def require_tools(*boards: str) -> None:
    """Skip the test where a tool of one of these boards is missing."""
    tools = {tool for board in boards for tool in (compiler_of(board), MACHINES[board].program)}
    missing = sorted(tool for tool in (*tools, "make") if shutil.which(tool) is None)
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
