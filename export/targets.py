"""The targets of an export, one row each: who writes it, what that needs, and the engine that runs it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sparsyfed
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.state import State
from sparsyfed.export.core_kernels import KERNELS
from sparsyfed.export.manifest import manifest
from sparsyfed.export.to_executorch import SMALLEST_LIMIT, to_executorch
from sparsyfed.export.to_onnx import to_onnx
from sparsyfed.export.to_torchscript import to_torchscript
from sparsyfed.export.training_artifact import TrainingArtifact
from sparsyfed.export.training_worker import PYTHON_VARIABLE


class Write(Protocol):
    """What writes a target."""

    def __call__(
        self,
        artifact: TrainingArtifact,
        path: Path,
        state: State,
        /,
        *,
        batch_size: int,
        kernels: str,
        verify: bool,
    ) -> dict[str, Any]:
        """Write a file or folder, through the gate if `verify`; return its manifest.

        `kernels` is one of `Target.kernels`. Where the size of batches is limited when the file is written, it is for
        `batch_size` examples at least.
        """


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
    kept_back: frozenset[str] = frozenset()
    """Files that a device of a fleet does not get: first values, which come as the state, and what it does not open."""
    kernels: tuple[str, ...] = ("stock",)
    """Whose kernels it can be written with, the usual ones first: ours, or the engine's own."""
    python_variable: str | None = None
    """The environment variable that names the Python with the engine, where it can't share one with the others."""

    @property
    def python(self) -> str:
        """The Python that has the engine."""
        return os.environ.get(self.python_variable or "", sys.executable)

    def kernels_for(self, asked: str | None) -> str:
        """The kernels that were asked for, where there is a choice of them; else the usual ones."""
        return asked if asked in self.kernels else self.kernels[0]

    def missing(self) -> list[str]:
        """What is not there: packages, or the variable that names the Python with the engine."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if self.python_variable and self.python_variable not in os.environ:
            missing.append(self.python_variable)
        return missing

    def require(self) -> None:
        """Raise ConfigurationError where something is not there."""
        missing = self.missing()
        if missing and missing[0] == self.python_variable:
            raise ConfigurationError(
                f"target {self.name!r}: set {self.python_variable} to the Python of an environment with "
                f"sparsyfed-edge[{self.backend}]"
            )
        if missing:
            raise ConfigurationError(
                f"target {self.name!r} needs {' and '.join(missing)}: "
                f"pip install 'sparsyfed-edge[{self.extra}]'"
            )

    def path(self, folder: Path) -> Path:
        """What `write` and `Session.open` take, where the target has this folder for itself."""
        return folder if self.file is None else folder / self.file


def _native(artifact: TrainingArtifact, path: Path, _: State, **__: object) -> dict[str, Any]:
    """The artifact; the core that trains it is the one that the tests compare with PyTorch."""
    artifact.save(path)
    record = manifest(artifact, "native", {"sparsyfed": sparsyfed.__version__})
    kinds = Counter(operation.kind.name.lower() for operation in artifact.native.operations)
    record["operators"] = dict(sorted(kinds.items()))
    return record


def _onnx(
    artifact: TrainingArtifact, path: Path, state: State, *, kernels: str, verify: bool, **_: object
) -> dict[str, Any]:
    return to_onnx(artifact, path, state, kernels=kernels, verify=verify)


def _onnx_training(
    artifact: TrainingArtifact, path: Path, state: State, *, verify: bool, **_: object
) -> dict[str, Any]:
    record = to_onnx(artifact, path, state, training=True, verify=verify)
    return record | {"verified": record["verified_training"]}


def _executorch(
    artifact: TrainingArtifact,
    path: Path,
    state: State,
    *,
    batch_size: int,
    kernels: str,
    verify: bool,
) -> dict[str, Any]:
    limit = max(batch_size, SMALLEST_LIMIT)
    return to_executorch(artifact, path, state, kernels=kernels, batch_size=limit, verify=verify)


def _torchscript(
    artifact: TrainingArtifact, path: Path, state: State, *, verify: bool, **_: object
) -> dict[str, Any]:
    return to_torchscript(artifact, path, state, verify=verify)


_ONNX = ("onnx", "onnxruntime")
_STOCK_FIRST, _OWN_FIRST = ("stock", "sparsyfed"), ("sparsyfed", "stock")
_ONNX_VALUES = frozenset({"parameters.onnx", "parameters.bin"})
_PLAIN_ONNX = frozenset({"train.onnx", "gradients.onnx", "evaluate.onnx"})

TARGETS = {
    target.name: target
    for target in (
        Target("native", "native", _native, "model.sfd", (), "export", kernels=("sparsyfed",)),
        # Stock kernels: what makes ONNX worth choosing is that any ONNX Runtime takes the files as they are.
        Target(
            "onnx", "onnxruntime", _onnx, None, _ONNX, "onnx", _ONNX_VALUES, kernels=_STOCK_FIRST
        ),
        Target(
            "onnx-training",
            "onnxruntime-training",
            _onnx_training,
            None,
            _ONNX,
            "onnx",
            _ONNX_VALUES | _PLAIN_ONNX,
            python_variable=PYTHON_VARIABLE,
        ),
        # Our own: with its stock kernels a step takes many times that of PyTorch.
        Target(
            *("executorch", "executorch", _executorch, "model.pte", ("executorch",), "executorch"),
            kernels=_OWN_FIRST,
        ),
        Target("torchscript", "torchscript", _torchscript, "model.pt", ("torch",), "torchscript"),
    )
}
"""By name. Each backend but the native one has its engine in `edge_runtime.backends.ENGINES`."""


def find_targets(names: Sequence[str]) -> list[Target]:
    """The targets of these names, each once, native first. Raises ConfigurationError for an unknown one."""
    for name in names:
        if name not in TARGETS:
            raise ConfigurationError(f"got target {name!r}, wanted some of {', '.join(TARGETS)}")
    return [target for name, target in TARGETS.items() if name in names]


def check_kernels(targets: Sequence[Target], asked: str | None) -> None:
    """Raise ConfigurationError for kernels that no target has, or for targets that have no choice of them."""
    if asked is not None and asked not in KERNELS:
        raise ConfigurationError(f"got kernels {asked!r}, wanted one of {', '.join(KERNELS)}")
    if asked is not None and all(len(target.kernels) == 1 for target in targets):
        able = ", ".join(name for name, target in TARGETS.items() if len(target.kernels) > 1)
        got = ", ".join(target.name for target in targets)
        raise ConfigurationError(
            f"got kernels {asked!r} for {got}, which have no choice: {able} have one"
        )
