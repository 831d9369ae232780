"""Boards in the demo: emulated, behind a gateway, with windows of two wearers of their own."""

from pathlib import Path

import numpy as np

from sparsyfed.tools.board_fleet import BoardFleet
from sparsyfed.tools.fleet_data import HELD_OUT

BOARDS = BoardFleet("watch-board", ("mps2-an386", "mps3-an547"), ram_bytes=1 << 20)
"""Cortex-M4F and Cortex-M55."""
WINDOWS = 16
"""That a board takes over from a watch: emulation is slow."""
LAST_ROUNDS = 5


def share_windows(folders: dict[str, Path]) -> None:
    """Give each board the first windows of one of the last watches, which keeps the others.

    Adds the boards' folders by their ids.
    """
    watches = sorted(name for name in folders if name != HELD_OUT)[-len(BOARDS.names) :]
    for board, watch in zip(BOARDS.names, watches, strict=True):
        folder = folders[watch].with_name(board)
        folder.mkdir()
        for file in ("x.npy", "y.npy"):
            values = np.load(folders[watch] / file)
            np.save(folder / file, values[:WINDOWS])
            np.save(folders[watch] / file, values[WINDOWS:])
        folders[board] = folder
