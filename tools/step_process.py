"""A process that steps a session when it is told to, for measurements of several at once."""

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from sparsyfed.edge_runtime import Artifact, Session, State
from sparsyfed.tools.bench_session import session_step


@dataclass(frozen=True, slots=True)
class StepProcess:
    """The session: of `model.sfd` and `model.sfs` in a folder."""

    folder: str
    batch_size: int
    threads: int


def serve_steps(connection: Connection, settings: StepProcess) -> None:
    """Answers each number of steps with the wall seconds of each of them, until the end is closed."""
    artifact = Artifact.load(Path(settings.folder) / "model.sfd")
    state = State.load(Path(settings.folder) / "model.sfs")
    count = settings.batch_size * artifact.tensors[0].size
    x = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    y = np.zeros(settings.batch_size, np.int32)
    with Session.open(artifact, state, settings.batch_size, threads=settings.threads) as session:
        step = session_step(session, x, y)
        while True:
            try:
                steps = connection.recv()
            except EOFError:
                return
            taken = []
            for _ in range(steps):
                start = time.perf_counter()
                step()
                taken.append(time.perf_counter() - start)
            connection.send(taken)
