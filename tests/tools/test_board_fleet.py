"""Boards of a fleet, without boards."""

import time
from pathlib import Path

import pytest

from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.tools.board_fleet import BoardFleet, RunningBoards
from sparsyfed.tools.device_processes import DeviceCommand


def test_nobody_waits_for_a_gateway_that_has_ended(tmp_path: Path) -> None:
    boards = RunningBoards(("board",), DeviceCommand([], tmp_path / "gateway.log"))
    began = time.monotonic()
    with pytest.raises(BackendError, match="gateway ended with status 1"):
        boards.wait_for_hello(lambda: "gateway ended with status 1")
    assert time.monotonic() - began < 5


def test_boards_are_named_by_their_gateway_and_have_the_ram_that_was_asked_for() -> None:
    fleet = BoardFleet("porch", ("mps2-an386", "mps3-an547"), 1 << 17)
    assert fleet.names == ("porch.1", "porch.2")
    profiles = fleet.profiles()
    assert [profile.name for profile in profiles.values()] == ["mps2-an386", "mps3-an547"]
    assert {profile.memory_bytes for profile in profiles.values()} == {1 << 17}
