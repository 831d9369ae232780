"""Which devices may take part in a round: those whose memory holds the training of today's state.

The plan is made once per state. As the state gets sparser its plan shrinks, and devices that were refused are admitted.
"""

from sparsyfed.edge_runtime import State, plan
from sparsyfed.edge_runtime.artifact import Artifact


def needed_bytes(artifact: Artifact, state: State, batch_size: int) -> int:
    """Bytes of arena that one device needs to train `state` with batches of `batch_size` examples."""
    return plan(artifact, state, batch_size=batch_size).arena_bytes


def refusal(needed: int, declared: int) -> str | None:
    """Why a device that declares `declared` bytes is refused, or None if it is admitted."""
    if declared >= needed:
        return None
    return f"training this state needs {needed} bytes, the device declares {declared} bytes"
