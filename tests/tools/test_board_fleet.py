"""Boards in the demo, without boards."""

import time
from pathlib import Path

import pytest

from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.tools.demo_boards import DemoBoards
from sparsyfed.tools.device_processes import DeviceCommand


def test_nobody_waits_for_a_gateway_that_has_ended(tmp_path: Path) -> None:
    boards = DemoBoards(("board",), DeviceCommand([], tmp_path / "gateway.log"))
    began = time.monotonic()
    with pytest.raises(BackendError, match="gateway ended with status 1"):
        boards.wait_for_hello(lambda: "gateway ended with status 1")
    assert time.monotonic() - began < 5
