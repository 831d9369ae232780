"""How a session runs, as the core takes it."""

from __future__ import annotations

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.kernels import find_kernels

MAX_THREADS = 16


def session_options(kernels: str | None, threads: int) -> _native.Options:
    """Options of the core. Raises InputError for a value that is out of range."""
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:  # True is an int too
        raise InputError(f"got threads {threads!r}, wanted 1 to {MAX_THREADS}")
    return _native.Options(kernels=find_kernels(kernels), threads=threads)
