"""The targets of an export, one row each: who writes it, what that needs, and the engine that runs it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sparsyfed
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.state import State
from sparsyfed.export.manifest import manifest
from sparsyfed.export.to_onnx import to_onnx
from sparsyfed.export.to_torchscript import to_torchscript
from sparsyfed.export.training_artifact import TrainingArtifact


class Write(Protocol):
    """What writes a target."""

    def __call__(
        self, artifact: TrainingArtifact, path: Path, state: State, /, *, verify: bool
    ) -> dict[str, Any]:
        """Write a file or folder, through the gate if `verify`; return its manifest."""


@dataclass(frozen=True, slots=True)
class Target:
    """A form of the training step, and the engine that runs it."""

    name: str
    backend: str
    """Of `Session.open`."""
    write: Write
    file: str | None
    """The file that `write` and `Session.open` take, beside which others may lie; None for a folder."""
    packages: tuple[str, ...]
    """What writing and verifying it needs."""
    extra: str
    """The extra of sparsyfed-edge that brings them."""
    initial_values: frozenset[str] = frozenset()
    """Files with nothing but the values of the state, which a fleet sends by itself."""

    def missing(self) -> list[str]:
        """The packages that are not there."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def require(self) -> None:
        """Raise ConfigurationError where a package is not there."""
        missing = self.missing()
        if missing:
            raise ConfigurationError(
                f"target {self.name!r} needs {' and '.join(missing)}: "
                f"pip install 'sparsyfed-edge[{self.extra}]'"
            )

    def path(self, folder: Path) -> Path:
        """What `write` and `Session.open` take, where the target has this folder for itself."""
        return folder if self.file is None else folder / self.file


def _to_native(
    artifact: TrainingArtifact,
    path: Path,
    state: State,  # noqa: ARG001 - an artifact holds no values
    *,
    verify: bool,  # noqa: ARG001 - the core that trains is the one that the tests compare
) -> dict[str, Any]:
    artifact.save(path)
    record = manifest(artifact, "native", {"sparsyfed": sparsyfed.__version__})
    kinds = Counter(operation.kind.name.lower() for operation in artifact.native.operations)
    record["operators"] = dict(sorted(kinds.items()))
    return record


TARGETS = {
    target.name: target
    for target in (
        Target("native", "native", _to_native, "model.sfd", (), "export"),
        Target(
            "onnx",
            "onnxruntime",
            to_onnx,
            None,
            ("onnx", "onnxruntime"),
            "onnx",
            frozenset({"parameters.onnx", "parameters.bin"}),
        ),
        Target("torchscript", "torchscript", to_torchscript, "model.pt", ("torch",), "torchscript"),
    )
}
"""By name. Each backend but the native one has its engine in `edge_runtime.backends.ENGINES`."""


def find_targets(names: Sequence[str]) -> list[Target]:
    """The targets of these names, each once, native first. Raises ConfigurationError for an unknown one."""
    for name in names:
        if name not in TARGETS:
            raise ConfigurationError(f"got target {name!r}, wanted some of {', '.join(TARGETS)}")
    return [target for name, target in TARGETS.items() if name in names]
