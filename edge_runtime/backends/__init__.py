"""Engines other than the native core that train an exported step, behind the interface of `Session`."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.errors import BackendError, FormatError
from sparsyfed.edge_runtime.file_kinds import LONGEST_MARK, OURS, kind_of
from sparsyfed.edge_runtime.match import require_match
from sparsyfed.edge_runtime.state import State, encoded_state

if TYPE_CHECKING:
    from sparsyfed.edge_runtime.backends.engine_session import EngineSession

ENGINES = {
    "executorch": "sparsyfed.edge_runtime.backends.executorch_engine",
    "onnxruntime": "sparsyfed.edge_runtime.backends.onnx_engine",
    "onnxruntime-training": "sparsyfed.edge_runtime.backends.onnx_training_engine",
    "torchscript": "sparsyfed.edge_runtime.backends.torchscript_engine",
}
"""The module of each engine; it is imported when the engine is asked for."""


def open_engine(
    backend: str, path: str | Path, state: State | bytes, batch_size: int, threads: int
) -> EngineSession:
    """Session on an exported step: the folder of `export.to_onnx`, the file of another target.

    Raises BackendError when the engine is not installed or does not take the file, FormatError for
    malformed files, OSError for a path that is not there, MismatchError when export and state don't
    belong together, InputError for a state that is none.
    """
    engine_session, module = _modules(backend)
    _refuse_other_kind(Path(path), backend)
    encoded = encoded_state(state)
    with engine_session.engine_errors(f"{backend} does not take {path}"):
        engine = module.load(Path(path), threads)
    require_match(engine.artifact, encoded)
    state = state if isinstance(state, State) else State.decode(encoded)
    session: EngineSession = engine_session.EngineSession(engine, state, batch_size)
    return session


def _refuse_other_kind(path: Path, backend: str) -> None:
    """Raise FormatError for an artifact or a state, OSError for no such path, as native sessions do."""
    path.stat()
    if path.is_file():
        with path.open("rb") as stream:
            kind = kind_of(stream.read(LONGEST_MARK))
        if kind in OURS:
            raise FormatError(f"{path}: got {kind.value}, wanted an export for {backend}")


def load_engine(backend: str) -> None:
    """Load the library of an engine, which the first session on it does otherwise.

    A program then knows before it has a model whether its engine is there, and what memory that
    takes by itself. Raises BackendError.
    """
    if backend == "native":
        _native.library()
    elif backend in ENGINES:
        _modules(backend)
    else:
        known = ", ".join(("native", *ENGINES))
        raise BackendError(f"got backend {backend!r}, available: {known}")


def _modules(backend: str) -> tuple[ModuleType, ModuleType]:
    """The modules of engine sessions and of this engine."""
    try:
        return (
            importlib.import_module("sparsyfed.edge_runtime.backends.engine_session"),
            importlib.import_module(ENGINES[backend]),
        )
    except ImportError as error:
        raise BackendError(
            f"backend {backend!r} needs a package that is not there ({error}): "
            f"install sparsyfed-edge[{backend}]"
        ) from error
