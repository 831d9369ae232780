"""How a session runs, as the core takes it."""

from __future__ import annotations

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.arguments import check_arena_bytes, check_threads
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.kernels import find_kernels

MEMORY_CHOICES = ("fast", "small", "layerwise")
NO_LIMIT = 0


def session_options(
    kernels: str | None, threads: int, memory: str, arena_bytes: int | None
) -> _native.Options:
    """Options of the core. Raises InputError for a value that is out of range."""
    if memory not in MEMORY_CHOICES:
        raise InputError(f"got memory {memory!r}, wanted one of: {', '.join(MEMORY_CHOICES)}")
    return _native.Options(
        kernels=find_kernels(kernels),
        threads=check_threads(threads),
        memory=_native.MemoryChoice[memory.upper()],
        arena_bytes=NO_LIMIT if arena_bytes is None else check_arena_bytes(arena_bytes),
    )
