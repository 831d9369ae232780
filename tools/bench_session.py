"""Sessions as benchmarks open and step them."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime import Artifact, Session, State
from sparsyfed.edge_runtime.backends.engine_session import EngineSession
from sparsyfed.tools.bench_timing import Side

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-3


def session_options(kernels: str | None, memory: str | None) -> dict[str, Any]:
    """Options of `Session.open` and `plan`; what is None stays as they have it."""
    given = {"kernels": kernels, "memory": memory}
    return {name: value for name, value in given.items() if value is not None}


def open_session(
    artifact: Artifact,
    state: State | bytes,
    batch_size: int,
    *,
    kernels: str | None = None,
    memory: str | None = None,
) -> Session:
    """A session with these options."""
    options = session_options(kernels, memory)
    session: Session = Session.open(artifact, state, batch_size=batch_size, **options)
    return session


def session_step(
    session: Session | EngineSession, x: NDArray[np.float32], y: NDArray[np.int32]
) -> Side:
    """One training step of a session, with the rates of the dense one."""
    return partial(session.step, x, y, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
