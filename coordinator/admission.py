"""Which devices may take part in a round: those that can receive and train today's state.

The plan is made once per state. As the state gets sparser it needs less, and devices that were refused are admitted.
"""

from dataclasses import dataclass

from sparsyfed.edge_runtime import State, plan
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.edge_runtime.messages import MAX_BLOCKS, MIN_BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Needs:
    """What a device must have: bytes of arena for a training session, and of a block that it can buffer."""

    memory_bytes: int
    block_bytes: int

    def refusal(self, memory_bytes: int, block_bytes: int) -> str | None:
        """Why a device that declares so much is refused, or None if it is admitted."""
        if memory_bytes < self.memory_bytes:
            return f"training this state needs {self.memory_bytes} bytes, the device declares {memory_bytes} bytes"
        if block_bytes < self.block_bytes:
            return (
                f"this state takes blocks of {self.block_bytes} bytes to send, the device or "
                f"[transfer] block_bytes allows {block_bytes} bytes"
            )
        return None


def needs_of(artifact: Artifact, state: State, batch_size: int) -> Needs:
    """What training `state` with batches of `batch_size` examples needs at least.

    A device plans with the kernels of its own processor, and declines what does not fit it. So the
    smallest plan counts, of the portable kernels or of the best set that this machine has: all
    vectorised sets have the same plans.
    """
    largest = max(len(artifact.encode()), len(state.encode()))
    return Needs(
        memory_bytes=min(
            plan(artifact, state, batch_size, kernels=kernels, memory="small").arena_bytes
            for kernels in {"portable", available_kernels()[-1]}
        ),
        block_bytes=least_block_bytes(largest),
    )


def least_block_bytes(size: int) -> int:
    """The least power of two of bytes in which at most MAX_BLOCKS blocks hold an object of `size` bytes."""
    least = max(MIN_BLOCK_BYTES, -(-size // MAX_BLOCKS))
    return 1 << (least - 1).bit_length()
