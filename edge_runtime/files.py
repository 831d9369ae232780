"""Files: written so that a reader finds the old bytes or the new ones, named where they are wrong."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sparsyfed.edge_runtime.errors import FormatError

Content = TypeVar("Content")


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to a file beside `path`, flush it to the disk, rename it to `path`.

    An OSError names `path`, not the file beside it.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        error.filename, error.filename2 = str(target), None
        raise


def load_file(path: str | Path, decode: Callable[[bytes], Content]) -> Content:
    """What `decode` makes of the bytes of a file; a FormatError of it names the file as well."""
    try:
        return decode(Path(path).read_bytes())
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
