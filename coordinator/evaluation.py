"""Held-out data and what a state makes of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.coordinator.config import EvaluationConfig
from sparsyfed.edge_runtime import Artifact, Session, State
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.format import Loss


@dataclass(frozen=True, slots=True)
class HeldOutData:
    """Examples (float32, examples first) and their labels or targets."""

    x: NDArray[np.float32]
    y: NDArray[Any]

    @classmethod
    def load(cls, config: EvaluationConfig, artifact: Artifact) -> "HeldOutData | None":
        """The data that the configuration names, or None if it names none. Raises ConfigurationError."""
        if config.x is None or config.y is None:
            return None
        x = _read(config.x, "x", (np.dtype(np.float32),))
        kinds = (np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float32))
        y = _read(config.y, "y", kinds)
        if len(x) == 0 or len(x) != len(y):
            raise ConfigurationError(
                f"[evaluation] x, y: got {len(x)} examples and {len(y)} targets, "
                "wanted the same number of both, at least one"
            )
        shape = artifact.tensors[0].shape
        if x.shape[1:] != shape:
            raise ConfigurationError(
                f"[evaluation] x: got examples of shape {x.shape[1:]}, the model wants {shape}"
            )
        _require_targets(y, artifact)
        return cls(x, y)

    def evaluate(
        self, artifact: Artifact, state: State, batch_size: int
    ) -> tuple[float, float | None]:
        """Mean loss and accuracy of a state, by the native runtime; accuracy is None for a regression."""
        with Session.open(artifact, state, batch_size=batch_size) as session:
            loss, correct = session.evaluate(self.x.data, self.y.data)
        return loss, None if correct is None else correct / len(self.x)


def _require_targets(y: NDArray[Any], artifact: Artifact) -> None:
    """Raise ConfigurationError here, not after the first round, for targets that the model can't have."""
    outputs = artifact.tensors[artifact.output].size
    if artifact.loss is Loss.CROSS_ENTROPY:
        fit = y.ndim == 1 and y.dtype != np.float32 and y.min() >= 0 and y.max() < outputs
        wanted = f"one label from 0 to {outputs - 1} an example"
    else:
        fit = y.dtype == np.float32 and y.size == len(y) * outputs
        wanted = f"{outputs} float32 values an example"
    if not fit:
        raise ConfigurationError(
            f"[evaluation] y: got {y.dtype} of shape {y.shape} from {y.min()} to {y.max()}, wanted {wanted}"
        )


def map_array(path: Path, key: str) -> NDArray[Any]:
    """The array of a `.npy` file, mapped; `key` of [evaluation] named it. Raises ConfigurationError."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ConfigurationError(f"[evaluation] {key}: {path}: {error.strerror}") from error
    except ValueError as error:
        # What NumPy says is for programmers, and of no help here.
        raise ConfigurationError(
            f"[evaluation] {key}: {path}: got another kind of file, or a part of one, "
            "wanted an array of numbers that numpy.save wrote (.npy)"
        ) from error


def _read(path: Path, key: str, kinds: tuple[np.dtype[Any], ...]) -> NDArray[Any]:
    data = map_array(path, key)
    if data.dtype not in kinds or data.ndim == 0:
        wanted = " or ".join(str(kind) for kind in kinds)
        got = data.dtype if data.ndim else "a single number"
        raise ConfigurationError(f"[evaluation] {key}: {path}: got {got}, wanted {wanted}")
    return np.array(data, order="C")
