"""Trains under the allocation counter and prints what the counter saw, as JSON.

Arguments: artifact file, state file, batch size, number of classes.
"""

import ctypes
import json
import sys
from array import array
from pathlib import Path

from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.session import Session

LARGE = 4096
STEPS = 10

counter = ctypes.CDLL(None)  # the preloaded library is part of the process
counter.allocation_counter_start.argtypes = (ctypes.c_size_t,)
counter.allocation_counter_large.restype = ctypes.c_size_t
counter.allocation_counter_bytes.restype = ctypes.c_size_t


def counted(size: int) -> dict[str, int]:
    """What the counter sees of one buffer of this size."""
    counter.allocation_counter_start(LARGE)
    buffer = bytearray(size)
    counter.allocation_counter_stop()
    assert len(buffer) == size
    return result()


def result() -> dict[str, int]:
    return {
        "large": counter.allocation_counter_large(),
        "bytes": counter.allocation_counter_bytes(),
    }


def trained(session: Session, batch_size: int, classes: int) -> dict[str, int]:
    """What the counter sees of training, after two steps of warming up."""
    size = session.artifact.tensors[0].size * batch_size
    x = array("f", [(i * 7 % 13 - 6) / 4 for i in range(size)])
    y = array("i", [i % classes for i in range(batch_size)])
    for _ in range(2):
        session.step(x, y, learning_rate=0.01)
    counter.allocation_counter_start(LARGE)
    for _ in range(STEPS):
        session.step(x, y, learning_rate=0.01)
    counter.allocation_counter_stop()
    return result()


artifact_path, state_path, batch, classes = sys.argv[1:]
with Session.open(
    Artifact.load(artifact_path), Path(state_path).read_bytes(), int(batch)
) as opened:
    arena = opened.memory.arena_bytes
    training = trained(opened, int(batch), int(classes))
    print(json.dumps({"training": training, "buffer": counted(2 * LARGE), "arena": arena}))
