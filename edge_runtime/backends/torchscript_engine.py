"""The file of `export.to_torchscript` in libtorch, by way of its Python package. Needs torch and NumPy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.graph_names import GRADIENT

Floats = NDArray[np.float32]


def load(path: Path, threads: int) -> TorchScriptEngine:
    """Engine of an export. Raises FormatError where the file is none."""
    extra: dict[str, Any] = {"model.sfd": ""}
    try:
        with warnings.catch_warnings():
            # It is deprecated for torch.export, which has no form that libtorch can train.
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
            module = torch.jit.load(path, _extra_files=extra)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, ValueError) as error:
        raise FormatError(f"{path} is no TorchScript file: {error}") from error
    if not extra["model.sfd"] or not hasattr(module, "train_step"):
        raise FormatError(f"{path} is TorchScript, but no training step: export it again")
    return TorchScriptEngine(module, Artifact.decode(extra["model.sfd"]), threads)


@contextmanager
def process_threads(threads: int) -> Iterator[None]:
    """PyTorch has one number of threads for the whole process: for a while it is `threads`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchScriptEngine:
    """A loaded training step, whose parameters lie in the module."""

    def __init__(self, module: Any, artifact: Artifact, threads: int) -> None:
        self.artifact = artifact
        self.threads = threads
        self.batch_limit: int | None = None
        self.name = f"torchscript {torch.__version__}"
        self._module = module
        self._values: dict[str, torch.Tensor] = dict(module.state)

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
        """Apply one step; return the loss, NaN where the step was not applied."""
        return float(self._call(self._module.train_step, x, y, keep, rate, decay))

    def gradients(
        self, x: Floats, y: NDArray[Any], keep: NDArray[np.int64]
    ) -> tuple[float, Mapping[str, Floats]]:
        """Loss and gradients, flat."""
        results = self._call(self._module.gradients, x, y, keep)
        gradients = {
            name.removeprefix(GRADIENT): value.reshape(-1).numpy()
            for name, value in results.items()
            if name.startswith(GRADIENT)
        }
        return float(results["loss"]), gradients

    def evaluate(self, x: Floats, y: NDArray[Any]) -> tuple[float, int]:
        """Mean loss and right answers."""
        results = self._call(self._module.evaluate, x, y)
        return float(results["loss"]), int(results.get("correct", 0))

    def close(self) -> None:
        """Give memory back."""
        self._module, self._values = None, {}

    def _call(self, method: Any, *arguments: Any) -> Any:
        tensors = [
            torch.from_numpy(value.copy() if not value.flags.writeable else value)
            if isinstance(value, np.ndarray)
            else value
            for value in arguments
        ]
        with process_threads(self.threads):
            return method(*tensors)
