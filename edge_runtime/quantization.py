"""Inputs as int8: a quarter of the bytes of float32, on a device and on the way to it."""

from __future__ import annotations

import math
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.buffers import contiguous, described
from sparsyfed.edge_runtime.errors import InputError

if TYPE_CHECKING:
    from sparsyfed.edge_runtime.buffers import BufferLike

LOWEST, HIGHEST = -128, 127
LEAST_SCALE, MOST_SCALE = 2.0**-126, 1e30
"""What an artifact holds: so that each int8 stands for a finite number, and not for a denormal one."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How int8 stand for float32: q for scale · (q - zero_point), rounded once.

    `scale` is taken as the float32 that is nearest. Raises InputError for one outside 2^-126 to 1e30, and for a
    `zero_point` outside -128 to 127.
    """

    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        try:
            scale: float = struct.unpack("<f", struct.pack("<f", self.scale))[0]
        except (struct.error, OverflowError):
            scale = 0.0
        if not LEAST_SCALE <= scale <= MOST_SCALE:
            raise InputError(
                f"got scale {self.scale!r}, wanted a number from 2^-126 to {MOST_SCALE:g}"
            )
        if self.zero_point not in range(LOWEST, HIGHEST + 1):
            raise InputError(
                f"got zero_point {self.zero_point!r}, wanted an int from {LOWEST} to {HIGHEST}"
            )
        object.__setattr__(self, "scale", scale)

    @classmethod
    def of_range(cls, low: float, high: float) -> Quantization:
        """The finest steps that reach from `low` to `high`, and meet 0, which stays exact.

        Raises InputError for a range that is not finite, or turned round.
        """
        if not -MOST_SCALE <= low <= high <= MOST_SCALE:
            raise InputError(f"got a range from {low} to {high}, wanted finite numbers in order")
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / (HIGHEST - LOWEST), LEAST_SCALE) if high > low else 1.0
        return cls(scale, max(LOWEST, min(HIGHEST, round(LOWEST - low / scale))))

    @classmethod
    def of(cls, x: BufferLike) -> Quantization:
        """`of_range` of a C-contiguous float32 buffer, from its least value to its largest.

        Raises InputError for another buffer, an empty one, and values that are not finite.
        """
        values = _floats(x)
        if not values:
            raise InputError("got no values, wanted those whose range is to be covered")
        if any(map(math.isnan, values)):  # NaN, which min and max may pass over
            raise InputError("got values that are not finite")
        return cls.of_range(min(values), max(values))

    def quantize(self, x: BufferLike) -> array[int]:
        """int8 in the place of a C-contiguous float32 buffer, flat.

        Rounds x / scale + zero_point to the nearest, ties to even, and puts what is outside to -128 or 127: what lies
        in the range is off by half a scale at most. Raises InputError for another buffer and values that are not
        finite.
        """
        values = _floats(x)
        out = array("b", bytes(len(values)))
        code = _native.library().sfd_quantize(
            *(_native.address(values), len(values), self.scale, self.zero_point),
            _native.address(memoryview(out)),
        )
        if code:
            _native.raise_error(code, "inputs as int8")
        return out

    def dequantize(self, q: BufferLike) -> array[float]:
        """The float32 that a C-contiguous int8 buffer stands for, flat. Raises InputError for another buffer."""
        view = contiguous("q", q)
        if view.format != "b":
            raise InputError(f"got q of {described(view)}, wanted int8")
        # The product of a float32 and a small integer is exact in the double that it is rounded from.
        return array(
            "f", (self.scale * (each - self.zero_point) for each in view.cast("B").cast("b"))
        )


def _floats(x: BufferLike) -> memoryview[Any]:
    """Flat view of a float32 buffer that the core can read where it lies."""
    view = contiguous("x", x)
    if view.format != "f" or _native.address(view) % view.itemsize:
        raise InputError(f"got x of {described(view)}, wanted float32, aligned")
    return view.cast("B").cast("f")
