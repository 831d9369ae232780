"""Files that commands write, checked before the work whose result they get."""

import os
from pathlib import Path

from sparsyfed.edge_runtime.errors import ConfigurationError


def require_writable(option: str, path: Path) -> None:
    """Raise ConfigurationError now for a file that could not be written after hours of work."""
    if path.is_dir():
        raise ConfigurationError(f"{option} {path}: got a folder, wanted a file")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{option} {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{option} {path}: may not write in the folder {path.parent}")
