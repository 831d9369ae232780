"""The training artifacts of `export.to_onnx` in onnxruntime-training, and a program that serves them over pipes.

Needs that package and NumPy alone, nothing of ours: an exporter, whose own environment can't hold
onnxruntime-training, runs this file as a program of the environment that does.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnxruntime
from numpy.typing import NDArray

# The Python layer above it, onnxruntime.training, imports torch.
from onnxruntime.capi import _pybind_state as capi

if not hasattr(capi, "Module"):
    raise ImportError(
        f"there is onnxruntime {onnxruntime.__version__} instead of onnxruntime-training, and one "
        "environment can't hold both"
    )

Array = NDArray[Any]
Arrays = dict[str, Array]
DEVICE = capi.OrtDevice(capi.OrtDevice.cpu(), capi.OrtDevice.default_memory(), 0)
STATE, NEW_STATE, GRADIENT = "state.", "new_state.", "gradient."
CHECKPOINT = "checkpoint"
FILES = ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", CHECKPOINT)
TRAINED, STATISTIC = "trained.", "statistic."
"""Prefixes of the two kinds of parameters for `write_checkpoint`."""


class TrainingModule:
    """Training artifacts in use. Parameters are by the names that they have in the graphs, `state.<parameter>`."""

    def __init__(self, folder: Path, threads: int) -> None:
        options = capi.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # it warns of every optimizer model, its own as well
        paths = {name: str(folder / name) for name in FILES}
        state = capi.load_checkpoint(paths[CHECKPOINT])
        # Module and optimizer point into the checkpoint, which has to outlive them: attributes end
        # in the order in which they were set.
        self._module = capi.Module(
            paths["training_model.onnx"], state, paths["eval_model.onnx"], DEVICE, options
        )
        self._optimizer = capi.Optimizer(paths["optimizer_model.onnx"], state, DEVICE, options)
        self._state = state
        self._parameters = {name: state.get_parameter(name) for name in state.parameter_names()}
        self.values = self._stored()
        """A copy of all parameters."""

    def load(self, values: Mapping[str, Array]) -> None:
        """Take parameters, float32 of any shape with as many elements."""
        for name, value in values.items():
            shaped = np.ascontiguousarray(value).reshape(self.values[name].shape)
            self._put(name, shaped)
            self.values[name] = shaped.copy()

    def train(self, x: Array, y: Array, keep: Array, rate: float, decay: float) -> float:
        """Apply one step of SGD; return the loss, NaN where the step was not applied.

        x (batch, ...) is float32, y int64 (batch) or float32 (batch, ...), `keep` int64 with the
        count of each prunable weight.
        """
        loss = self._backward(x, y, keep, decay)
        self._optimizer.set_learning_rate(rate)
        self._optimizer.optimizer_step()
        values = self._stored()
        if not np.isfinite(loss) or not all(np.isfinite(value).all() for value in values.values()):
            self.load(self.values)
            return float("nan")
        self.values = values
        return loss

    def gradients(self, x: Array, y: Array, keep: Array) -> Arrays:
        """Return `loss`, `gradient.<parameter>` and `new_state.<statistic>`, with nothing changed."""
        results: Arrays = {"loss": np.array(self._backward(x, y, keep, 0.0), np.float32)}
        statistics = {}
        for name, parameter in self._parameters.items():
            plain = name.removeprefix(STATE)
            if parameter.requires_grad:
                results[GRADIENT + plain] = _copy(parameter.grad)
            else:
                results[NEW_STATE + plain] = _copy(parameter.data)
                statistics[name] = self.values[name]
        self.load(statistics)
        return results

    def evaluate(self, x: Array, y: Array) -> Arrays:
        """Return `loss` and, for cross-entropy, `correct`, in evaluation mode."""
        outputs = capi.OrtValueVector()
        self._module.eval_step([x, y], outputs)
        values = [_copy(output) for output in outputs]
        return dict(zip(self._module.output_names(False), values, strict=True))

    def _backward(self, x: Array, y: Array, keep: Array, decay: float) -> float:
        """Leave gradients, with those of the decay, and new running statistics in the checkpoint's memory."""
        outputs = capi.OrtValueVector()
        self._module.lazy_reset_grad()
        self._module.train_step([x, y, keep, np.array(decay, np.float32)], outputs)
        return float(outputs[0].numpy())

    def _stored(self) -> Arrays:
        return {name: _copy(parameter.data) for name, parameter in self._parameters.items()}

    def _put(self, name: str, value: Array) -> None:
        source = capi.OrtValue.ortvalue_from_numpy(value, DEVICE)
        self._parameters[name].copy_from(self._state, source)


def _copy(value: Any) -> Array:
    """The tensor of an OrtValue, whose `numpy()` is a view of memory that the engine writes again and frees."""
    copied: Array = value.numpy().copy()
    return copied


def write_checkpoint(folder: Path, parameters: Mapping[str, Array]) -> None:
    """Write the file `checkpoint`. Parameters are the bytes of ONNX TensorProtos as uint8, in the order of the graphs.

    Keys begin with `trained.` or `statistic.`.
    """
    kinds = [
        [value.tobytes() for key, value in parameters.items() if key.startswith(kind)]
        for kind in (TRAINED, STATISTIC)
    ]
    capi.save_checkpoint(*kinds, str(folder / CHECKPOINT), False)


class Service:
    """Answers requests on the artifacts in a folder, each with all parameters that it needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: TrainingModule | None = None
        self.actions: dict[str, Callable[[Arrays], Arrays]] = {
            "checkpoint": self._checkpoint,
            "values": lambda _: self._module().values,
            "train": self._train,
            "gradients": lambda inputs: self._at(inputs).gradients(*_batch(inputs)),
            "evaluate": lambda inputs: self._at(inputs).evaluate(inputs["x"], inputs["y"]),
        }

    def _checkpoint(self, parameters: Arrays) -> Arrays:
        write_checkpoint(self._folder, parameters)
        return {}

    def _train(self, inputs: Arrays) -> Arrays:
        module = self._at(inputs)
        rates = (float(inputs[name]) for name in ("learning_rate", "weight_decay"))
        loss = module.train(*_batch(inputs), *rates)
        values = {f"new_{name}": value for name, value in module.values.items()}
        return {"loss": np.array(loss, np.float32), **values}

    def _at(self, inputs: Arrays) -> TrainingModule:
        module = self._module()
        module.load({name: value for name, value in inputs.items() if name.startswith(STATE)})
        return module

    def _module(self) -> TrainingModule:
        if self._opened is None:
            self._opened = TrainingModule(self._folder, threads=1)
        return self._opened


def _batch(inputs: Arrays) -> tuple[Array, Array, Array]:
    return inputs["x"], inputs["y"], inputs["keep"]


def serve(folder: Path, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the requests end.

    First comes `ready VERSION`. A request is a line `ACTION BYTES` and an npz file of that many
    bytes, an answer a line `done BYTES` and an npz file, or `failed BYTES` and a text.
    """
    answers.write(f"ready {onnxruntime.__version__}\n".encode())
    answers.flush()
    service = Service(folder)
    while line := requests.readline(100):
        action, size = line.decode().split()
        try:
            with np.load(io.BytesIO(requests.read(int(size))), allow_pickle=False) as arrays:
                results = service.actions[action](dict(arrays))
            data = io.BytesIO()
            np.savez(data, **results)  # type: ignore[arg-type] # no name is that of its other argument
            word, body = "done", data.getvalue()
        except Exception as error:  # noqa: BLE001 - it is told to the process that asked
            word, body = "failed", f"{type(error).__name__}: {error}".encode()
        answers.write(f"{word} {len(body)}\n".encode() + body)
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
