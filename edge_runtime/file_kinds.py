"""What kind of file some bytes are, so that an error about the wrong one can name both."""

from __future__ import annotations

from sparsyfed.edge_runtime import format as layout
from sparsyfed.edge_runtime.errors import FormatError

ARTIFACT = "a training artifact (.sfd)"
STATE = "a state (.sfs)"
UPDATE = "an update"
UNKNOWN = "another kind of file"

CONTENTS: dict[int, str] = {layout.Content.STATE: STATE, layout.Content.UPDATE: UPDATE}
LONGEST_MARK = 8
"""So many bytes of a file tell its kind."""
EXECUTORCH_MARK = slice(4, 6)
FLAGS = slice(6, 8)


def kind_of(data: bytes | memoryview) -> str:
    """What the first bytes of a file say that it is; nothing after them is looked at."""
    start = bytes(data[:LONGEST_MARK])
    if start.startswith(layout.ARTIFACT_MAGIC):
        return ARTIFACT
    if start.startswith(layout.CONTAINER_MAGIC):
        flags = int.from_bytes(start[FLAGS], "little")
        return CONTENTS.get(flags & layout.CONTENT_MASK, f"{STATE} or {UPDATE}")
    if start[EXECUTORCH_MARK] == b"ET":
        return "an ExecuTorch program (.pte)"
    if start.startswith(b"PK"):
        return "a zip archive, such as a TorchScript export (.pt)"
    if start.startswith(b"\x93NUMPY"):
        return "a NumPy array (.npy)"
    return UNKNOWN


def require_kind(data: memoryview, wanted: str) -> None:
    """Raise FormatError for bytes that begin as another kind of file than the one that is wanted.

    What begins as the wanted one, or is too short to tell, is for the core to check.
    """
    got = kind_of(data)
    if len(data) >= len(layout.ARTIFACT_MAGIC) and wanted not in got:
        raise FormatError(f"got {got}, wanted {wanted}")
