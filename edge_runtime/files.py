"""Writing a file so that a reader finds the old bytes or the new ones, never a part."""

import os
import threading
from pathlib import Path


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to a file beside `path`, flush it to the disk, rename it to `path`."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
