"""Sessions as benchmarks open and step them."""

from functools import partial
from typing import TYPE_CHECKING, Any

from sparsyfed.edge_runtime import Artifact, Session, State
from sparsyfed.tools.bench_timing import Side

if TYPE_CHECKING:
    from sparsyfed.edge_runtime.backends.engine_session import EngineSession
    from sparsyfed.edge_runtime.buffers import BufferLike

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


def session_step(session: "Session | EngineSession", x: "BufferLike", y: "BufferLike") -> Side:
    """One training step of a session, with the rates of the dense one."""
    return partial(session.step, x, y, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
