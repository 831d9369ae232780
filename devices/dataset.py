"""The data of a device: two NumPy files, read without NumPy.

`x.npy` holds float32 or int8 examples, the first axis counts them; `y.npy` int32 or int64 labels of shape
(examples,), or float32 targets of shape (examples, ...) for a regression. Both are mapped, not
read: a data set may be larger than the memory. The file format is NumPy's own, versions 1.0 and 2.0
(numpy/lib/format.py), in C order, little-endian.
"""

import ast
import math
import mmap
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sparsyfed.edge_runtime.errors import ConfigurationError, FormatError, InputError

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4096  # what numpy.save writes is 118 bytes for up to 20 axes
_MAX_AXES = 32
_TYPES: dict[str, Literal["f", "i", "q", "b"]] = {"<f4": "f", "<i4": "i", "<i8": "q", "|i1": "b"}
_MASK64 = 2**64 - 1
_CHECKED_AT_ONCE = 1 << 16  # values


class ArrayFile:
    """A `.npy` file as flat rows.

    Raises ConfigurationError if the file is not there, FormatError if it is not a C-ordered array of one of the
    types <f4, <i4, <i8, |i1 whose bytes are all there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if sys.byteorder != "little":
            raise ConfigurationError(
                "local data is mapped, not converted: a little-endian machine is needed"
            )
        try:
            with self.path.open("rb") as stream:
                self.shape, self.typecode, offset = _read_header(
                    self.path, stream.read(12 + _MAX_HEADER_BYTES)
                )
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ConfigurationError(f"cannot read local data: {error}") from error
        wanted = math.prod(self.shape) * struct.calcsize(self.typecode)
        if len(self._map) - offset != wanted:
            got = len(self._map) - offset
            self._map.close()
            raise FormatError(
                f"{self.path}: got {got} bytes of data, wanted {wanted} for shape {self.shape}"
            )
        self.row_size = math.prod(self.shape[1:])
        """Elements of one example."""
        flat = memoryview(self._map)[offset:]
        self.values: memoryview[Any] = flat.cast(self.typecode)  # type: ignore[call-overload]

    def __len__(self) -> int:
        return self.shape[0]

    def first_invalid(self) -> int | None:
        """Place of the first float that is not finite, or of the first integer below 0; None without one."""
        is_float = self.typecode == "f"
        for start in range(0, len(self.values), _CHECKED_AT_ONCE):
            piece = self.values[start : start + _CHECKED_AT_ONCE].tolist()
            # The sum, in double precision, of so few finite floats is finite, and no other one is. One call is some
            # ten times faster than to ask of each value.
            if math.isfinite(sum(piece)) if is_float else min(piece) >= 0:
                continue
            bad = (
                place
                for place, value in enumerate(piece)
                if not math.isfinite(value) or (not is_float and value < 0)
            )
            return start + next(bad)
        return None

    def copy_row(self, row: int, target: memoryview, place: int) -> None:
        """Copy example `row` to place number `place` of a flat batch."""
        size = self.row_size
        target[place * size : (place + 1) * size] = self.values[row * size : (row + 1) * size]

    def close(self) -> None:
        """Unmap the file. Views taken from it must be gone."""
        self.values.release()
        self._map.close()


def _read_header(path: Path, start: bytes) -> tuple[tuple[int, ...], str, int]:
    """Shape, array type code and offset of the data."""
    if start[:6] != _MAGIC:
        raise FormatError(
            f"{path}: got magic {start[:6]!r}, wanted {_MAGIC!r} (a file of numpy.save)"
        )
    version = tuple(start[6:8])
    if version not in {(1, 0), (2, 0)}:
        raise FormatError(f"{path}: got .npy version {version}, wanted (1, 0) or (2, 0)")
    layout = struct.Struct("<H" if version == (1, 0) else "<I")
    offset = 8 + layout.size
    if len(start) < offset:
        raise FormatError(f"{path}: the file ends within its header")
    (length,) = layout.unpack_from(start, 8)
    if length > _MAX_HEADER_BYTES or len(start) < offset + length:
        raise FormatError(
            f"{path}: got a header of {length} bytes, wanted at most {_MAX_HEADER_BYTES}, all there"
        )
    try:
        header = ast.literal_eval(start[offset : offset + length].decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise FormatError(
            f"{path}: the header is no Python literal: {type(error).__name__}"
        ) from error
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise FormatError(
            f"{path}: got another header, wanted the keys descr, fortran_order, shape"
        )
    if not isinstance(header["descr"], str) or header["descr"] not in _TYPES:
        raise FormatError(
            f"{path}: got type {header['descr']!r:.40}, wanted one of {', '.join(_TYPES)}"
        )
    if header["fortran_order"] is not False:
        raise FormatError(
            f"{path}: got Fortran order, wanted C order: save numpy.ascontiguousarray(a)"
        )
    return _checked_shape(path, header["shape"]), _TYPES[header["descr"]], offset + length


def _checked_shape(path: Path, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not 1 <= len(shape) <= _MAX_AXES:
        raise FormatError(
            f"{path}: got shape {shape!r:.80}, wanted a tuple of 1 to {_MAX_AXES} sizes"
        )
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size < 2**31:
            raise FormatError(f"{path}: got shape {shape!r:.80}, wanted sizes from 1 to 2^31 - 1")
    return shape


@dataclass(frozen=True, slots=True)
class Batch:
    """Flat views into the buffers of the batches: valid until the next batch is made."""

    x: memoryview
    y: memoryview
    count: int


class Dataset:
    """Examples and targets of one device, from `x.npy` and `y.npy` in a directory.

    Raises ConfigurationError if a file is missing or the two don't belong together, FormatError if
    one is malformed.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._x = ArrayFile(self.directory / "x.npy")
        self._y = ArrayFile(self.directory / "y.npy")
        if self._x.typecode not in {"f", "b"}:
            raise ConfigurationError(
                f"{self._x.path}: got integers, wanted float32 examples (<f4), or int8 (|i1)"
            )
        if self._y.typecode == "b":
            raise ConfigurationError(
                f"{self._y.path}: got int8, wanted labels int32 or int64, or float32 targets"
            )
        if len(self._x) != len(self._y):
            raise ConfigurationError(
                f"{self.directory}: got {len(self._x)} examples and {len(self._y)} targets, wanted as many"
            )
        if self._y.typecode != "f" and self._y.row_size != 1:
            raise ConfigurationError(
                f"{self._y.path}: got labels of shape {self._y.shape}, wanted one an example"
            )

    def __len__(self) -> int:
        return len(self._x)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self._x.shape[1:]

    @property
    def example_type(self) -> str:
        """Type code of the examples: "f" float32, "b" int8."""
        return self._x.typecode

    @property
    def target_type(self) -> str:
        """Type code of the targets: "i" int32 labels, "q" int64 labels, "f" float32 values."""
        return self._y.typecode

    @property
    def target_size(self) -> int:
        """Elements of one target: 1 for labels."""
        return self._y.row_size

    @cached_property
    def largest_label(self) -> int:
        """The largest label; of a data set that has labels, not float32 targets."""
        return int(max(self._y.values))

    def require_valid_values(self) -> None:
        """Raise ConfigurationError unless all floats are finite and no label is below 0.

        Reads both files once, a piece at a time.
        """
        for file in (self._x, self._y):
            if file.typecode == "b":  # all int8 are valid
                continue
            place = file.first_invalid()
            if place is not None:
                wanted = "finite numbers" if file.typecode == "f" else "labels from 0"
                raise ConfigurationError(
                    f"{file.path}: got {file.values[place]} in example {place // file.row_size}, "
                    f"wanted {wanted}"
                )

    def batches(self, batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
        """Shuffled batches of one pass over all examples; the last one may be smaller.

        The order depends on `seed` and `epoch` alone. One pair of buffers serves all batches.
        """
        if batch_size < 1:
            raise InputError(f"got batch size {batch_size}, wanted at least 1")
        size = min(batch_size, len(self))
        x_bytes = struct.calcsize(self._x.typecode) * size * self._x.row_size
        x = memoryview(array(self._x.typecode, bytes(x_bytes)))
        y_bytes = struct.calcsize(self._y.typecode) * size * self._y.row_size
        y = memoryview(array(self._y.typecode, bytes(y_bytes)))
        order = permutation(len(self), seed, epoch)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            for place, row in enumerate(rows):
                self._x.copy_row(row, x, place)
                self._y.copy_row(row, y, place)
            count = len(rows)
            yield Batch(x[: count * self._x.row_size], y[: count * self._y.row_size], count)

    def everything(self) -> Batch:
        """All examples in order, as views of the files: for an evaluation."""
        return Batch(self._x.values, self._y.values, len(self))

    def close(self) -> None:
        """Unmap both files."""
        self._x.close()
        self._y.close()


def permutation(count: int, seed: int, epoch: int) -> "array[int]":
    """Random order of range(count), the same on every machine and Python version.

    Fisher and Yates' shuffle with the SplitMix64 generator (Steele, Lea, Flood, OOPSLA 2014),
    without modulo bias.
    """
    order = array("I", range(count))
    state = (seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03) & _MASK64
    for last in range(count - 1, 0, -1):
        limit = 2**64 - 2**64 % (last + 1)
        while True:
            state = (state + 0x9E3779B97F4A7C15) & _MASK64
            mixed = state
            mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK64
            mixed ^= mixed >> 31
            if mixed < limit:
                break
        chosen = mixed % (last + 1)
        order[last], order[chosen] = order[chosen], order[last]
    return order
