"""Which operations, losses and types of inputs a firmware has been built with: bits of the core's SFD_OPERATIONS."""

from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import UnsupportedOperationError
from sparsyfed.edge_runtime.format import InputType, Loss, OperationKind

LOSS_SHIFT = 16
INPUT_SHIFT = 24
"""An operation has the bit of its code, a loss or a type of inputs that of its shift and its code."""
NAMES = {
    **{kind.name.lower(): 1 << kind for kind in OperationKind},
    **{loss.name.lower(): 1 << (LOSS_SHIFT + loss) for loss in Loss},
    InputType.INT8.name.lower(): 1 << (INPUT_SHIFT + InputType.INT8),
}
"""As `OPERATIONS` of `devices/boards/Makefile` takes them."""
EVERYTHING = sum(NAMES.values())


def operations_of(artifact: Artifact) -> tuple[str, ...]:
    """Names of the operations, of the loss and of inputs but float32 that a model uses, sorted."""
    kinds = {operation.kind.name.lower() for operation in artifact.operations}
    if artifact.quantization is not None:
        kinds.add(InputType.INT8.name.lower())
    return tuple(sorted({*kinds, artifact.loss.name.lower()}))


def require_operations(artifact: Artifact, built: int) -> None:
    """Raise UnsupportedOperationError where a firmware with the operations `built` lacks one of the model."""
    wanted = operations_of(artifact)
    missing = [name for name in wanted if not NAMES[name] & built]
    if missing:
        raise UnsupportedOperationError(
            f"the board's firmware was built without {', '.join(missing)}: flash the one with all operations, or "
            f'build one with OPERATIONS="{" ".join(wanted)}"'
        )
