"""The figures of the keyword study: one JSON file, written anew after each of them, so that none is lost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.files import write_atomic

Kind = Literal["tuning", "runs", "boards", "mixed"]
KINDS: tuple[Kind, ...] = ("tuning", "runs", "boards", "mixed")
Figure = Mapping[str, Any]


class Figures:
    """Figures by kind, each known by its settings: the same settings are measured once.

    Raises FormatError for a file that is no figures of this study.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, Any] = {kind: [] for kind in KINDS}
        if path.exists():
            try:
                read = json.loads(path.read_text(encoding="utf-8"))
                self.content |= {str(key): value for key, value in read.items()}
            except (ValueError, AttributeError) as error:
                raise FormatError(f"{path}: no figures of this study: {error}") from error

    def find(self, kind: Kind, settings: Figure) -> Figure | None:
        """The figure with these settings, or None."""
        plain = json.loads(json.dumps(settings))
        return next((f for f in self.content[kind] if f["settings"] == plain), None)

    def put(self, kind: Kind, settings: Figure, found: Figure) -> None:
        """Keep a figure, in the place of an older one with these settings."""
        plain = json.loads(json.dumps(settings))
        others = [f for f in self.content[kind] if f["settings"] != plain]
        self.content[kind] = [*others, {"settings": plain, **found}]
        self._write()

    def describe(self, about: Figure) -> None:
        """Keep how the figures were made."""
        self.content |= about
        self._write()

    def _write(self) -> None:
        write_atomic(self._path, (json.dumps(self.content, indent=1) + "\n").encode())
