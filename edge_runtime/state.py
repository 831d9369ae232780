"""The sparse model: what the coordinator sends and a session trains."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsyfed.edge_runtime import container
from sparsyfed.edge_runtime.container import DenseTensor, SparseTensor
from sparsyfed.edge_runtime.errors import FormatError, InputError
from sparsyfed.edge_runtime.file_kinds import FileKind, require_kind
from sparsyfed.edge_runtime.files import load_file, write_atomic
from sparsyfed.edge_runtime.format import Content
from sparsyfed.edge_runtime.sparse_model import SparseModel

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["DenseTensor", "SparseTensor", "State"]


@dataclass(frozen=True, slots=True)
class State(SparseModel):
    """Values and support of a model's parameters, in the order of its artifact.

    Prunable weights hold v, from which a session computes w = sign(v)|v|^beta. The exponent is the
    artifact's: a state has none, so one that began with another exponent is taken, and its w are
    others. The arrays must not change: support id and bytes are computed once. Raises InputError
    when a name occurs twice or a number does not fit the format.
    """

    tensors: tuple[SparseTensor | DenseTensor, ...]
    round: int = 0
    _support_id: bytes | None = field(default=None, init=False, repr=False, compare=False)
    _encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        container.require_valid(self.tensors, self.round)

    @classmethod
    def decode(cls, data: ReadableBuffer) -> State:
        """State of the bytes of a `.sfs` file.

        Allocates at most 2 · len(data) bytes, 1 KiB for each tensor and 64 KiB. Raises FormatError on
        anything malformed.
        """
        content = container.decode(Content.STATE, data)
        state = cls(content.tensors, content.round)
        if state.support_id != content.support_id:
            raise FormatError(
                f"got support id {content.support_id.hex()}, wanted {state.support_id.hex()}: "
                "the hash of the index section"
            )
        return state

    @classmethod
    def load(cls, path: str | Path) -> State:
        """State of a `.sfs` file.

        Raises FormatError on anything malformed, OSError for a path that can't be read.
        """
        return load_file(path, cls.decode)

    def encode(self) -> bytes:
        """The bytes of the state: csr, fp32, with names. Raises InputError on values not finite."""
        if self._encoded is None:
            encoded = container.encode(
                Content.STATE, self.tensors, self.round, self.support_id, with_names=True
            )
            object.__setattr__(self, "_encoded", encoded)
            return encoded
        return self._encoded

    def save(self, path: str | Path) -> None:
        """Write the state to a `.sfs` file; a reader sees the old file or the new one."""
        write_atomic(path, self.encode())

    @property
    def support_id(self) -> bytes:
        """8 bytes that name the support: the beginning of SHA-256 over the csr index section."""
        if self._support_id is None:
            object.__setattr__(self, "_support_id", container.support_id(self.tensors))
            assert self._support_id is not None
        return self._support_id

    def with_values(
        self,
        values: Sequence[array[float]],
        *,
        round: int | None = None,
    ) -> State:
        """State of the same support with other values: one array per tensor, in order.

        The indices are shared. Raises InputError when the number of arrays or a length differs.
        """
        if len(values) != len(self.tensors):
            raise InputError(f"got {len(values)} arrays, wanted {len(self.tensors)}")
        for tensor, value in zip(self.tensors, values, strict=True):
            if len(value) != tensor.count:
                raise InputError(f"{tensor.name}: got {len(value)} values, wanted {tensor.count}")
        tensors = tuple(
            replace(tensor, value=value) for tensor, value in zip(self.tensors, values, strict=True)
        )
        state = State(tensors, self.round if round is None else round)
        object.__setattr__(state, "_support_id", self._support_id)
        return state


def encoded_state(state: State | bytes) -> bytes:
    """The bytes of a state, which may be such bytes.

    Raises FormatError for bytes of another kind of file, InputError for anything else.
    """
    if isinstance(state, State):
        return state.encode()
    if isinstance(state, bytes | bytearray | memoryview):
        encoded = bytes(state)
        require_kind(memoryview(encoded), FileKind.STATE)
        return encoded
    raise InputError(
        f"got a state of type {type(state).__name__}, wanted a State or the bytes of one: "
        "State.load(path) reads a file"
    )
