"""Engines other than the native core that train an exported step, behind the interface of `Session`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.state import State

if TYPE_CHECKING:
    from sparsyfed.edge_runtime.backends.engine_session import EngineSession

ENGINES = {
    "onnxruntime": "sparsyfed.edge_runtime.backends.onnx_engine",
    "onnxruntime-training": "sparsyfed.edge_runtime.backends.onnx_training_engine",
    "torchscript": "sparsyfed.edge_runtime.backends.torchscript_engine",
}
"""The module of each engine; it is imported when the engine is asked for."""


def open_engine(
    backend: str, path: str | Path, state: State | bytes, batch_size: int, threads: int
) -> EngineSession:
    """Session on an exported step: the folder of `export.to_onnx`, the file of `export.to_torchscript`.

    Raises BackendError when the engine is not installed or does not take the file, FormatError for
    malformed files, MismatchError when export and state don't belong together.
    """
    try:
        engine_session = importlib.import_module("sparsyfed.edge_runtime.backends.engine_session")
        module = importlib.import_module(ENGINES[backend])
    except ImportError as error:
        raise BackendError(
            f"backend {backend!r} needs a package that is not there ({error}): "
            f"install sparsyfed-edge[{backend}]"
        ) from error
    engine = module.load(Path(path), threads)
    state = state if isinstance(state, State) else State.decode(state)
    plan(engine.artifact, state.encode(), 1)  # raises where they don't belong together
    session: EngineSession = engine_session.EngineSession(engine, state, batch_size)
    return session
