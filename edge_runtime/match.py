"""Whether an artifact and a state belong together, told by the names of parameters."""

from __future__ import annotations

from typing import NoReturn

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.format import CONTAINER_HEADER, TABLE_ENTRY

FIELDS = {0: "kind", 4: "rows", 8: "columns"}
"""What the core compares of a state's table entries, by its place in them."""


def require_match(artifact: Artifact, state: bytes) -> None:
    """Raise FormatError unless the bytes are a state, MismatchError unless it is one of `artifact`."""
    problem = _native.Problem()
    structure = artifact.encode()
    code = _native.library().sfd_state_check(
        *(_native.address(memoryview(structure)), len(structure)),
        *(_native.address(memoryview(state)), len(state), problem),
    )
    if code:
        raise_state_error(code, artifact, problem)


def raise_state_error(code: int, artifact: Artifact, problem: _native.Problem) -> NoReturn:
    """Raise the exception of a state that is none, or not one of `artifact`."""
    if code != _native.ErrorCode.ERR_MISMATCH:
        _native.raise_error(code, "state", problem)
    index, field = divmod(problem.position - CONTAINER_HEADER.size, TABLE_ENTRY.size)
    if index < 0:  # in the header, which has their number
        _native.raise_error(code, "state: tensors", problem)
    name = artifact.parameters[index].name
    _native.raise_error(code, f"state: {FIELDS[field]} of {name!r}", problem)
