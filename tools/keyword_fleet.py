"""Boards and Linux devices in one fleet: the mixed run of the keyword study, over a real broker.

A board has the clips of one speaker; a Linux device has those of many, as the hub of a house would.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparsyfed.coordinator import Configuration, JobResult, RoundFinished
from sparsyfed.tools.board_fleet import BoardFleet, RunningBoards
from sparsyfed.tools.broker import PrivateBroker
from sparsyfed.tools.demo import FAREWELL_S, coordinate
from sparsyfed.tools.device_processes import DeviceCommand, DeviceProcesses
from sparsyfed.tools.fleet_data import HELD_OUT
from sparsyfed.tools.in_process import FederatedJob
from sparsyfed.tools.keyword_boards import BOARD
from sparsyfed.tools.keyword_data import Clips, fleet_of, split_speakers
from sparsyfed.tools.keyword_points import Point

BOARDS = BoardFleet("keyword-board", (BOARD, BOARD), ram_bytes=128 * 1024)
LINUX_DEVICES = 4
LINUX_PROFILE = "raspberry_pi_zero_2w"
ROUNDS = 6
CLIPS_OF_A_BOARD = 16
"""At least; of speakers with fewer there is little to see."""
DEADLINE_S = 600.0
DEVICE_FIELDS = (
    *("backend", "engine", "planned_arena_bytes", "arena_peak_bytes", "peak_rss_bytes"),
    *("multiply_adds", "examples", "seconds"),
)


@dataclass(frozen=True, slots=True)
class MixedRun:
    """What the mixed run trains: a point at a learning rate."""

    point: Point
    rate: float

    def job(self) -> FederatedJob:
        """The rounds: every device is in each, boards in those that are not dense."""
        return self.point.job(0, self.rate, ROUNDS)

    def settings(self) -> dict[str, Any]:
        """What the run is known by: plain values."""
        return {
            "point": self.point.settings(),
            "job": asdict(self.job()),
            "boards": asdict(BOARDS),
            "linux_devices": LINUX_DEVICES,
        }

    def run(self, clips: Clips, say: Callable[[str], None]) -> dict[str, Any]:
        """Trains over MQTT and returns figures of rounds and devices as plain values.

        Raises BackendError without QEMU or compiler, or where a device fails; ConfigurationError without a broker.
        """
        data = fleet_of(clips, speakers_of_devices(clips), split_speakers(clips).test)
        with TemporaryDirectory(prefix="sparsyfed-keywords-") as temporary:
            work = Path(temporary)
            result = self._train(data.save(work / "data"), work, say)
        return {
            "rounds": [entry.to_mapping() for entry in result.rounds],
            "devices": [
                {"id": device.id, "rounds": device.rounds}
                | {name: device.latest.to_mapping()[name] for name in DEVICE_FIELDS}
                for device in result.devices
            ],
        }

    def _train(self, data: Mapping[str, Path], work: Path, say: Callable[[str], None]) -> JobResult:
        artifact, state = self.point.beginning(0)
        artifact.save(work / "model.sfd")
        state.save(work / "initial.sfs")

        def show(finished: RoundFinished) -> None:
            say(
                f"mixed fleet, round {finished.round} of {ROUNDS}: {finished.devices} devices, "
                f"{finished.accuracy:.1%}, {finished.seconds:.0f} s"
            )

        with PrivateBroker(work / "broker") as broker:
            address = f"{broker.host}:{broker.port}"
            with BOARDS.running(address, data, work / "gateway", work / "boards.log") as boards:
                commands = _commands(address, data, work, boards)
                with DeviceProcesses(commands) as fleet:
                    result = coordinate(self._configuration(broker, data, work), fleet, show)
                    fleet.wait(FAREWELL_S)
        return result

    def _configuration(
        self, broker: PrivateBroker, data: Mapping[str, Path], work: Path
    ) -> Configuration:
        job = self.job()
        first = LINUX_DEVICES + (0 if job.dense_rounds else len(BOARDS.names))
        return Configuration.from_mapping(
            {
                "job": {
                    "name": "keywords",
                    "rounds": job.rounds,
                    "seed": job.seed,
                    "artifact": work / "model.sfd",
                    "state": work / "initial.sfs",
                    "sparsity": job.sparsity,
                    "budget": job.budget,
                    "dense_rounds": job.dense_rounds,
                },
                "training": {
                    "learning_rate": job.learning_rate,
                    "final_learning_rate": job.final_learning_rate,
                    "batch_size": job.batch_size,
                    "epochs": job.epochs,
                    "weight_decay": job.weight_decay,
                },
                "round": {"minimum_devices": first, "quorum": 1.0, "deadline_s": DEADLINE_S},
                "broker": {"host": broker.host, "port": broker.port},
                "evaluation": {"x": data[HELD_OUT] / "x.npy", "y": data[HELD_OUT] / "y.npy"},
                "store": {"directory": work / "store"},
            },
            source="mixed fleet",
        )


def speakers_of_devices(clips: Clips) -> dict[str, tuple[int, ...]]:
    """Each board has one of the first speakers with enough clips, Linux devices share the others."""
    split = split_speakers(clips)
    speakers = (*split.training, *split.validation)
    enough = [n for n in speakers if (clips.speaker == n).sum() >= CLIPS_OF_A_BOARD]
    alone = dict(zip(BOARDS.names, enough, strict=False))
    others = [number for number in speakers if number not in alone.values()]
    boards = {name: (speaker,) for name, speaker in alone.items()}
    return boards | {
        f"linux-{place + 1}": tuple(others[place::LINUX_DEVICES]) for place in range(LINUX_DEVICES)
    }


def _commands(
    address: str, data: Mapping[str, Path], work: Path, boards: RunningBoards
) -> dict[str, DeviceCommand]:
    def arguments(name: str) -> list[str]:
        own = {"id": name, "broker": address, "data": data[name], "directory": work / name}
        given = [part for key, value in own.items() for part in (f"--{key}", str(value))]
        return [*given, "--profile", LINUX_PROFILE, "--exit-on-finish"]

    linux = [name for name in data if name not in {HELD_OUT, *BOARDS.names}]
    commands = {name: DeviceCommand(arguments(name), work / f"{name}.log") for name in linux}
    return commands | {BOARDS.gateway: boards.command}
