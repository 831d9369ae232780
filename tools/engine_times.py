"""Times of an engine that has a Python for itself, in turns with the native core."""

from pathlib import Path

from sparsyfed.devices.training import LocalEngine, open_session
from sparsyfed.tools.bench_session import session_step
from sparsyfed.tools.bench_timing import take_turns
from sparsyfed.tools.engine_memory import random_batch


def measure(
    backend: str, artifact: str, *, native: str, state: str, batch_size: int, turns: int
) -> dict[str, list[float]]:
    """CPU seconds of a step by turn: `engine` on the export `artifact`, `native` on the file `native`."""
    values = Path(state).read_bytes()
    paths = {"engine": (backend, artifact), "native": ("native", native)}
    sessions = {
        name: open_session(path, values, batch_size, None, LocalEngine(engine))
        for name, (engine, path) in paths.items()
    }
    x, y = random_batch(sessions["native"], batch_size)
    taken = take_turns({n: session_step(s, x, y) for n, s in sessions.items()}, turns)
    for session in sessions.values():
        session.close()
    return taken
