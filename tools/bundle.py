"""A compiled model as files for devices of several engines: `sparsyfed export`.

model.sfd, initial.sfs     structure and first state, which every device gets
<target>/                  the files of each target but native
<board>/                   the model as C source, and firmware with it, for a microboard
manifest.json              what they are, by hash: the same bytes for the same model and arguments
measured.json              the memory that training took on this machine, by target
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sparsyfed
from sparsyfed.coordinator.bundle import MANIFEST_NAME, MEASURED_NAME, NATIVE
from sparsyfed.coordinator.compile import compile_training
from sparsyfed.devices.board_fit import BoardFit
from sparsyfed.devices.profiles import DeviceProfile
from sparsyfed.edge_runtime import MemoryPlan, Quantization, SparseTensor, State, plan
from sparsyfed.edge_runtime.errors import (
    ArenaError,
    ConfigurationError,
    UnsupportedOperationError,
)
from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.export.manifest import interface
from sparsyfed.export.states import initial_state
from sparsyfed.export.targets import TARGETS, Target, check_kernels, find_targets
from sparsyfed.export.training_artifact import TrainingArtifact
from sparsyfed.tools.bench_process import measure_apart
from sparsyfed.tools.board_export import BoardExport
from sparsyfed.tools.machine import describe_machine

ARTIFACT_NAME = "model.sfd"
STATE_NAME = "initial.sfs"
FORMAT = 1
"""Version of the manifest; it changes when a field changes its meaning."""
PLANNED_FIELDS = ("batch", "kernels", "memory", "needs")
"""What some targets fix when they are written, and the manifest repeats."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BundleSettings:
    """What to export: a model as in `compile_training`, and for whom.

    `device` or `board`, and `batch_size`, are what memory is planned and measured for. `kernels` is for the targets
    that have a choice of them; None: to each its usual ones. With a `quantization` inputs are int8, of native devices
    alone. Without `verify` nothing that a target computes is
    compared with PyTorch. A `state` takes the place of the initial one.
    """

    model: str
    folder: Path
    targets: Sequence[str] = (NATIVE,)
    device: DeviceProfile | None = None
    board: BoardExport | None = None
    state: State | None = None
    batch_size: int = 16
    kernels: str | None = None
    verify: bool = True
    input_shape: Sequence[int] | None = None
    beta: float = 1.25
    loss: str = "cross_entropy"
    quantization: Quantization | None = None
    sparsity: float = 0.0
    budget: str | Mapping[str, int] = "global"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"got seed {self.seed}, wanted 0 or more, less than 2^63")
        if self.device is not None and self.board is not None:
            raise ConfigurationError("got a device and a board: memory is planned for one of them")


@dataclass(frozen=True, slots=True)
class Bundle:
    """The contents of manifest.json, and of measured.json by target."""

    manifest: dict[str, Any]
    measured: dict[str, dict[str, Any]]


def write_bundle(settings: BundleSettings, say: Say) -> Bundle:
    """Writes a bundle, and tells `say` what is done.

    An old manifest goes first and the new one comes last: a folder with a manifest is whole. Raises
    ConfigurationError for an unknown target, one whose packages are not there, and a device that is
    too small, and what `compile_training` and the targets raise.
    """
    targets = find_targets(settings.targets)
    check_kernels(targets, settings.kernels)
    for target in targets:
        target.require()
    if settings.board is not None:
        settings.board.require()
    artifact, state = compile_training(
        settings.model,
        seed=settings.seed,
        input_shape=settings.input_shape,
        beta=settings.beta,
        loss=settings.loss,
        sparsity=settings.sparsity,
        budget=settings.budget,
        quantization=settings.quantization,
    )
    if settings.state is not None:
        state = State(settings.state.tensors, round=1)  # what a job sends first
    fit = _board_fit(settings, artifact, state)
    if settings.board is None or fit is None:
        planned = _planned(settings, artifact, state)
    else:
        planned = _plan_record(settings.board.name, fit.arena_limit, fit.plan, state)
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST_NAME, MEASURED_NAME):
        (folder / name).unlink(missing_ok=True)
    write_atomic(folder / ARTIFACT_NAME, artifact.encode())
    write_atomic(folder / STATE_NAME, state.encode())
    records, measured = {}, {}
    for target in targets:
        records[target.name] = _write(target, settings, artifact, state, say)
        if target.name != NATIVE:
            measured[target.name] = _measured(target, settings, say)
    manifest = _manifest(settings, artifact, state, records) | {"planned": planned}
    if settings.board is not None and fit is not None:
        if settings.board.image:
            say(f"{settings.board.name}: build the firmware with the model inside")
        place = folder / settings.board.name
        record = settings.board.write(place, artifact.native, state, fit)
        manifest |= {"board": record}
        manifest["files"] |= {name: _file(folder / name) for name in record["files"]}
    if measured:
        _save(folder / MEASURED_NAME, {"machine": describe_machine(), "targets": measured})
    _save(folder / MANIFEST_NAME, manifest)
    return Bundle(manifest, measured)


def _board_fit(
    settings: BundleSettings, artifact: TrainingArtifact, state: State
) -> BoardFit | None:
    """How the board trains the model; None without a board. Raises ArenaError with what would fit."""
    if settings.board is None:
        return None

    def state_at(density: float) -> bytes:
        return initial_state(
            artifact.model, settings.beta, 1 - density, settings.seed, settings.budget
        ).encode()

    may_choose = settings.state is None and isinstance(settings.budget, str)
    return settings.board.fit(
        artifact.native, state, settings.batch_size, state_at if may_choose else None
    )


def _planned(settings: BundleSettings, artifact: TrainingArtifact, state: State) -> dict[str, Any]:
    """What a step takes on the native core, planned for the device."""
    device = settings.device
    limit = None if device is None else device.memory_bytes
    kernels = None if device is None else device.kernels
    try:
        found = plan(
            artifact.native, state, settings.batch_size, kernels=kernels, arena_bytes=limit
        )
    except ArenaError as error:
        assert device is not None
        raise ConfigurationError(
            f"{device.name} has {error.got:,} bytes for training, a step of batch "
            f"{settings.batch_size} at density {state.density:.1%} takes {error.wanted:,} at least: "
            "choose a smaller --batch-size, a higher --sparsity or another device"
        ) from error
    return _plan_record(None if device is None else device.name, limit, found, state)


def _plan_record(
    device: str | None, memory_bytes: int | None, found: MemoryPlan, state: State
) -> dict[str, Any]:
    return {
        "device": device,
        "memory_bytes": memory_bytes,
        # The vectorised sets all take the same: the manifest is that of every machine.
        "kernels": found.kernels if found.kernels == "portable" else "vectorised",
        "batch_size": found.batch_size,
        "density": state.density,
        "arena_bytes": found.arena_bytes,
        "transient_bytes": found.transient_bytes,
        "multiply_adds": found.macs.total,
    }


def _write(
    target: Target, settings: BundleSettings, artifact: TrainingArtifact, state: State, say: Say
) -> dict[str, Any]:
    """Writes a target's files, whole; returns its record."""
    if target.name != NATIVE:
        say(f"{target.name}: export{' and compare with PyTorch' if settings.verify else ''}")
    place = _place(settings.folder, target)
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=settings.folder) as partial:
        path = target.path(Path(partial) / "export")
        path.parent.mkdir(exist_ok=True)
        try:
            record = target.write(
                artifact,
                path,
                state,
                batch_size=settings.batch_size,
                kernels=target.kernels_for(settings.kernels),
                verify=settings.verify,
            )
        except UnsupportedOperationError as error:
            raise _unsupported(target, settings, artifact, state, error) from error
        written = sorted((Path(partial) / "export").iterdir())
        names = [file.name for file in written]
        for file in written:
            file.replace(place / file.name)
    paths = {name: (place / name).relative_to(settings.folder).as_posix() for name in names}
    return {
        "backend": target.backend,
        "opened": target.file,
        "engine": record["engine"],
        "operators": record["operators"],
        "verified": record["verified"],
        **{key: record[key] for key in PLANNED_FIELDS if key in record},
        "files": list(paths.values()),
        "device_files": [p for name, p in paths.items() if name not in target.kept_back],
    }


def _place(folder: Path, target: Target) -> Path:
    """The folder of a target's files."""
    return folder if target.name == NATIVE else folder / target.name


def _unsupported(
    target: Target,
    settings: BundleSettings,
    artifact: TrainingArtifact,
    state: State,
    error: UnsupportedOperationError,
) -> UnsupportedOperationError:
    """The error with the targets that do hold the model, found by trying them."""
    able = []
    for other in TARGETS.values():
        if other is target or other.missing():
            continue
        with tempfile.TemporaryDirectory(prefix="sparsyfed-export-") as folder:
            try:
                other.write(
                    artifact,
                    other.path(Path(folder)),
                    state,
                    batch_size=settings.batch_size,
                    kernels=other.kernels_for(settings.kernels),
                    verify=False,
                )
            except UnsupportedOperationError:
                continue
            able.append(other.name)
    return UnsupportedOperationError(
        f"target {target.name}: {error}; targets that hold this model: {', '.join(able) or 'none'}"
    )


def _measured(target: Target, settings: BundleSettings, say: Say) -> dict[str, Any]:
    """What training takes on a target's engine here. Raises ConfigurationError if a device lacks that."""
    say(f"{target.name}: measure the memory of a step of batch {settings.batch_size}")
    found: dict[str, Any] = measure_apart(
        "engine_memory",
        {
            "backend": target.backend,
            "artifact": str(target.path(_place(settings.folder, target)).absolute()),
            "state": str((settings.folder / STATE_NAME).absolute()),
            "batch_size": settings.batch_size,
        },
        python=target.python,
    )
    device, growth = settings.device, found["growth_bytes"]
    if device is not None and growth > device.memory_bytes:
        raise ConfigurationError(
            f"{device.name} has {device.memory_bytes:,} bytes for training, a step of batch "
            f"{settings.batch_size} on {target.backend} was measured to take {growth:,}: "
            "choose a smaller --batch-size, another device, or --target native"
        )
    return found


def _manifest(
    settings: BundleSettings,
    artifact: TrainingArtifact,
    state: State,
    targets: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    common = interface(artifact)
    stored = {t.name: t for t in state.tensors if isinstance(t, SparseTensor)}
    written = {ARTIFACT_NAME, STATE_NAME}.union(*(record["files"] for record in targets.values()))
    return {
        "format": FORMAT,
        "sparsyfed": sparsyfed.__version__,
        "model": settings.model,
        "artifact": artifact.native.identity,
        "input_shape": list(artifact.input_shape),
        "beta": settings.beta,
        "loss": settings.loss,
        **_origin(settings),
        "density": state.density,
        "files": {name: _file(settings.folder / name) for name in sorted(written)},
        **common,
        "layers": [layer | _layer(stored[layer["name"]]) for layer in common["layers"]],
        "dense_values": sum(t.count for t in state.tensors if not isinstance(t, SparseTensor)),
        "targets": dict(targets),
    }


def _origin(settings: BundleSettings) -> dict[str, Any]:
    """What the initial state was made from; null where a given one has its place."""
    if settings.state is not None:
        return dict.fromkeys(("seed", "sparsity", "budget"))
    budget = settings.budget
    return {
        "seed": settings.seed,
        "sparsity": settings.sparsity,
        "budget": budget if isinstance(budget, str) else dict(budget),
    }


def _layer(tensor: SparseTensor) -> dict[str, Any]:
    return {"rows": tensor.rows, "columns": tensor.columns, "stored": tensor.count}


def _file(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _save(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
