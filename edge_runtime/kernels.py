"""Which kernels a session runs: the portable ones, or a vectorised set of this processor."""

from __future__ import annotations

import os

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.errors import InputError

KERNELS_VARIABLE = "SPARSYFED_KERNELS"


def available_kernels() -> tuple[str, ...]:
    """Names of the kernel sets that the library has and this processor runs; the best one is last."""
    core = _native.library()
    return tuple(
        name for name, kernels in _named_sets().items() if core.sfd_kernels_available(kernels)
    )


def find_kernels(name: str | None) -> _native.KernelSet:
    """The set of this name; of None, what SPARSYFED_KERNELS names, else the best one available.

    Raises InputError for an unknown set and for one that is not available.
    """
    wanted, subject = name, "kernels"
    if wanted is None:
        wanted, subject = os.environ.get(KERNELS_VARIABLE), KERNELS_VARIABLE
        if not wanted:
            return _native.KernelSet.AUTOMATIC
    available = available_kernels()
    if wanted not in available:
        raise InputError(f"got {subject} {wanted!r}, available here: {', '.join(available)}")
    return _named_sets()[wanted]


def kernels_name(kernels: _native.KernelSet) -> str:
    """Name of a set; of AUTOMATIC, of the set that it stands for here."""
    name: bytes = _native.library().sfd_kernels_name(kernels)
    return name.decode()


def _named_sets() -> dict[str, _native.KernelSet]:
    sets = (kernels for kernels in _native.KernelSet if kernels is not _native.KernelSet.AUTOMATIC)
    return {kernels_name(kernels): kernels for kernels in sets}
