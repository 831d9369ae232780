"""Which devices may take part in a round: those that can receive and train today's state.

For the native core that is planned, once per state: as the state gets sparser it needs less, and devices that were
refused are admitted. Other engines hold everything dense and plan for themselves: what they need is what training was
measured to take where the bundle was made, whatever the state.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sparsyfed.coordinator.bundle import NATIVE, EngineExport
from sparsyfed.edge_runtime import State, plan
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.edge_runtime.messages import MAX_BLOCKS, MIN_BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Needs:
    """What a device must have: bytes for training, and of a block that it can buffer.

    `basis` says what the memory is: that of a plan, or of a measurement. Without one `memory_bytes` is None, and
    `basis` says why: no device is admitted then.
    """

    memory_bytes: int | None
    block_bytes: int
    basis: str = "planned"

    def refusal(self, memory_bytes: int, block_bytes: int) -> str | None:
        """Why a device that declares so much is refused, or None if it is admitted."""
        if self.memory_bytes is None:
            return f"what training needs is not known: {self.basis}"
        if memory_bytes < self.memory_bytes:
            return (
                f"training this state needs {self.memory_bytes} bytes ({self.basis}), the device declares "
                f"{memory_bytes} bytes"
            )
        if block_bytes < self.block_bytes:
            return (
                f"this state takes blocks of {self.block_bytes} bytes to send, the device or "
                f"[transfer] block_bytes allows {block_bytes} bytes"
            )
        return None


@dataclass(frozen=True, slots=True)
class Engines:
    """The engines that a job offers its model for: the native core, and those that it has exports for."""

    native: bool
    exports: Mapping[str, EngineExport]

    def needs(self, artifact: Artifact, state: State, batch_size: int) -> dict[str, Needs]:
        """What training `state` with batches of `batch_size` examples needs, by engine."""
        largest = max(len(artifact.encode()), len(state.encode()))
        needs = {}
        if self.native:
            memory_bytes = least_arena_bytes(artifact, state, batch_size)
            needs[NATIVE] = Needs(memory_bytes, least_block_bytes(largest))
        for backend, export in self.exports.items():
            files = max(len(data) for data in export.files.values())
            block_bytes = least_block_bytes(max(largest, files))
            measured, basis = _measured(export, batch_size)
            needs[backend] = Needs(measured, block_bytes, basis)
        return needs


def least_arena_bytes(artifact: Artifact, state: State, batch_size: int) -> int:
    """What training takes at least on the native core.

    A device plans with the kernels of its own processor, and declines what does not fit it. So the
    smallest plan counts, of the portable kernels or of the best set that this machine has: all
    vectorised sets have the same plans.
    """
    return min(
        plan(artifact, state, batch_size, kernels=kernels, memory="small").arena_bytes
        for kernels in {"portable", available_kernels()[-1]}
    )


def _measured(export: EngineExport, batch_size: int) -> tuple[int | None, str]:
    """What training takes on this engine, and on what basis."""
    if export.memory_bytes is None or export.batch_size is None:
        return None, "it was not measured when the bundle was made"
    if batch_size > export.batch_size:
        return None, (
            f"it was measured for batches of {export.batch_size}, this job has {batch_size}: "
            f"export the bundle with --batch-size {batch_size}"
        )
    return export.memory_bytes, f"measured at batch {export.batch_size}"


def least_block_bytes(size: int) -> int:
    """The least power of two of bytes in which at most MAX_BLOCKS blocks hold an object of `size` bytes."""
    least = max(MIN_BLOCK_BYTES, -(-size // MAX_BLOCKS))
    return 1 << (least - 1).bit_length()
