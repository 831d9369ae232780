"""The folder of `export.to_onnx`, whose files are known by their hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sparsyfed.edge_runtime.errors import FormatError


class ExportFolder:
    """Reads files as the manifest has them. Raises FormatError where there is no manifest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            manifest = json.loads((path / "manifest.json").read_bytes())
            self.kernels: str = manifest.get("kernels", "stock")
            self._files = {record["name"]: record["sha256"] for record in manifest["files"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path} is no export for ONNX: manifest.json: {error}") from error

    def read(self, file: str) -> bytes:
        """The bytes of a file. Raises FormatError where it is not the one of the manifest."""
        try:
            data = (self._path / file).read_bytes()
        except OSError as error:
            raise FormatError(f"{self._path} lacks {file}: {error}") from error
        got = hashlib.sha256(data).hexdigest()
        if got != self._files.get(file):
            raise FormatError(
                f"{self._path / file} is not the file of the manifest: "
                f"got SHA-256 {got}, wanted {self._files.get(file)}: export again"
            )
        return data
