"""The training artifacts of `export.to_onnx` in onnxruntime-training. Needs that and NumPy; never torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.backends.export_folder import ExportFolder
from sparsyfed.edge_runtime.backends.onnx_training_module import (
    FILES,
    GRADIENT,
    STATE,
    TrainingModule,
)

Floats = NDArray[np.float32]


def load(path: Path, threads: int) -> OnnxTrainingEngine:
    """Engine of an export. Raises FormatError where a file is not the one of the manifest."""
    folder = ExportFolder(path)
    artifact = Artifact.decode(folder.read("model.sfd"))
    for name in FILES:
        folder.read(name)  # the engine takes paths, but no file that has changed
    return OnnxTrainingEngine(path, artifact, threads)


class OnnxTrainingEngine:
    """Parameters lie in the checkpoint's memory, where the engine changes them."""

    def __init__(self, path: Path, artifact: Artifact, threads: int) -> None:
        self.artifact = artifact
        self.threads = threads
        self.batch_limit: int | None = None
        self.name = f"onnxruntime-training {onnxruntime.__version__}"
        self._module: TrainingModule | None = TrainingModule(path, threads)

    def load(self, values: Mapping[str, Floats]) -> None:
        """Take parameters, flat."""
        self._opened().load({STATE + name: value for name, value in values.items()})

    def values(self) -> Mapping[str, Floats]:
        """The parameters, flat."""
        return {
            name.removeprefix(STATE): value.reshape(-1)
            for name, value in self._opened().values.items()
        }

    def train(
        self, x: Floats, y: NDArray[Any], keep: NDArray[np.int64], rate: float, decay: float
    ) -> float:
        """Apply one step; return the loss, NaN where the step was not applied."""
        return self._opened().train(x, y, keep, rate, decay)

    def gradients(
        self, x: Floats, y: NDArray[Any], keep: NDArray[np.int64]
    ) -> tuple[float, Mapping[str, Floats]]:
        """Loss and gradients, flat."""
        results = self._opened().gradients(x, y, keep)
        gradients = {
            name.removeprefix(GRADIENT): value.reshape(-1)
            for name, value in results.items()
            if name.startswith(GRADIENT)
        }
        return float(results["loss"]), gradients

    def evaluate(self, x: Floats, y: NDArray[Any]) -> tuple[float, int]:
        """Mean loss and right answers."""
        results = self._opened().evaluate(x, y)
        return float(results["loss"]), int(results.get("correct", 0))

    def close(self) -> None:
        """Give memory back."""
        self._module = None

    def _opened(self) -> TrainingModule:
        assert self._module is not None  # the session asks no more once it is closed
        return self._module
