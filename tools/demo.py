"""The demo: eight watches, a broker and a coordinator on this machine, and a report at the end."""

import itertools
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from sparsyfed import coordinator
from sparsyfed.coordinator import Configuration, JobResult, RoundFinished
from sparsyfed.coordinator.bundle import NATIVE
from sparsyfed.devices.profiles import DeviceProfile, find_profile
from sparsyfed.edge_runtime import State
from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError, StoppedError
from sparsyfed.export.targets import TARGETS, Target
from sparsyfed.tools import watch_job
from sparsyfed.tools.board_fleet import RunningBoards
from sparsyfed.tools.broker import PrivateBroker, find_mosquitto
from sparsyfed.tools.bundle import STATE_NAME, BundleSettings, write_bundle
from sparsyfed.tools.demo_boards import BOARDS, LAST_ROUNDS, share_windows
from sparsyfed.tools.demo_report import DemoRun, build_report, save_report, summary
from sparsyfed.tools.device_processes import DeviceCommand, DeviceProcesses
from sparsyfed.tools.in_process import FederatedJob, FinishedRound
from sparsyfed.tools.live_table import RoundRow, RoundTable, SilentTable, round_table
from sparsyfed.tools.other_python import environment_for
from sparsyfed.tools.watch_data import load_fleet

ARTIFACT_NAME = "model.sfd"
TRAINED_NAME = "trained.sfs"
DEADLINE_S = 120.0
WATCH_S = 0.25
FAREWELL_S = 10.0


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo runs, and the folder for the report, the trained model and the logs."""

    rounds: int
    seed: int
    sparsity: float
    folder: Path
    first_round: str = "dense"  # or "presparsified"
    engines: Sequence[str] = (NATIVE,)  # backends; device number n has engine n modulo their number
    boards: bool = False  # emulated ones join for the last rounds of two or more

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= 10_000:
            raise ConfigurationError(f"got {self.rounds} rounds, wanted 1 to 10000")
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"got seed {self.seed}, wanted 0 or more, less than 2^63")
        if not 0.0 <= self.sparsity < 1.0:
            raise ConfigurationError(
                f"got sparsity {self.sparsity}, wanted at least 0, less than 1"
            )
        targets_of(self.engines)


def run_demo(settings: DemoSettings, *, quiet: bool = False) -> dict[str, Any]:
    """Trains over MQTT, then dense FedAvg for comparison; writes and returns the report.

    Nothing that it starts outlives it. Raises ConfigurationError without mosquitto or the data,
    BackendError if a device or the broker fails, KeyboardInterrupt or StoppedError on Ctrl-C and SIGTERM.
    """
    find_mosquitto()
    started = time.monotonic()
    with (
        _interrupted_by_sigterm(),
        tempfile.TemporaryDirectory(prefix="sparsyfed-demo-") as temporary,
        _logs(settings.folder) as logs,
    ):
        fleet = load_fleet()
        folders = fleet.save(Path(temporary) / "data")
        if settings.boards and settings.rounds > 1:  # they join after the first round or later
            share_windows(folders)
        with SilentTable() if quiet else round_table() as table:
            job = watch_job.sparse_job(settings.rounds, settings.seed, settings.sparsity)
            places = Places(work=Path(temporary), logs=logs, data=folders)
            watches = [name for name in folders if name not in {"held-out", *BOARDS.names}]
            backends = assigned(watches, settings.engines)
            profiles = {name: _profile(backend) for name, backend in backends.items()}
            initial, result = _train_over_mqtt(settings, job, backends, places, table)
            dense = _train_dense(settings, folders, result, table)
        run = DemoRun(
            job=job,
            profiles={**profiles, **BOARDS.profiles()},
            initial=initial,
            result=result,
            dense=tuple(dense),
            held_out_examples=len(fleet.held_out),
            seconds=time.monotonic() - started,
            command=shlex.join(["sparsyfed", *sys.argv[1:]]),
        )
    report = build_report(run)
    save_report(report, settings.folder)
    result.artifact.save(settings.folder / ARTIFACT_NAME)
    result.state.save(settings.folder / TRAINED_NAME)
    if not quiet:
        print(summary(report, settings.folder))
        model, state = settings.folder / ARTIFACT_NAME, settings.folder / TRAINED_NAME
        print(f"trained model   {model} and {state}")
    return report


@dataclass(frozen=True, slots=True)
class Places:
    """Folders: for what is thrown away, for logs, and the data by the name of the device."""

    work: Path
    logs: Path
    data: Mapping[str, Path]


def targets_of(engines: Sequence[str]) -> list[Target]:
    """What to export for these backends. Raises ConfigurationError for one that is not here."""
    by_backend = {target.backend: target for target in TARGETS.values()}
    for engine in engines:
        if engine not in by_backend:
            raise ConfigurationError(
                f"got engine {engine!r}, wanted some of {', '.join(by_backend)}"
            )
        by_backend[engine].require()
    return [by_backend[engine] for engine in dict.fromkeys(engines)]


def all_engines() -> list[str]:
    """The backends that are here, the native core first."""
    return [target.backend for target in TARGETS.values() if not target.missing()]


def assigned(devices: Sequence[str], engines: Sequence[str]) -> dict[str, str]:
    """The backend of each device: in turns, so that each is there with enough devices."""
    return dict(zip(devices, itertools.cycle(engines), strict=False))


def _profile(backend: str) -> DeviceProfile:
    name = watch_job.DEVICE_PROFILE if backend == NATIVE else watch_job.ENGINE_PROFILE
    return find_profile(name)


def _train_over_mqtt(
    settings: DemoSettings,
    job: FederatedJob,
    backends: Mapping[str, str],
    places: Places,
    table: RoundTable,
) -> tuple[State, JobResult]:
    """The initial state, and the result of the job run by one process a device."""
    work = places.work
    with (
        PrivateBroker(work / "broker") as broker,
        _packages(settings) as packages,
        _boards(places, broker) as boards,
    ):
        commands = {
            name: DeviceCommand(
                [
                    *_device_arguments(name, broker, places.data[name], work / "devices" / name),
                    *("--profile", _profile(backend).name, "--backend", backend),
                ],
                places.logs / f"{name}.log",
                *packages[backend],
            )
            for name, backend in backends.items()
        }
        # Interpreters start while the model is compiled.
        with DeviceProcesses(commands) as fleet:
            table.status(f"starting {len(backends)} devices, compiling {watch_job.MODEL}")
            bundle = work / "bundle"
            write_bundle(_bundle_settings(settings, job, bundle), table.status)
            state = State.load(bundle / STATE_NAME)
            config = _configuration(job, len(backends), broker, places.data["held-out"], work)

            def show(finished: RoundFinished) -> None:
                table.add(_row(finished))
                table.progress(f"round {finished.round} of {job.rounds} is done")
                if boards is not None and finished.round == max(1, job.rounds - LAST_ROUNDS):
                    table.status(f"{len(boards.names)} emulated boards join")
                    fleet.add(BOARDS.gateway, boards.command)
                    boards.wait_for_hello(fleet.failed)

            table.status("waiting for the devices")
            result = coordinate(config, fleet, show)
            fleet.wait(FAREWELL_S)
    return state, result


@contextmanager
def _packages(settings: DemoSettings) -> Iterator[dict[str, tuple[str, Mapping[str, str]]]]:
    """By backend the Python of its devices, and what to add to their environment."""
    with ExitStack() as stack:
        yield {
            target.backend: (target.python, stack.enter_context(environment_for(target.python)))
            for target in targets_of(settings.engines)
        }


def _boards(places: Places, broker: PrivateBroker) -> AbstractContextManager[RunningBoards | None]:
    """The boards whose data are there; None without."""
    if not set(BOARDS.names) & set(places.data):
        return nullcontext()
    return BOARDS.running(
        f"{broker.host}:{broker.port}",
        places.data,
        places.work / "gateway",
        places.logs / f"{BOARDS.gateway}.log",
    )


def _device_arguments(name: str, broker: PrivateBroker, data: Path, directory: Path) -> list[str]:
    return [
        *("--id", name),
        *("--broker", f"{broker.host}:{broker.port}"),
        *("--data", str(data)),
        *("--directory", str(directory)),
        "--exit-on-finish",
    ]


def _bundle_settings(settings: DemoSettings, job: FederatedJob, folder: Path) -> BundleSettings:
    is_sparse = settings.first_round == "presparsified"
    return BundleSettings(
        model=watch_job.MODEL,
        folder=folder,
        targets=[target.name for target in targets_of(settings.engines)],
        batch_size=job.batch_size,
        beta=watch_job.BETA,
        sparsity=settings.sparsity if is_sparse else 0.0,
        seed=job.seed,
    )


def _configuration(
    job: FederatedJob, devices: int, broker: PrivateBroker, held_out: Path, work: Path
) -> Configuration:
    return Configuration.from_mapping(
        {
            "job": {
                "name": "watches",
                "rounds": job.rounds,
                "seed": job.seed,
                "bundle": work / "bundle",
                "sparsity": job.sparsity,
            },
            "training": {
                "learning_rate": job.learning_rate,
                "final_learning_rate": job.final_learning_rate,
                "batch_size": job.batch_size,
                "epochs": job.epochs,
                "weight_decay": job.weight_decay,
            },
            # All or nothing: a round without one of the devices could not be compared.
            "round": {
                "devices_per_round": "all",
                "minimum_devices": devices,
                "quorum": 1.0,
                "deadline_s": DEADLINE_S,
                "norm_bound": job.norm_bound,
            },
            "broker": {"host": broker.host, "port": broker.port},
            "evaluation": {"x": held_out / "x.npy", "y": held_out / "y.npy"},
            "store": {"directory": work / "store"},
        },
        source="demo",
    )


def coordinate(
    config: Configuration, fleet: DeviceProcesses, show: Callable[[RoundFinished], None]
) -> JobResult:
    """Runs the job; a device that ends with an error ends it as well."""
    stop, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            if fleet.failed() is not None:
                stop.set()

    watcher = threading.Thread(target=watch, name="device watch")
    watcher.start()
    try:
        return coordinator.run(config, show, stop=stop)
    except (KeyboardInterrupt, StoppedError):
        problem = fleet.failed()
        if problem is not None:
            raise BackendError(problem) from None
        raise
    finally:
        over.set()
        watcher.join()


def _row(finished: RoundFinished) -> RoundRow:
    assert finished.accuracy is not None
    return RoundRow(
        round=finished.round,
        accuracy=finished.accuracy,
        density=finished.density_down,
        bytes_down=finished.bytes_down,
        bytes_up=finished.bytes_up,
        devices=finished.devices,
        seconds=finished.seconds,
    )


def _train_dense(
    settings: DemoSettings,
    folders: Mapping[str, Path],
    sparse: JobResult,
    table: RoundTable,
) -> list[FinishedRound]:
    """Dense FedAvg by virtual devices in this process, on the data that the sparse run had, in the same rounds."""
    job = watch_job.dense_job(settings.rounds, settings.seed)
    first_rounds = {device.id: job.rounds - device.rounds + 1 for device in sparse.devices}
    used = {name: folders[name] for name in ("held-out", *first_rounds)}
    workers = min(len(os.sched_getaffinity(0)), len(first_rounds))
    memory_bytes = find_profile(watch_job.DEVICE_PROFILE).memory_bytes
    rounds = []
    table.status(f"dense FedAvg for comparison, {job.rounds} rounds in this process")
    for finished in watch_job.run_virtually(
        job, 1.0, used, memory_bytes, workers=workers, first_rounds=first_rounds
    ):
        rounds.append(finished)
        say = table.progress if finished.round % 10 else table.status
        say(
            f"dense FedAvg for comparison: round {finished.round} of {job.rounds}, "
            f"accuracy {finished.accuracy:.1%}"
        )
    return rounds


@contextmanager
def _logs(folder: Path) -> Iterator[Path]:
    """The folder of the logs, emptied; what this process logs goes there, not to the terminal."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    handler = logging.FileHandler(logs / "coordinator.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("sparsyfed")
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield logs
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
