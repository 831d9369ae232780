"""The library with the core's operators for ONNX Runtime, which lies beside the core."""

from __future__ import annotations

from pathlib import Path

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.errors import BackendError

NAME = "libsparsyfed_onnxruntime.so"


def path() -> Path:
    """Where it is. Raises BackendError when it is not there.

    It finds the core by its name, which is loaded first.
    """
    place = Path(_native.library()._name).with_name(NAME)  # noqa: SLF001 - where ctypes found it
    if not place.exists():
        raise BackendError(
            f"the export calls the core's operators for ONNX Runtime, and {place} is not there: install the "
            "package again, it belongs beside libsfd.so; or export with kernels 'stock'"
        )
    return place
