"""This package in another Python, whose environment has an engine that excludes one of ours."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from tempfile import TemporaryDirectory

from sparsyfed.edge_runtime import _native

PACKAGES = ("sparsyfed", "paho")


@contextmanager
def environment_for(python: str) -> Iterator[dict[str, str]]:
    """What to add to the environment of a process of this Python, so that it finds our package.

    It finds the device's client of MQTT, too, and no other package of ours. Nothing is added for
    the Python that runs this.
    """
    if python == sys.executable:
        yield {}
        return
    with TemporaryDirectory(prefix="sparsyfed-packages-") as folder:
        for name in PACKAGES:
            found = util.find_spec(name)
            if found is not None and found.origin is not None:
                place = Path(found.origin).resolve().parent
                (Path(folder) / name).symlink_to(place, target_is_directory=True)
        yield {"PYTHONPATH": folder, "SPARSYFED_LIBRARY": str(_native.library()._name)}  # noqa: SLF001 - ctypes tells the path nowhere else
