"""What training takes on an engine, measured in a process of its own that has nothing else in it."""

from array import array
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from sparsyfed.devices.training import LocalEngine, open_session
from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.edge_runtime.format import Loss
from sparsyfed.edge_runtime.process_memory import peak_rss_bytes, reset_peak_rss, rss_bytes

if TYPE_CHECKING:
    from sparsyfed.edge_runtime import Session
    from sparsyfed.edge_runtime.backends.engine_session import EngineSession

STEPS = 3


def measure(backend: str, artifact: str, state: str, batch_size: int) -> dict[str, int | str]:
    """Resident bytes with the engine loaded, with the session open, and at most over some steps.

    `artifact` is the path that a session takes, `state` that of a state. `growth_bytes` is what the
    model and its training add to the program with its engine. Raises BackendError where the system
    does not tell.
    """
    engine = LocalEngine.load(backend)
    state_bytes = Path(state).read_bytes()
    try:
        reset_peak_rss()
    except OSError as error:
        raise BackendError(f"this system does not tell the peak of memory: {error}") from error
    with open_session(artifact, state_bytes, batch_size, None, engine) as session:
        opened = rss_bytes()
        x, y = random_batch(session, batch_size)
        for _ in range(STEPS):
            session.step(x, y, learning_rate=1e-3)
        name = session.kernels
    peak, base = peak_rss_bytes(), engine.base_rss_bytes
    assert peak is not None
    assert base is not None
    assert opened is not None
    return {
        "backend": backend,
        "engine": name,
        "batch_size": batch_size,
        "base_bytes": base,
        "opened_bytes": opened,
        "peak_bytes": peak,
        "growth_bytes": peak - base,
    }


def random_batch(
    session: "Session | EngineSession", examples: int
) -> tuple["array[float]", "array[int] | array[float]"]:
    """A batch that the model takes, without NumPy, which not every device has."""
    random = Random(0)  # noqa: S311 - guards nothing
    artifact = session.artifact
    outputs = artifact.tensors[artifact.output].size

    def floats(count: int) -> "array[float]":
        return array("f", (random.random() - 0.5 for _ in range(count)))

    x = floats(examples * artifact.tensors[0].size)
    if artifact.loss is Loss.MEAN_SQUARED_ERROR:
        return x, floats(examples * outputs)
    return x, array("i", (place % outputs for place in range(examples)))
