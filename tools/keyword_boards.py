"""Points of the keyword study on an emulated board: the RAM that they take, and the instructions of a step."""

import functools
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparsyfed.devices.board import Board
from sparsyfed.devices.board_fit import examples_bytes, fit_on_board
from sparsyfed.devices.serial_link import SerialLink
from sparsyfed.devices.serial_port import open_port
from sparsyfed.edge_runtime import Artifact, plan
from sparsyfed.edge_runtime.errors import ArenaError
from sparsyfed.tools.board_profile import profile_on_board
from sparsyfed.tools.emulator import EmulatedBoard
from sparsyfed.tools.firmware import build_firmware
from sparsyfed.tools.keyword_points import Point

BOARD = "mps2-an386"
"""Cortex-M4F."""
LARGE_BYTES = 1 << 20
GRAIN_BYTES = 256
MOST_BYTES = 4 << 20
"""What the emulated board has."""
PATIENCE_S = 600.0
FIELDS = (
    *("planned_arena_bytes", "touched_arena_bytes", "touched_stack_bytes", "step_ticks"),
    *("multiply_adds", "update_bytes", "same_bits_as_host"),
)
"""Of `MeasuredStep`, which has more."""


def board_settings(point: Point, batch_size: int) -> dict[str, Any]:
    """What a measurement is known by: plain values."""
    return {"point": point.settings(), "batch_size": batch_size, "board": BOARD}


def measure_point(point: Point, batch_size: int) -> dict[str, Any]:
    """A point on the smallest board that trains it, as plain values. Ticks are instructions.

    RAM is all that the board has: the firmware's data and stack, the artifact, a batch, and the arena. The state is the
    initial one: a run that begins sparse never leaves its support.

    Raises BackendError without QEMU or compiler, ArenaError if the board has too little in all.
    """
    artifact, state = point.compile(0)
    ram_bytes = _firmware_bytes() + _least_memory(artifact, state.encode(), batch_size)
    with TemporaryDirectory(prefix="sparsyfed-keywords-") as folder:
        path = Path(folder) / "model.sfd"
        artifact.save(path)
        while True:
            ram_bytes = -(-ram_bytes // GRAIN_BYTES) * GRAIN_BYTES
            if ram_bytes > MOST_BYTES:
                raise ArenaError(
                    f"{point.name}: got a board with {MOST_BYTES} bytes, wanted {ram_bytes}",
                    got=MOST_BYTES,
                    wanted=ram_bytes,
                )
            report = profile_on_board(
                path, BOARD, state=state, density=1.0, batch_size=batch_size, ram_bytes=ram_bytes
            )
            step = report.steps["sparse"]
            if not isinstance(step, str):
                break
            ram_bytes += GRAIN_BYTES  # a board makes its plan in this memory, a host beside it
    measured = asdict(step)
    return {
        "ram_bytes": ram_bytes,
        "firmware_ram_bytes": _firmware_bytes(),
        "text_bytes": report.board.text_bytes,
        "stored": state.nonzeros,
        "positions": state.positions,
        "state_bytes": len(state.encode()),
        **{name: measured[name] for name in FIELDS},
    }


@functools.cache
def _firmware_bytes() -> int:
    """RAM that the firmware takes for itself: data, and the stack that it reserves."""
    firmware = build_firmware(BOARD, LARGE_BYTES)
    with (
        EmulatedBoard(BOARD, firmware) as machine,
        closing(SerialLink(partial(open_port, machine.port), patience_s=PATIENCE_S)) as link,
    ):
        return LARGE_BYTES - Board(link).hello().memory_bytes


def _least_memory(artifact: Artifact, state: bytes, batch_size: int) -> int:
    """The least memory for models and data with which a board trains this state, as this host sees it."""
    smallest = plan(artifact, state, batch_size, kernels="portable", memory="layerwise")
    memory = smallest.arena_bytes + examples_bytes(artifact, batch_size) + len(artifact.encode())
    while True:
        try:
            fit_on_board(artifact, state, batch_size, memory, batch_size)
        except ArenaError as error:
            memory = error.wanted
        else:
            return memory
