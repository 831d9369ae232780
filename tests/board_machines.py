"""Which tools emulated boards need."""

import shutil

import pytest

from sparsyfed.tools.emulator import MACHINES
from sparsyfed.tools.firmware import compiler_of


def require_tools(*boards: str) -> None:
    """Skip the test where a tool of one of these boards is missing."""
    require(*(tool for name in boards for tool in (compiler_of(name), MACHINES[name].program)))


def require_compilers(*boards: str) -> None:
    """Skip the test where a compiler of one of these boards is missing."""
    require(*(compiler_of(name) for name in boards))


def require(*tools: str) -> None:
    """Skip the test where one of these programs, or make, is missing."""
    missing = sorted(tool for tool in {*tools, "make"} if shutil.which(tool) is None)
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
