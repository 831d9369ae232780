"""The container of states and updates: its tensors, its bytes (docs/format.md, section 2)."""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime import format as layout
from sparsyfed.edge_runtime.arguments import check_round
from sparsyfed.edge_runtime.buffers import contiguous, described
from sparsyfed.edge_runtime.errors import FormatError, InputError
from sparsyfed.edge_runtime.file_kinds import CONTENTS, require_kind

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from sparsyfed.edge_runtime.buffers import BufferLike

MAX_U32 = 0xFFFF_FFFF
FLOAT_BYTES = 4


def column_type(columns: int) -> str:
    """Array type code of the column indices of a matrix with that many columns."""
    return "H" if columns <= layout.NARROW_COLUMNS else "I"


@dataclass(frozen=True, slots=True)
class SparseTensor:
    """One prunable weight in CSR form: the support and the values of v.

    `row_pointer` has rows + 1 entries (type code `I`), `column` and `value` one per stored entry
    (`H`, or `I` over 65,536 columns, and `f`). Columns rise within a row. A stored value may be
    zero: the support is what is stored. Raises InputError when lengths or type codes do not agree.
    """

    name: str
    rows: int
    columns: int
    row_pointer: array[int] = field(repr=False)
    column: array[int] = field(repr=False)
    value: array[float] = field(repr=False)

    def __post_init__(self) -> None:
        codes = self.row_pointer.typecode + self.column.typecode + self.value.typecode
        if codes != f"I{column_type(self.columns)}f":
            raise InputError(
                f"{self.name}: got arrays of type {codes!r}, wanted 'I{column_type(self.columns)}f'"
            )
        if len(self.row_pointer) != self.rows + 1:
            raise InputError(
                f"{self.name}: got {len(self.row_pointer)} row pointers, wanted {self.rows + 1}"
            )
        count = self.row_pointer[-1]
        if self.row_pointer[0] != 0 or not count == len(self.column) == len(self.value):
            raise InputError(
                f"{self.name}: row pointers go from {self.row_pointer[0]} to {count}, with "
                f"{len(self.column)} columns and {len(self.value)} values"
            )

    @classmethod
    def from_dense(
        cls, name: str, rows: int, columns: int, data: BufferLike, *, keep_zeros: bool
    ) -> SparseTensor:
        """Tensor of a dense C-contiguous float32 buffer with rows * columns elements.

        With `keep_zeros` every position is in the support, else only the nonzeros.
        """
        dense = float_array(name, data, rows * columns)
        if keep_zeros:
            row_pointer = array("I", range(0, rows * columns + 1, columns))
            column = array(column_type(columns), range(columns)) * rows
            return cls(name, rows, columns, row_pointer, column, dense)
        row_pointer = array("I", [0])
        column = array(column_type(columns))
        value = array("f")
        numbers = range(columns)
        for start in range(0, rows * columns, columns):
            row = dense[start : start + columns]
            column.extend(itertools.compress(numbers, row))
            value.extend(filter(None, row))
            row_pointer.append(len(column))
        return cls(name, rows, columns, row_pointer, column, value)

    @property
    def count(self) -> int:
        """Number of stored entries."""
        return len(self.value)


@dataclass(frozen=True, slots=True)
class DenseTensor:
    """One dense parameter: a bias or norm weight (`DENSE`), or a running statistic."""

    name: str
    kind: layout.ParameterKind
    value: array[float] = field(repr=False)

    def __post_init__(self) -> None:
        if self.kind is layout.ParameterKind.WEIGHT:
            raise InputError(f"{self.name}: a prunable weight is a SparseTensor")
        if self.value.typecode != "f":
            raise InputError(f"{self.name}: got type {self.value.typecode!r}, wanted 'f'")

    @classmethod
    def from_dense(cls, name: str, kind: layout.ParameterKind, data: BufferLike) -> DenseTensor:
        """Tensor of a C-contiguous float32 buffer of any shape."""
        return cls(name, kind, float_array(name, data, None))

    @property
    def count(self) -> int:
        """Number of elements."""
        return len(self.value)


Tensor = SparseTensor | DenseTensor


def float_array(name: str, data: BufferLike, count: int | None) -> array[float]:
    """Copy of a C-contiguous buffer of `count` finite float32."""
    view = contiguous(name, data)
    if view.format != "f" or count not in (None, view.nbytes // FLOAT_BYTES):
        wanted = "any number of" if count is None else count
        raise InputError(f"{name}: got {described(view)}, wanted {wanted} values of float32")
    values = array("f", bytes(view))
    require_finite(name, values)
    return values


def require_finite(name: str, values: array[float]) -> None:
    """Raise InputError if a value is NaN or infinite."""
    # Finite float32 do not overflow the double that sums them; what is not finite stays in it.
    if not math.isfinite(sum(values)):
        raise InputError(f"{name}: holds a value that is not finite")


def little_endian(values: array[Any]) -> bytes:
    """Bytes of an array as the format stores them."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def from_little_endian(typecode: str, data: memoryview) -> array[Any]:
    """Array of stored bytes."""
    values = array(typecode)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def index_section(tensors: Sequence[Tensor]) -> list[bytes]:
    """The index section in csr form, in pieces."""
    pieces = []
    for tensor in tensors:
        if isinstance(tensor, SparseTensor):
            column = little_endian(tensor.column)
            pieces += [little_endian(tensor.row_pointer), column, bytes(-len(column) % 4)]
    return pieces


def support_id(tensors: Sequence[Tensor]) -> bytes:
    """First 8 bytes of SHA-256 over the index section: names the support of a state."""
    digest = hashlib.sha256()
    for piece in index_section(tensors):
        digest.update(piece)
    return digest.digest()[:8]


def positions(tensors: Sequence[Tensor]) -> int:
    """Number of prunable positions, stored or not."""
    return sum(t.rows * t.columns for t in tensors if isinstance(t, SparseTensor))


def nonzeros(tensors: Sequence[Tensor]) -> int:
    """Number of stored entries of the sparse tensors."""
    return sum(t.count for t in tensors if isinstance(t, SparseTensor))


def require_valid(tensors: Sequence[Tensor], number: int) -> None:
    """Raise InputError unless tensors and round number fit a container."""
    if not 1 <= len(tensors) <= layout.MAX_RECORDS:
        raise InputError(f"got {len(tensors)} tensors, wanted 1 to {layout.MAX_RECORDS}")
    check_round(number)
    if positions(tensors) > MAX_U32:
        raise InputError(f"got {positions(tensors)} positions, wanted {MAX_U32} at most")
    repeated = layout.first_repeated([tensor.name for tensor in tensors])
    if repeated is not None:
        raise InputError(f"two tensors have the name {repeated!r}")


def table_entry(tensor: Tensor) -> bytes:
    """The record of a tensor in the tensor table."""
    if isinstance(tensor, SparseTensor):
        width = tensor.column.itemsize
        shape = (tensor.rows, tensor.columns)
        return layout.TABLE_ENTRY.pack(layout.ParameterKind.WEIGHT, width, *shape, tensor.count)
    return layout.TABLE_ENTRY.pack(tensor.kind, 0, 1, tensor.count, tensor.count)


def encode(
    content: layout.Content,
    tensors: Sequence[Tensor],
    number: int,
    identity: bytes,
    *,
    with_names: bool,
) -> bytes:
    """The bytes of a container in csr, fp32; `number` is the round, `identity` the support_id."""
    for tensor in tensors:
        require_finite(tensor.name, tensor.value)
    index = index_section(tensors)
    flags = content | (layout.Codec.CSR << layout.CODEC_SHIFT)
    if with_names:
        flags |= layout.FLAG_NAMES
    body = [table_entry(tensor) for tensor in tensors]
    body += index
    body += [little_endian(tensor.value) for tensor in tensors]
    if with_names:
        body += encode_names(tensors)
    header = [
        layout.CONTAINER_MAGIC,
        layout.CONTAINER_VERSION,
        flags,
        number,
        identity,
        positions(tensors),
        nonzeros(tensors),
        0,
        layout.ValueType.FP32,
        len(tensors),
        sum(map(len, index)),
    ]
    crc = zlib.crc32(layout.CONTAINER_HEADER.pack(*header, 0))
    for piece in body:
        crc = zlib.crc32(piece, crc)
    return b"".join([layout.CONTAINER_HEADER.pack(*header, crc), *body])


def encode_names(tensors: Sequence[Tensor]) -> list[bytes]:
    """The names section, in pieces."""
    names = b"\n".join(layout.encode_name(tensor.name) for tensor in tensors)
    return [layout.NAMES_LENGTH.pack(len(names)), names]


@dataclass(frozen=True, slots=True)
class Container:
    """What the bytes of a container hold."""

    tensors: tuple[Tensor, ...]
    round: int
    support_id: bytes


def decode(
    content: layout.Content, data: ReadableBuffer, names: Sequence[str] | None = None
) -> Container:
    """Check and read a container.

    Tensors are called as in `names`, else as in the bytes, else `tensor_0`, `tensor_1`, ...
    Allocates at most 2 · len(data) bytes and 1 KiB for each tensor. Raises FormatError.
    """
    view = memoryview(data).cast("B")
    require_kind(view, CONTENTS[content])
    _native.check_container(view)
    header = layout.CONTAINER_HEADER.unpack_from(view)
    flags, number, identity, count, index_bytes = (header[i] for i in (2, 3, 4, 9, 10))
    table_bytes = count * layout.TABLE_ENTRY.size
    index_start = layout.CONTAINER_HEADER.size + table_bytes
    table = list(layout.TABLE_ENTRY.iter_unpack(view[layout.CONTAINER_HEADER.size : index_start]))
    value_start = index_start + index_bytes
    if names is None and flags & layout.FLAG_NAMES:
        names_start = value_start + 4 * sum(entry[4] for entry in table)
        names = decode_names(view[names_start + layout.NAMES_LENGTH.size :])
    elif names is None:
        names = [f"tensor_{i}" for i in range(count)]
    tensors = slice_tensors(table, names, view[index_start:value_start], view[value_start:])
    return Container(tensors, number, identity)


def decode_names(data: memoryview) -> list[str]:
    """The names of a names section without its length field."""
    names = bytes(data).decode().split("\n")
    repeated = layout.first_repeated(names)
    if repeated is not None:
        raise FormatError(f"two tensors have the name {repeated!r}")
    return names


def slice_tensors(
    table: Sequence[tuple[int, ...]], names: Sequence[str], index: memoryview, values: memoryview
) -> tuple[Tensor, ...]:
    """The tensors of checked index and value sections."""
    tensors: list[Tensor] = []
    for name, (kind, width, rows, columns, count) in zip(names, table, strict=True):
        value = from_little_endian("f", values[: 4 * count])
        values = values[4 * count :]
        if kind != layout.ParameterKind.WEIGHT:
            tensors.append(DenseTensor(name, layout.ParameterKind(kind), value))
            continue
        pointer_bytes = 4 * (rows + 1)
        column_bytes = width * count
        row_pointer = from_little_endian("I", index[:pointer_bytes])
        column = from_little_endian(
            column_type(columns), index[pointer_bytes : pointer_bytes + column_bytes]
        )
        index = index[pointer_bytes + column_bytes + -column_bytes % 4 :]
        tensors.append(SparseTensor(name, rows, columns, row_pointer, column, value))
    return tuple(tensors)
