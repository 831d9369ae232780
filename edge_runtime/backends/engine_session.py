"""A session on an engine that holds its parameters dense: what all such engines share."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime.arguments import check_round, require_rate
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.batches import Batch, check_batch, divergence, refuse_values
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.errors import BackendError, DivergedError, InputError, SparsyFedError
from sparsyfed.edge_runtime.format import Loss, ParameterKind
from sparsyfed.edge_runtime.kept_inputs import kept_inputs
from sparsyfed.edge_runtime.process_memory import peak_rss_bytes
from sparsyfed.edge_runtime.sparse_arrays import entry_positions, largest, selected
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State
from sparsyfed.edge_runtime.update import SparseUpdate

if TYPE_CHECKING:
    from sparsyfed.edge_runtime.buffers import BufferLike

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class Engine(Protocol):
    """What runs the exported graphs. Parameters are by name and dense, v for prunable weights."""

    artifact: Artifact
    name: str
    threads: int
    batch_limit: int | None
    """The most examples that the export takes; None: any number."""

    def load(self, values: Mapping[str, Floats]) -> None:
        """Take parameters, flat."""

    def values(self) -> Mapping[str, Floats]:
        """The parameters, flat, until the next step."""

    def train(self, x: Floats, y: NDArray[Any], keep: Integers, rate: float, decay: float) -> float:
        """Apply one step; return the loss, not finite where the step was not applied."""

    def gradients(
        self, x: Floats, y: NDArray[Any], keep: Integers
    ) -> tuple[float, Mapping[str, Floats]]:
        """Loss and gradients, flat."""

    def evaluate(self, x: Floats, y: NDArray[Any]) -> tuple[float, int]:
        """Mean loss and right answers (0 for mean squared error) in evaluation mode."""

    def close(self) -> None:
        """Give memory back."""


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turn what an engine raises into BackendError: engines have no common error of their own.

    An export may come from a network, and be one that only the engine itself finds to be wrong. Errors of the project
    and of the system are left as they are.
    """
    try:
        yield
    except (SparsyFedError, OSError, MemoryError):
        raise
    except Exception as error:
        raise BackendError(f"{what}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Memory of an engine that plans its own, in bytes.

    `process_peak_bytes` is the most that the process has had resident, interpreter and engine
    included, since it began; None where the system does not tell.
    """

    process_peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Steps applied. These engines do not count multiply-adds: None."""

    steps: int
    forward: None = None
    d_input: None = None
    d_weight: None = None
    recomputed: None = None
    evaluation: None = None


class EngineSession:
    """A model in training on an engine: the methods of `Session`, with the same meaning and errors.

    Weights, gradients and saved inputs are dense there: pruned weights cost memory like others, and
    time too, unless the export calls the core's kernels. They stay exactly zero all the same.

    Whatever else the engine itself finds wrong, each method raises as BackendError.
    """

    def __init__(self, engine: Engine, state: State, batch_size: int) -> None:
        if engine.batch_limit is not None and batch_size > engine.batch_limit:
            raise InputError(
                f"got batch size {batch_size}, this export takes {engine.batch_limit} at most: "
                "export it with a larger one"
            )
        self.artifact = engine.artifact
        self.batch_size = batch_size
        self.kernels = engine.name
        """Name and version of the engine."""
        self.threads = engine.threads
        """Threads that compute, with the one that calls."""
        self._engine: Engine | None = engine
        self._state = state
        self._places = {
            t.name: entry_positions(t) for t in state.tensors if isinstance(t, SparseTensor)
        }
        self._steps = 0
        with self._engine_at_work() as opened:
            opened.load({tensor.name: self._dense(tensor) for tensor in state.tensors})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the engine back. Any use but closing again raises InputError then."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None

    def step(
        self,
        x: BufferLike,
        y: BufferLike,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
    ) -> float:
        """Mean loss of the batch, after which one SGD step is applied; see `Session.step`."""
        require_rate("learning_rate", learning_rate)
        require_rate("weight_decay", weight_decay)
        with self._engine_at_work() as engine:
            batch = check_batch(self.artifact, x, y, self.batch_size)
            arrays, keep = self._arrays(batch, "step"), self._keep(batch.examples)
            loss = engine.train(*arrays, keep, learning_rate, weight_decay)
        if not math.isfinite(loss):
            raise DivergedError(divergence("step"))
        self._steps += 1
        return loss

    def gradients(self, x: BufferLike, y: BufferLike) -> tuple[float, dict[str, array[float]]]:
        """Mean loss of the batch in training mode and all gradients; see `Session.gradients`."""
        with self._engine_at_work() as engine:
            batch = check_batch(self.artifact, x, y, self.batch_size)
            arrays, keep = self._arrays(batch, "gradients"), self._keep(batch.examples)
            loss, dense = engine.gradients(*arrays, keep)
            if not math.isfinite(loss) or not all(np.isfinite(g).all() for g in dense.values()):
                raise DivergedError(divergence("gradients"))
            return loss, {
                parameter.name: self._stored(parameter.name, dense[parameter.name])
                for parameter in self.artifact.parameters
                if parameter.kind is not ParameterKind.STATISTIC
            }

    def evaluate(self, x: BufferLike, y: BufferLike) -> tuple[float, int | None]:
        """Mean loss and number of right answers in evaluation mode; see `Session.evaluate`."""
        total, correct = 0.0, 0
        with self._engine_at_work() as engine:
            batch = check_batch(self.artifact, x, y)
            inputs, targets = self._arrays(batch, "evaluation")
            for start in range(0, batch.examples, self.batch_size):
                part = slice(start, start + self.batch_size)
                loss, right = engine.evaluate(inputs[part], targets[part])
                total += loss * len(inputs[part])
                correct += right
        if not math.isfinite(total):
            raise DivergedError(divergence("evaluation"))
        squared = self.artifact.loss is Loss.MEAN_SQUARED_ERROR
        return total / batch.examples, None if squared else correct

    def update(
        self,
        sparsity: float,
        budget: str | Mapping[str, int] = "global",
        round: int | None = None,
    ) -> SparseUpdate:
        """The largest |v|, as `budget.keep_counts` says, and the dense tensors; see `Session.update`."""
        number = self._state.round if round is None else check_round(round)
        counts = keep_counts(self.artifact.parameters, sparsity, budget)
        state = self.state()
        weights = [tensor for tensor in state.tensors if isinstance(tensor, SparseTensor)]
        if len(counts) == 1:
            groups, kept = [weights], counts
        else:
            groups = [[weight] for weight in weights]
            kept = [counts[index] for index in self.artifact.prunable]
        pruned = {}
        for group, count in zip(groups, kept, strict=True):
            values = np.concatenate([np.asarray(tensor.value, np.float32) for tensor in group])
            chosen = largest(values, count)
            ends = itertools.accumulate(tensor.count for tensor in group)
            for tensor, end in zip(group, ends, strict=True):
                part = slice(end - tensor.count, end)
                pruned[tensor.name] = selected(tensor, values[part], chosen[part])
        tensors = tuple(pruned.get(tensor.name, tensor) for tensor in state.tensors)
        return SparseUpdate(tensors, number, state.support_id)

    def state(self) -> State:
        """Copy of the model as trained so far, with support and round of the state it began as."""
        with self._engine_at_work() as engine:
            dense = engine.values()
            return self._state.with_values(
                [self._stored(tensor.name, dense[tensor.name]) for tensor in self._state.tensors]
            )

    @property
    def memory(self) -> EngineMemory:
        """Memory as measured until now."""
        self._open_engine()
        return EngineMemory(peak_rss_bytes())

    @property
    def counters(self) -> EngineCounters:
        """Work done since the session was opened, as far as the engine tells."""
        self._open_engine()
        return EngineCounters(self._steps)

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise InputError("the session is closed: open another one")
        return self._engine

    @contextmanager
    def _engine_at_work(self) -> Iterator[Engine]:
        engine = self._open_engine()
        with engine_errors(engine.name):
            yield engine

    def _keep(self, examples: int) -> Integers:
        return np.array(kept_inputs(self.artifact, self._state, examples), np.int64)

    def _arrays(self, batch: Batch, action: str) -> tuple[Floats, NDArray[Any]]:
        """Inputs and targets in the model's shapes. Raises InputError for values it can't take."""
        shape = (batch.examples, *self.artifact.tensors[0].shape)
        x = np.frombuffer(batch.x, np.float32).reshape(shape)
        output = self.artifact.tensors[self.artifact.output]
        if self.artifact.loss is Loss.MEAN_SQUARED_ERROR:
            y = np.frombuffer(batch.y, np.float32).reshape(batch.examples, *output.shape)
            good = bool(np.isfinite(y).all())
        else:
            y = np.asarray(batch.y).astype(np.int64)
            good = bool(((y >= 0) & (y < output.size)).all())
        if not good or not np.isfinite(x).all():
            refuse_values(self.artifact, batch, action)
        return x, y

    def _dense(self, tensor: SparseTensor | DenseTensor) -> Floats:
        values = np.asarray(tensor.value, np.float32)
        if isinstance(tensor, DenseTensor):
            return values
        dense = np.zeros(tensor.rows * tensor.columns, np.float32)
        dense[self._places[tensor.name]] = values
        return dense

    def _stored(self, name: str, dense: Floats) -> array[float]:
        places = self._places.get(name)
        values = dense if places is None else dense[places]
        return array("f", values.tobytes())
