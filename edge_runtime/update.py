"""What a device sends after training: the largest |v|, and the dense tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsyfed.edge_runtime import _native, container
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.format import Codec, Content, ValueType
from sparsyfed.edge_runtime.sparse_model import SparseModel
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@dataclass(frozen=True, slots=True)
class SparseUpdate(SparseModel):
    """Trained values at the kept part of the support, with the round and support they came from.

    `support_id` is that of the state that training began with. Raises InputError when a name occurs
    twice or a number does not fit the format.
    """

    tensors: tuple[SparseTensor | DenseTensor, ...]
    round: int
    support_id: bytes

    def __post_init__(self) -> None:
        container.require_valid(self.tensors, self.round)
        if len(self.support_id) != 8:
            raise InputError(f"got a support id of {len(self.support_id)} bytes, wanted 8")

    @classmethod
    def decode(cls, data: ReadableBuffer, base: State | None = None) -> SparseUpdate:
        """Update of its bytes, checked against the state `base` that it was trained from.

        Names are those of `base`; without a base `tensor_0`, `tensor_1`, ...
        Allocates at most 2 · len(data) bytes, 1 KiB for each tensor and 64 KiB; the first time with `base`
        its encoded bytes as well, which the base then keeps. Raises FormatError on anything
        malformed, MismatchError when a good update does not belong to `base`: other tensors,
        another support id, or an entry outside its support.
        """
        names = None if base is None else [tensor.name for tensor in base.tensors]
        if base is not None:
            _native.check_update(memoryview(data).cast("B"), memoryview(base.encode()))
        content = container.decode(Content.UPDATE, data, names)
        return cls(content.tensors, content.round, content.support_id)

    def encode(self, codec: str = "csr", values: str = "fp32") -> bytes:
        """The bytes of the update, without names. Raises InputError for an unknown codec."""
        require_choice("codec", codec, [member.name.lower() for member in Codec])
        require_choice("values", values, [member.name.lower() for member in ValueType])
        return container.encode(
            Content.UPDATE, self.tensors, self.round, self.support_id, with_names=False
        )


def require_choice(argument: str, got: str, choices: list[str]) -> None:
    """Raise InputError unless `got` is one of the choices."""
    if got not in choices:
        raise InputError(f"got {argument} {got!r}, wanted one of: {', '.join(choices)}")
