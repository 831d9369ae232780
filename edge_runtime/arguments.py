"""Numbers that callers give, checked where they come in."""

from __future__ import annotations

import ctypes
import math
import operator
from typing import SupportsFloat

from sparsyfed.edge_runtime.errors import InputError

MAX_BATCH_SIZE = 65535
MAX_THREADS = 16
MAX_ARENA_BYTES = 2**64 - 1
MAX_ROUND = 2**32 - 1


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int. Raises InputError unless it is a whole number from `low` to `high`."""
    # Whatever may be an index is one: NumPy's integers too. True is one only by accident.
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"got {name} {value!r}, wanted {low} to {high}, a whole number")
    number = operator.index(value)
    if not low <= number <= high:
        raise InputError(f"got {name} {value!r}, wanted {low} to {high}")
    return number


def check_batch_size(value: object) -> int:
    """The batch size of a session, 1 to MAX_BATCH_SIZE. Raises InputError."""
    return whole_number("batch size", value, 1, MAX_BATCH_SIZE)


def check_threads(value: object) -> int:
    """The threads of a session, 1 to MAX_THREADS. Raises InputError."""
    return whole_number("threads", value, 1, MAX_THREADS)


def check_arena_bytes(value: object) -> int:
    """A limit of memory, at least a byte. Raises InputError."""
    return whole_number("arena_bytes", value, 1, MAX_ARENA_BYTES)


def check_round(value: object) -> int:
    """The number of a round, which files hold in 32 bits. Raises InputError."""
    return whole_number("round", value, 0, MAX_ROUND)


def check_sparsity(value: object) -> float:
    """The share of positions that an update leaves out. Raises InputError."""
    if not isinstance(value, SupportsFloat) or not 0.0 <= float(value) < 1.0:
        raise InputError(f"got sparsity {value!r}, wanted at least 0 and less than 1")
    return float(value)


def require_rate(name: str, rate: float) -> None:
    """Raise InputError unless a rate is a number, finite in float32 and not negative."""
    try:
        finite = math.isfinite(ctypes.c_float(rate).value)
    except TypeError:
        finite = False
    if not finite or rate < 0:
        raise InputError(f"got {name} {rate!r}, wanted a finite float32, 0 or more")
