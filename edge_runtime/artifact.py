"""The training artifact: the structure of a model, without weights (docs/format.md, section 1)."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime import format as layout
from sparsyfed.edge_runtime.errors import FormatError, InputError
from sparsyfed.edge_runtime.file_kinds import FileKind, require_kind
from sparsyfed.edge_runtime.files import load_file, write_atomic
from sparsyfed.edge_runtime.format import InputType, Loss, OperationKind, ParameterKind
from sparsyfed.edge_runtime.quantization import Quantization

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter's place in the model: kind, shape, name; no values.

    `dimensions` are out, in / groups, kernel height, kernel width for a prunable weight (a Linear
    has kernel 1 * 1, a Conv1d height 1), and n, 1, 1, 1 for others. `rank` is the number of
    dimensions in the PyTorch model.
    """

    kind: ParameterKind
    rank: int
    dimensions: tuple[int, int, int, int]
    name: str

    @property
    def rows(self) -> int:
        """Rows of the weight as a matrix: the output channels; 1 for other kinds."""
        return self.dimensions[0] if self.kind is ParameterKind.WEIGHT else 1

    @property
    def columns(self) -> int:
        """Columns of the weight as a matrix: in / groups * height * width; else all elements."""
        return self.count // self.rows

    @property
    def count(self) -> int:
        """Number of elements: for a prunable weight its positions."""
        return math.prod(self.dimensions)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the PyTorch model; other kinds than prunable weights are vectors."""
        out, inner, height, width = self.dimensions
        if self.kind is not ParameterKind.WEIGHT:
            return (out,)
        return {2: (out, inner), 3: (out, inner, width)}.get(self.rank, (out, inner, height, width))


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape of one example of an activation; the batch dimension is not stored."""

    channels: int
    height: int
    width: int
    rank: int

    @property
    def size(self) -> int:
        """Elements of one example."""
        return self.channels * self.height * self.width

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example in the PyTorch model."""
        full = (self.channels, self.height, self.width)
        return {1: (self.channels,), 2: (self.channels, self.width)}.get(self.rank, full)


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of the forward pass: operation i writes tensor i + 1.

    Fields that a kind does not use keep their default.
    """

    kind: OperationKind
    inputs: tuple[int, ...]
    output: int
    name: str
    flags: int = 0
    weight: int | None = None
    bias: int | None = None
    mean: int | None = None
    variance: int | None = None
    groups: int = 0
    kernel: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (0, 0)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (0, 0)
    epsilon: float = 0.0
    momentum: float = 0.0
    normalized: int = 0


@dataclass(frozen=True, slots=True)
class Artifact:
    """The structure of a model: one artifact serves every batch size, density and round.

    `quantization` says that inputs are int8, and what they stand for; None: float32.
    """

    parameters: tuple[Parameter, ...]
    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    loss: Loss
    output: int
    beta: float
    quantization: Quantization | None = None

    def encode(self) -> bytes:
        """The bytes of a `.sfd` file.

        Raises InputError when a number does not fit its field, or two parameters share a name.
        """
        repeated = layout.first_repeated([parameter.name for parameter in self.parameters])
        if repeated is not None:
            raise InputError(f"two parameters have the name {repeated!r}")
        names = [layout.encode_name(parameter.name) for parameter in self.parameters]
        names += [layout.encode_name(operation.name) for operation in self.operations]
        offsets = itertools.accumulate(map(len, names), initial=0)
        places = zip(offsets, map(len, names), strict=False)
        try:
            body = b"".join([*self._records(places), *names])
            header = [
                layout.ARTIFACT_MAGIC,
                layout.ARTIFACT_MAJOR,
                0 if self.quantization is None else 1,
                layout.ARTIFACT_HEADER.size + len(body),
                0,
                len(self.parameters),
                len(self.tensors),
                len(self.operations),
                self.loss,
                0,
                self.output,
                self.beta,
                sum(map(len, names)),
                *self._input(),
            ]
            header[4] = zlib.crc32(body, zlib.crc32(layout.ARTIFACT_HEADER.pack(*header)))
            return layout.ARTIFACT_HEADER.pack(*header) + body
        except (struct.error, OverflowError) as error:
            raise InputError(f"a number does not fit its field in the artifact: {error}") from error

    def _input(self) -> tuple[int, int, float]:
        """Type, zero point and scale of the inputs, as the header has them."""
        if self.quantization is None:
            return InputType.FLOAT32, 0, 0.0
        return InputType.INT8, self.quantization.zero_point, self.quantization.scale

    def _records(self, places: Iterator[tuple[int, int]]) -> Iterator[bytes]:
        for parameter in self.parameters:
            yield layout.PARAMETER_RECORD.pack(
                parameter.kind, parameter.rank, *parameter.dimensions, *next(places)
            )
        for tensor in self.tensors:
            yield layout.TENSOR_RECORD.pack(
                tensor.channels, tensor.height, tensor.width, tensor.rank
            )
        for operation in self.operations:
            yield operation_record(operation, *next(places))

    @classmethod
    def decode(cls, data: ReadableBuffer) -> Artifact:
        """Artifact of the bytes of a `.sfd` file.

        Allocates at most 32 · len(data) bytes and 64 KiB. Raises FormatError on anything malformed.
        """
        view = memoryview(data).cast("B")
        require_kind(view, FileKind.ARTIFACT)
        _native.check_artifact(view)
        header = layout.ARTIFACT_HEADER.unpack_from(view)
        counts = header[5:8]
        names_bytes = header[12]
        names = view[len(view) - names_bytes :]
        start = layout.ARTIFACT_HEADER.size
        sections = []
        records = (layout.PARAMETER_RECORD, layout.TENSOR_RECORD, layout.OPERATION_RECORD)
        for record, count in zip(records, counts, strict=True):
            end = start + count * record.size
            sections.append(list(record.iter_unpack(view[start:end])))
            start = end
        parameters = tuple(read_parameter(record, names) for record in sections[0])
        repeated = layout.first_repeated([parameter.name for parameter in parameters])
        if repeated is not None:
            raise FormatError(f"two parameters have the name {repeated!r}")
        tensors = tuple(Tensor(*record) for record in sections[1])
        operations = tuple(read_operation(record, names) for record in sections[2])
        _, zero_point, scale = header[13:]
        quantization = Quantization(scale, zero_point) if header[13] == InputType.INT8 else None
        return cls(
            *(parameters, tensors, operations, Loss(header[8]), header[10], header[11]),
            quantization,
        )

    @classmethod
    def load(cls, path: str | Path) -> Artifact:
        """Artifact of a `.sfd` file.

        Raises FormatError on anything malformed, a folder too, OSError for a path that can't be read.
        """
        if Path(path).is_dir():
            raise FormatError(
                f"{path} is a folder, wanted an artifact, by convention .sfd: "
                "a folder may be an export for another backend"
            )
        return load_file(path, cls.decode)

    @classmethod
    def of(cls, source: str | Path | bytes | Artifact) -> Artifact:
        """Artifact of a path, of bytes, or itself. Raises InputError for anything else."""
        if isinstance(source, Artifact):
            return source
        if isinstance(source, str | Path):
            return cls.load(source)
        if isinstance(source, bytes | bytearray | memoryview):
            return cls.decode(source)
        raise InputError(
            f"got an artifact of type {type(source).__name__}, wanted a path, bytes or an Artifact: "
            "of what export.compile returns, pass .native"
        )

    def save(self, path: str | Path) -> None:
        """Write the artifact to a `.sfd` file; a reader sees the old file or the new one."""
        write_atomic(path, self.encode())

    @property
    def identity(self) -> str:
        """SHA-256 of the encoded artifact, in hex."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def prunable(self) -> tuple[int, ...]:
        """Indices of the prunable weights among the parameters."""
        return tuple(
            index
            for index, parameter in enumerate(self.parameters)
            if parameter.kind is ParameterKind.WEIGHT
        )


def operation_record(operation: Operation, name_offset: int, name_bytes: int) -> bytes:
    """The stored record of an operation."""
    second = operation.inputs[1] if len(operation.inputs) > 1 else None
    references = (second, operation.weight, operation.bias, operation.mean, operation.variance)
    stored = [layout.NONE if reference is None else reference for reference in references]
    return layout.OPERATION_RECORD.pack(
        operation.kind,
        operation.flags,
        operation.inputs[0],
        stored[0],
        operation.output,
        *stored[1:],
        operation.groups,
        *operation.kernel,
        *operation.stride,
        *operation.padding,
        *operation.dilation,
        operation.epsilon,
        operation.momentum,
        operation.normalized,
        name_offset,
        name_bytes,
    )


def read_parameter(record: tuple[int, ...], names: memoryview) -> Parameter:
    """Parameter of a checked record."""
    kind, rank, out, inner, height, width, offset, length = record
    name = read_name(names, offset, length)
    return Parameter(ParameterKind(kind), rank, (out, inner, height, width), name)


def read_operation(record: tuple[int | float, ...], names: memoryview) -> Operation:
    """Operation of a checked record."""
    integers = [int(value) for value in record[:18]]
    kind, flags, first, second, output, *references, groups = integers[:10]
    weight, bias, mean, variance = (None if r == layout.NONE else r for r in references)
    return Operation(
        kind=OperationKind(kind),
        inputs=(first,) if second == layout.NONE else (first, second),
        output=output,
        name=read_name(names, int(record[21]), int(record[22])),
        flags=flags,
        weight=weight,
        bias=bias,
        mean=mean,
        variance=variance,
        groups=groups,
        kernel=(integers[10], integers[11]),
        stride=(integers[12], integers[13]),
        padding=(integers[14], integers[15]),
        dilation=(integers[16], integers[17]),
        epsilon=record[18],
        momentum=record[19],
        normalized=int(record[20]),
    )


def read_name(names: memoryview, offset: int, length: int) -> str:
    """Name of a record in the names section."""
    return bytes(names[offset : offset + length]).decode()
