"""Runs of the keyword study: federated rounds on virtual devices in one process."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.virtual import VirtualDevice
from sparsyfed.edge_runtime import Artifact, State
from sparsyfed.edge_runtime.errors import DivergedError
from sparsyfed.edge_runtime.session import DEFAULT_ARENA_LIMIT
from sparsyfed.tools.fleet_data import HELD_OUT, FleetData
from sparsyfed.tools.in_process import FinishedRound, run_federation
from sparsyfed.tools.keyword_data import Clips, Speakers, fleet_of, one_speaker_each
from sparsyfed.tools.keyword_points import LAST_ROUNDS, Point

DIGITS = 4


@dataclass(frozen=True, slots=True)
class Task:
    """One run. For tuning it is tested on the speakers for validation, else it trains on them, too."""

    purpose: Literal["tuning", "runs"]
    point: Point
    rate: float
    seed: int
    rounds: int

    def settings(self) -> dict[str, Any]:
        """What the run is known by: plain values."""
        job = self.point.job(self.seed, self.rate, self.rounds)
        return {"point": self.point.settings(), "job": asdict(job)}

    def data(self, clips: Clips, speakers: Speakers) -> FleetData:
        """A device for each speaker to train on, and those held out."""
        if self.purpose == "tuning":
            return fleet_of(clips, one_speaker_each(speakers.training), speakers.validation)
        training = (*speakers.training, *speakers.validation)
        return fleet_of(clips, one_speaker_each(training), speakers.test)


def run(
    task: Task, model: tuple[Artifact, State], clips: Clips, speakers: Speakers
) -> dict[str, Any]:
    """One run, on the calling thread, as plain values. `model` is what `Point.beginning` gives for the seed.

    `final_accuracy` is the mean over the last rounds; where training diverged it is 0, and `accuracy` has the rounds
    before.
    """
    started = time.thread_time()
    job = task.point.job(task.seed, task.rate, task.rounds)
    rounds: list[FinishedRound] = []
    diverged = False
    with _opened(task.data(clips, speakers), job.dense_rounds) as (devices, held_out):
        try:
            # One by one: the rounds before a divergence count.
            for finished in run_federation(*model, job, devices, held_out):
                rounds.append(finished)  # noqa: PERF402
        except DivergedError:
            diverged = True
    last = [entry.accuracy for entry in rounds[-LAST_ROUNDS:]]
    return {
        "final_accuracy": 0.0 if diverged else round(sum(last) / len(last), DIGITS),
        "diverged": diverged,
        "accuracy": [round(entry.accuracy, DIGITS) for entry in rounds],
        "cpu_seconds": round(time.thread_time() - started, 1),
    }


@contextmanager
def _opened(data: FleetData, dense_rounds: int) -> Iterator[tuple[list[VirtualDevice], Dataset]]:
    """The devices, and the data held out.

    Every second device is a board, which joins when the dense rounds are over.
    """
    with TemporaryDirectory(prefix="sparsyfed-keywords-") as temporary, ExitStack() as stack:
        opened = {
            name: stack.enter_context(closing(Dataset(path)))
            for name, path in data.save(Path(temporary)).items()
        }
        held_out = opened.pop(HELD_OUT)
        yield (
            [
                VirtualDevice(name, own, DEFAULT_ARENA_LIMIT, 1 + dense_rounds * (place % 2))
                for place, (name, own) in enumerate(sorted(opened.items()))
            ],
            held_out,
        )
