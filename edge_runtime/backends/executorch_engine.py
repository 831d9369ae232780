"""The file of `export.to_executorch` in the ExecuTorch runtime. Needs executorch, which needs torch, and NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.backends.executorch_quiet import quiet, without_runtime_lines
from sparsyfed.edge_runtime.errors import FormatError

with quiet(), without_runtime_lines():
    from executorch.extension.pybindings import portable_lib

    from sparsyfed.edge_runtime.backends.executorch_library import load_operators

    portable_lib._threadpool_get_thread_count()  # noqa: SLF001 - makes the threads, while it is quiet

Floats = NDArray[np.float32]


def load(path: Path, threads: int) -> ExecutorchEngine:
    """Engine of an export. Raises FormatError where the file is none.

    ExecuTorch has one number of threads for the whole process: it is set to `threads`. The core's
    operators use one of them, and are compiled when they are wanted for the first time.
    """
    try:
        module = loaded(path)
        manifest = json.loads(_bytes(module, "manifest"))
        artifact = _bytes(module, "artifact")
        limit, kernels = int(manifest["batch"]["most"]), manifest["kernels"]
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is no export for ExecuTorch: {error}") from error
    if kernels == "sparsyfed":
        load_operators()
    if portable_lib._threadpool_get_thread_count() != threads:  # noqa: SLF001 - the only way to it
        with without_runtime_lines():
            portable_lib._unsafe_reset_threadpool(threads)  # noqa: SLF001 - likewise
    return ExecutorchEngine(module, manifest, Artifact.decode(artifact), limit, threads)


def loaded(path: Path) -> Any:
    """A program, ready to run. Raises RuntimeError for a file that is none.

    From a buffer it would not keep the buffer alive.
    """
    return portable_lib._load_for_executorch(str(path))  # noqa: SLF001 - the only way to it


def _bytes(module: Any, method: str) -> bytes:
    (tensor,) = module.run_method(method, [])
    return bytes(tensor.numpy().tobytes())


class ExecutorchEngine:
    """A loaded program, and the parameters between steps in memory of their own."""

    def __init__(
        self, module: Any, manifest: Mapping[str, Any], artifact: Artifact, limit: int, threads: int
    ) -> None:
        self.artifact = artifact
        self.batch_limit: int | None = limit
        self.threads = threads
        self.name = f"executorch {version('executorch')}, {manifest['kernels']} kernels"
        self._module = module
        shapes = {entry["name"]: entry["shape"] for entry in manifest["parameters"]}
        self._values = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self._trained = [
            entry["name"] for entry in manifest["parameters"] if entry["kind"] != "statistic"
        ]

    def load(self, values: Mapping[str, Floats]) -> None:
        """Take parameters, flat."""
        for name, value in values.items():
            self._values[name].view(-1).copy_(torch.from_numpy(value))

    def values(self) -> Mapping[str, Floats]:
        """The parameters, flat."""
        return {name: value.view(-1).numpy() for name, value in self._values.items()}

    def train(
        self, x: Floats, y: NDArray[Any], keep: NDArray[np.int64], rate: float, decay: float
    ) -> float:
        """Apply one step; return the loss, not finite where the step was not applied."""
        rates = [torch.tensor(value, dtype=torch.float32) for value in (rate, decay)]
        loss, *values = self._call("train", [*map(_tensor, (x, y, keep)), *rates])
        if not all(np.isfinite(value.numpy()).all() for value in values):
            return float("nan")
        if np.isfinite(float(loss)):
            for old, new in zip(self._values.values(), values, strict=True):
                old.copy_(new)
        return float(loss)

    def gradients(
        self, x: Floats, y: NDArray[Any], keep: NDArray[np.int64]
    ) -> tuple[float, Mapping[str, Floats]]:
        """Loss and gradients, flat."""
        loss, *values = self._call("gradients", list(map(_tensor, (x, y, keep))))
        gradients = dict(zip(self._trained, values, strict=False))  # statistics follow
        return float(loss), {name: value.view(-1).numpy() for name, value in gradients.items()}

    def evaluate(self, x: Floats, y: NDArray[Any]) -> tuple[float, int]:
        """Mean loss and right answers."""
        loss, *correct = self._call("evaluate", list(map(_tensor, (x, y))))
        return float(loss), int(correct[0]) if correct else 0

    def close(self) -> None:
        """Give memory back."""
        self._module, self._values = None, {}

    def _call(self, method: str, batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results of a method; they lie in memory that its next call writes to."""
        inputs = [*self._values.values(), *batch]
        return list(self._module.run_method(method, inputs, clone_outputs=False))


def _tensor(value: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(value if value.flags.writeable else value.copy())
