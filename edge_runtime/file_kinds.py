"""What kind of file some bytes are, so that an error about the wrong one can name both."""

from __future__ import annotations

import enum

from sparsyfed.edge_runtime import format as layout
from sparsyfed.edge_runtime.errors import FormatError


class FileKind(enum.Enum):
    """A kind of file; the value is what messages call it."""

    ARTIFACT = "a training artifact (.sfd)"
    STATE = "a state (.sfs)"
    UPDATE = "an update"
    CONTAINER = "a state (.sfs) or an update"
    EXECUTORCH = "an ExecuTorch program (.pte)"
    ZIP = "a zip archive, such as a TorchScript export (.pt)"
    NUMPY = "a NumPy array (.npy)"
    UNKNOWN = "another kind of file"

    def may_be(self, wanted: FileKind) -> bool:
        """Whether a file of this kind can be one of the other: a container may not say what it holds."""
        return self is wanted or (self is FileKind.CONTAINER and wanted in CONTENTS.values())


CONTENTS: dict[int, FileKind] = {
    layout.Content.STATE: FileKind.STATE,
    layout.Content.UPDATE: FileKind.UPDATE,
}
OURS = {FileKind.ARTIFACT, FileKind.STATE, FileKind.UPDATE, FileKind.CONTAINER}
"""What a native session is opened with, or sends."""
LONGEST_MARK = 8
"""So many bytes of a file tell its kind."""
EXECUTORCH_MARK = slice(4, 6)
FLAGS = slice(6, 8)


def kind_of(data: bytes | memoryview) -> FileKind:
    """What the first bytes of a file say that it is; nothing after them is looked at."""
    start = bytes(data[:LONGEST_MARK])
    if start.startswith(layout.ARTIFACT_MAGIC):
        return FileKind.ARTIFACT
    if start.startswith(layout.CONTAINER_MAGIC):
        flags = int.from_bytes(start[FLAGS], "little")
        return CONTENTS.get(flags & layout.CONTENT_MASK, FileKind.CONTAINER)
    if start[EXECUTORCH_MARK] == b"ET":
        return FileKind.EXECUTORCH
    if start.startswith(b"PK"):
        return FileKind.ZIP
    if start.startswith(b"\x93NUMPY"):
        return FileKind.NUMPY
    return FileKind.UNKNOWN


def require_kind(data: memoryview, wanted: FileKind) -> None:
    """Raise FormatError for bytes that begin as another kind of file than the one that is wanted.

    What begins as the wanted one, or is too short to tell, is for the core to check.
    """
    got = kind_of(data)
    if len(data) >= len(layout.ARTIFACT_MAGIC) and not got.may_be(wanted):
        raise FormatError(f"got {got.value}, wanted {wanted.value}")
