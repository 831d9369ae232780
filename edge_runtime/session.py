"""Training a sparse model in one arena of planned size."""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, overload

from sparsyfed.edge_runtime import _native, container
from sparsyfed.edge_runtime.arguments import (
    check_batch_size,
    check_round,
    check_threads,
    require_rate,
)
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.backends import ENGINES, open_engine
from sparsyfed.edge_runtime.batches import Batch, check_batch, divergence, refuse_values
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.container import column_type
from sparsyfed.edge_runtime.errors import ArenaError, BackendError, DivergedError, InputError
from sparsyfed.edge_runtime.format import CONTAINER_HEADER, Content, Loss, ParameterKind
from sparsyfed.edge_runtime.kernels import kernels_name
from sparsyfed.edge_runtime.measurements import Counters, MeasuredMemory
from sparsyfed.edge_runtime.options import session_options
from sparsyfed.edge_runtime.plan import planned_workspace
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State, encoded_state
from sparsyfed.edge_runtime.update import SparseUpdate

if TYPE_CHECKING:
    from sparsyfed.edge_runtime.backends.engine_session import EngineSession
    from sparsyfed.edge_runtime.buffers import BufferLike

BACKENDS = ("native", *ENGINES)
DEFAULT_ARENA_LIMIT = 1 << 30


class Session:
    """A model in training. Open one with `Session.open`; one caller at a time may use it.

    After an exception from any method the model is as it was before the call, and the session goes
    on; but with `memory="layerwise"` a step that diverges may leave no model, and all that follows
    raises DivergedError.
    """

    def __init__(
        self,
        artifact: Artifact,
        state: bytes,
        batch_size: int,
        options: _native.Options,
        *,
        workspace: _native.Memory,
        arena_bytes: int,
    ) -> None:
        self.artifact = artifact
        self.kernels = kernels_name(options.kernels)
        """Name of the kernel set in use."""
        self.threads = int(options.threads)
        """Threads that compute, with the one that calls."""
        self.batch_size = batch_size
        self._is_layerwise = options.memory == _native.MemoryChoice.LAYERWISE
        self._core = _native.library()
        self._round = int(CONTAINER_HEADER.unpack_from(state)[3])
        self._arena = _native.Memory(arena_bytes)
        self._core.sfd_arena_paint(self._arena.address, arena_bytes)
        self._handle: ctypes.c_void_p | None = ctypes.c_void_p()
        self._loss = ctypes.c_float()
        problem = _native.Problem()
        code = self._core.sfd_open(
            *(workspace.address, _native.address(memoryview(state)), len(state)),
            *(self._arena.address, arena_bytes, self._handle, problem),
        )
        # Also for a session that is dropped open: its threads must not outlive its arena.
        self._end = weakref.finalize(self, end_session, self._core, self._handle, self._arena)
        if code:
            self.close()
            _native.raise_error(code, "session", problem)

    @overload
    @classmethod
    def open(
        cls,
        artifact: str | Path | bytes | Artifact,
        state: State | bytes,
        batch_size: int = ...,
        backend: Literal["native"] = ...,
        arena_bytes: int | None = ...,
        *,
        kernels: str | None = ...,
        threads: int = ...,
        memory: str = ...,
    ) -> Session: ...

    @overload
    @classmethod
    def open(
        cls,
        artifact: str | Path | bytes | Artifact,
        state: State | bytes,
        batch_size: int = ...,
        backend: str = ...,
        *,
        threads: int = ...,
    ) -> EngineSession: ...

    @classmethod
    def open(
        cls,
        artifact: str | Path | bytes | Artifact,
        state: State | bytes,
        batch_size: int = 16,
        backend: str = "native",
        arena_bytes: int | None = None,
        *,
        kernels: str | None = None,
        threads: int = 1,
        memory: str = "fast",
    ) -> Session | EngineSession:
        """Session for training `state` with batches of up to `batch_size` examples.

        The arena has the planned size, DEFAULT_ARENA_LIMIT at most: an artifact from elsewhere
        can't take more without being asked to. With `arena_bytes` that is the limit, and of all plans
        that are found the one is taken that fits with the least work.

        `memory` says which activations are kept for the backward, and which are computed again:
        "fast" computes again what costs little, "small" takes the least memory that is found for
        about one more forward. Gradients are the same to the bit. "layerwise" never takes more than that, and
        mostly less, for up to two forwards: a step changes each layer, to the same bits, as soon as its
        gradients are there, which then go. So there are none to ask for.

        `kernels` names the kernel set: "portable", which gives the same bits on every machine, or
        the vectorised "sse2", "avx2", "avx512" or "neon", which agree with it within rounding.
        None takes the one that the environment variable SPARSYFED_KERNELS names, or else the best
        one that library and processor have.

        `threads` is how many threads compute, with the calling one, 1 to 16. The vectorised kernels
        share their work out; the result is the same to the bit. `close` ends them. With "torchscript"
        it is PyTorch's number for the whole process while a method runs, and afterwards what it was.

        `backend` names the engine: "native" is the C core; "onnxruntime" takes the folder of
        `export.to_onnx`, "onnxruntime-training" one that was written with `training`, "torchscript"
        and "executorch" the file of the target of that name in the place of the artifact, and no
        arguments but `threads` besides. Their sessions have the same methods; what the engine does
        not tell is None (see `backends`).

        Raises FormatError for a malformed artifact, export or state, OSError for a path that can't
        be read, MismatchError when they don't belong together, ArenaError when the arena is smaller
        than planned or the system does not give it, BackendError when the backend is not there,
        InputError for an argument of another type or out of range, and for kernels or threads that
        are not available.
        """
        if backend not in BACKENDS:
            raise BackendError(f"got backend {backend!r}, available: {', '.join(BACKENDS)}")
        batch_size, threads = check_batch_size(batch_size), check_threads(threads)
        if backend != "native":
            if not isinstance(artifact, str | Path):
                raise InputError(f"backend {backend!r} takes the path of an export")
            if arena_bytes is not None or kernels is not None or memory != "fast":
                raise InputError(
                    f"backend {backend!r} has memory and kernels of its own: "
                    "leave arena_bytes, kernels and memory out"
                )
            return open_engine(backend, artifact, state, batch_size, threads)
        structure = Artifact.of(artifact)
        encoded = encoded_state(state)
        options = session_options(kernels, threads, memory, arena_bytes)
        with planned_workspace(structure, encoded, batch_size, options) as (workspace, planned):
            wanted = planned.arena_bytes
            if arena_bytes is None and wanted > DEFAULT_ARENA_LIMIT:
                raise ArenaError(
                    f"batch size {batch_size} wants an arena of {wanted} bytes, by default it has "
                    f"{DEFAULT_ARENA_LIMIT} at most: give arena_bytes={wanted} to take so much",
                    got=DEFAULT_ARENA_LIMIT,
                    wanted=wanted,
                )
            return cls(
                *(structure, encoded, batch_size, options),
                workspace=workspace,
                arena_bytes=wanted,
            )

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
        """End the threads, give the arena back. Any use but closing again raises InputError then."""
        self._handle = None
        self._end()

    def step(
        self,
        x: BufferLike,
        y: BufferLike,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
    ) -> float:
        """Mean loss of the batch, after which one SGD step is applied.

        v <- v - learning_rate · (dL/dv + weight_decay · v), likewise the dense parameters.

        `x` is a C-contiguous float32 buffer of shape (n, *input shape), or flat; n from 1 to the
        batch size. Where the artifact has a quantization it is int8, as that says, or float32, which
        is rounded to it. `y` is int32 or int64 of shape (n,) for cross-entropy, float32 with n outputs
        for mean squared error. Raises InputError for anything else and for values not finite,
        DivergedError when the loss, a gradient or a new value is not finite.
        """
        require_rate("learning_rate", learning_rate)
        require_rate("weight_decay", weight_decay)
        handle = self._open_handle()
        batch = check_batch(self.artifact, x, y, self.batch_size)
        code = self._core.sfd_step(
            *(handle, _native.address(batch.x), _native.address(batch.y), batch.target),
            *(batch.examples, learning_rate, weight_decay, self._loss),
        )
        if code:
            self._refuse(code, "step", batch)
        return self._loss.value

    def gradients(self, x: BufferLike, y: BufferLike) -> tuple[float, dict[str, array[float]]]:
        """Mean loss of the batch in training mode and all gradients, by parameter name.

        The model stays as it was.

        A prunable weight has dL/dv at its stored entries, in csr order, a dense parameter dL/dp;
        running statistics have none. Batches and errors are as in `step`.
        """
        if self._is_layerwise:
            raise InputError('a session with memory="layerwise" keeps no gradients: take "small"')
        handle = self._open_handle()
        batch = check_batch(self.artifact, x, y, self.batch_size)
        code = self._core.sfd_gradients(
            *(handle, _native.address(batch.x), _native.address(batch.y), batch.target),
            *(batch.examples, self._loss),
        )
        if code:
            self._refuse(code, "gradients", batch)
        gradients = {}
        for index, parameter in enumerate(self.artifact.parameters):
            if parameter.kind is not ParameterKind.STATISTIC:
                view = self._view(index)
                gradients[parameter.name] = copy_array("f", view.gradient, view.count)
        return self._loss.value, gradients

    def evaluate(self, x: BufferLike, y: BufferLike) -> tuple[float, int | None]:
        """Mean loss and number of right answers in evaluation mode.

        The number is None for mean squared error. Buffers are as in `step`, but of any number of
        examples: they are evaluated in chunks of the batch size.
        """
        handle = self._open_handle()
        batch = check_batch(self.artifact, x, y)
        x_place, y_place = _native.address(batch.x), _native.address(batch.y)
        x_stride, y_stride = (view.nbytes // batch.examples for view in (batch.x, batch.y))
        right = ctypes.c_uint32()
        total, correct = 0.0, 0
        for start in range(0, batch.examples, self.batch_size):
            examples = min(self.batch_size, batch.examples - start)
            code = self._core.sfd_evaluate(
                *(handle, x_place + start * x_stride, y_place + start * y_stride, batch.target),
                *(examples, self._loss, right),
            )
            if code:
                self._refuse(code, "evaluation", batch)
            total += self._loss.value * examples
            correct += right.value
        loss = total / batch.examples
        return loss, None if self.artifact.loss is Loss.MEAN_SQUARED_ERROR else correct

    def update(
        self,
        sparsity: float,
        budget: str | Mapping[str, int] = "global",
        round: int | None = None,
    ) -> SparseUpdate:
        """The largest |v|, as many as `budget.keep_counts` says, and the dense tensors.

        `round` is by default that of the state. Ties go to the lower position; exact zeros are
        never kept.
        """
        handle = self._open_handle()
        number = self._round if round is None else check_round(round)
        counts = array("I", keep_counts(self.artifact.parameters, sparsity, budget))
        keep = (_native.address(memoryview(counts)), len(counts))
        size = ctypes.c_size_t()
        code = self._core.sfd_update_encode(handle, *keep, number, None, 0, size)
        if not code:
            data = bytearray(size.value)
            place = _native.address(memoryview(data))
            code = self._core.sfd_update_encode(handle, *keep, number, place, len(data), size)
        if code:
            _native.raise_error(code, "update")
        names = [parameter.name for parameter in self.artifact.parameters]
        content = container.decode(Content.UPDATE, data, names)
        return SparseUpdate(content.tensors, content.round, content.support_id)

    def state(self) -> State:
        """Copy of the model as trained so far, with support and round of the state it began as."""
        tensors: list[SparseTensor | DenseTensor] = []
        for index, parameter in enumerate(self.artifact.parameters):
            view = self._view(index)
            value = copy_array("f", view.value, view.count)
            if parameter.kind is not ParameterKind.WEIGHT:
                tensors.append(DenseTensor(parameter.name, parameter.kind, value))
                continue
            row_pointer = copy_array("I", view.row_pointer, view.rows + 1)
            column = copy_array(column_type(view.columns), view.column, view.count)
            shape = (view.rows, view.columns)
            tensors.append(SparseTensor(parameter.name, *shape, row_pointer, column, value))
        return State(tuple(tensors), self._round)

    @property
    def memory(self) -> MeasuredMemory:
        """Memory as measured until now."""
        self._open_handle()
        touched = self._core.sfd_arena_touched(self._arena.address, self._arena.size)
        return MeasuredMemory(self._arena.size, touched)

    @property
    def counters(self) -> Counters:
        """Work really done since the session was opened."""
        record = _native.Counters()
        code = self._core.sfd_counters(self._open_handle(), record)
        if code:
            _native.raise_error(code, "counters")
        done = record.done
        return Counters(
            *(done.forward, done.d_input, done.d_weight, done.recomputed),
            *(record.steps, record.evaluation),
        )

    def _open_handle(self) -> ctypes.c_void_p:
        if self._handle is None:
            raise InputError("the session is closed: open another one")
        return self._handle

    def _refuse(self, code: int, action: str, batch: Batch) -> NoReturn:
        """Raise the exception of a batch that the core did not take, or not to its end."""
        if code == _native.ErrorCode.ERR_DIVERGED and self._is_layerwise:
            raise DivergedError(
                f"{action}: the loss, a gradient or a new value is not finite; layers may have been "
                "updated before: open another session, and lower the learning rate"
            )
        if code == _native.ErrorCode.ERR_DIVERGED:
            raise DivergedError(divergence(action))
        refuse_values(self.artifact, batch, action)
        _native.raise_error(code, action)

    def _view(self, index: int) -> _native.ParameterView:
        view = _native.ParameterView()
        code = self._core.sfd_parameter(self._open_handle(), index, view)
        if code:
            _native.raise_error(code, self.artifact.parameters[index].name)
        return view


def end_session(core: ctypes.CDLL, handle: ctypes.c_void_p, arena: _native.Memory) -> None:
    """End the threads of a session, then give its arena back."""
    core.sfd_close(handle)
    arena.close()


def copy_array(typecode: str, place: int | None, count: int) -> array[Any]:
    """Copy of `count` items at an address in the arena."""
    items = array(typecode)
    if count and place is not None:
        items.frombytes(_native.memory_at(place, count * items.itemsize))
    return items
