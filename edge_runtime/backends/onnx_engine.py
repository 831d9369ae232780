"""The folder of `export.to_onnx` in ONNX Runtime. Needs onnxruntime and NumPy; never torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sparsyfed.edge_runtime import onnxruntime_library
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.backends.export_folder import ExportFolder
from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.edge_runtime.graph_names import GRADIENT, NEW_STATE, STATE

Floats = NDArray[np.float32]


def load(path: Path, threads: int) -> OnnxEngine:
    """Engine of an export. Raises FormatError where a file is not the one of the manifest."""
    return OnnxEngine(ExportFolder(path), threads)


def session(
    data: bytes, *, threads: int = 0, kernels: str = "stock"
) -> onnxruntime.InferenceSession:
    """Session of a model, with the core's operators where it was exported with `kernels` "sparsyfed"."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if kernels == "sparsyfed":
        options.register_custom_ops_library(str(onnxruntime_library.path()))
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


class OnnxEngine:
    """The graphs of an export, and the parameters between steps in memory of their own.

    A step reads one set of parameters and writes the other, then they change places: nothing is
    copied, and a step that diverged leaves the old ones.
    """

    def __init__(self, folder: ExportFolder, threads: int) -> None:
        self._folder = folder
        self.artifact = Artifact.decode(folder.read("model.sfd"))
        self.threads = threads
        self.batch_limit: int | None = None
        self.name = f"onnxruntime {onnxruntime.__version__}, {folder.kernels} kernels"
        self._session = cache(self._open)
        self._parameters = [parameter.name for parameter in self.artifact.parameters]
        inputs = {value.name: value.shape for value in self._session("train.onnx").get_inputs()}
        shapes = {name: inputs[STATE + name] for name in self._parameters}
        self._values, self._next = (
            {name: np.zeros(shape, np.float32) for name, shape in shapes.items()} for _ in range(2)
        )

    def load(self, values: Mapping[str, Floats]) -> None:
        """Take parameters, flat."""
        for name, value in values.items():
            self._values[name].reshape(-1)[:] = value

    def values(self) -> Mapping[str, Floats]:
        """The parameters, flat."""
        return {name: value.reshape(-1) for name, value in self._values.items()}

    def train(
        self, x: Floats, y: NDArray[Any], keep: NDArray[np.int64], rate: float, decay: float
    ) -> float:
        """Apply one step; return the loss, not finite where the step was not applied."""
        numbers = {"learning_rate": rate, "weight_decay": decay}
        rates = {name: np.array(value, np.float32) for name, value in numbers.items()}
        binding = self._bound("train.onnx", {"x": x, "y": y, "keep": keep, **rates})
        for name, value in self._next.items():
            place = value.ctypes.data
            binding.bind_output(NEW_STATE + name, "cpu", 0, np.float32, value.shape, place)
        binding.bind_output("loss")
        self._session("train.onnx").run_with_iobinding(binding)
        loss = float(binding.get_outputs()[-1].numpy())
        if not all(np.isfinite(value).all() for value in self._next.values()):
            return float("nan")
        if np.isfinite(loss):
            self._values, self._next = self._next, self._values
        return loss

    def gradients(
        self, x: Floats, y: NDArray[Any], keep: NDArray[np.int64]
    ) -> tuple[float, Mapping[str, Floats]]:
        """Loss and gradients, flat."""
        results = self._run("gradients.onnx", {"x": x, "y": y, "keep": keep})
        gradients = {
            name.removeprefix(GRADIENT): value.reshape(-1)
            for name, value in results.items()
            if name.startswith(GRADIENT)
        }
        return float(results["loss"]), gradients

    def evaluate(self, x: Floats, y: NDArray[Any]) -> tuple[float, int]:
        """Mean loss and right answers."""
        results = self._run("evaluate.onnx", {"x": x, "y": y})
        return float(results["loss"]), int(results.get("correct", 0))

    def close(self) -> None:
        """Give memory back."""
        self._session.cache_clear()
        self._values, self._next = {}, {}

    def _run(self, file: str, batch: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        session, binding = self._session(file), self._bound(file, batch)
        names = [value.name for value in session.get_outputs()]
        for name in names:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    def _bound(self, file: str, batch: Mapping[str, Any]) -> onnxruntime.IOBinding:
        binding = self._session(file).io_binding()
        for name, value in batch.items():
            binding.bind_cpu_input(name, value)
        for name, value in self._values.items():
            binding.bind_cpu_input(STATE + name, value)
        return binding

    def _open(self, file: str) -> onnxruntime.InferenceSession:
        data = self._folder.read(file)
        try:
            return session(data, threads=self.threads, kernels=self._folder.kernels)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"{self.name} does not take {file}: {error}") from error
