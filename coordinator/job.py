"""A job made ready: its artifact, its rules, and the journal that holds where it stands."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from sparsyfed.coordinator.admission import Engines
from sparsyfed.coordinator.bundle import MANIFEST_NAME, Bundle
from sparsyfed.coordinator.compile import compile_job
from sparsyfed.coordinator.config import Configuration
from sparsyfed.coordinator.evaluation import HeldOutData
from sparsyfed.coordinator.pruning import pruned
from sparsyfed.coordinator.store import Store
from sparsyfed.edge_runtime import Artifact, Session, State
from sparsyfed.edge_runtime.errors import (
    ConfigurationError,
    FormatError,
    InputError,
    MismatchError,
)
from sparsyfed.edge_runtime.transfer import sha256_hex

logger = logging.getLogger(__name__)

Content = TypeVar("Content")


def bundle_of(config: Configuration) -> Bundle | None:
    """The bundle that the job names, None without one. Raises ConfigurationError where it is not whole."""
    job = config.job
    return None if job.bundle is None else Bundle.load(job.bundle, job.targets)


def prepare(config: Configuration, store: Store, bundle: Bundle | None = None) -> Artifact:
    """Artifact of the job; a new job is compiled or loaded and journalled with its first state.

    `bundle` is what `bundle_of` gives for this configuration; it is not read where the store holds the job.

    A job that the store holds goes on as it is: nothing is compiled again. Raises ConfigurationError if the store
    holds a job with other settings, or the held-out data of a new one can't be used.
    """
    wanted = _identity(config)
    stored = store.job()
    if stored is None:
        artifact, state = _begin(config, bundle)
        # Before the job is journalled: settings that were wrong at the first start can be mended.
        HeldOutData.load(config.evaluation, artifact)
        store.begin_job(wanted, artifact.encode(), state.encode())
        logger.info("job %s: new, %d rounds", config.job.name, config.job.rounds)
        return artifact
    identity, data = stored
    for key in sorted(wanted.keys() | identity.keys()):
        if wanted.get(key) != identity.get(key):
            raise ConfigurationError(
                f"{config.store.directory}: holds a job with {key} = {identity.get(key)!r}, "
                f"got {wanted.get(key)!r}: give the job another [store] directory"
            )
    if store.is_done():
        logger.info("job %s is already done (%d rounds)", config.job.name, config.job.rounds)
    else:
        logger.info("job %s: going on with round %d", config.job.name, store.progress().round)
    return Artifact.decode(data)


def engines_of(bundle: Bundle | None) -> Engines:
    """The engines that a job with this bundle is for."""
    if bundle is None:
        return Engines(native=True, exports={})
    return Engines(bundle.native, bundle.exports)


def _begin(config: Configuration, bundle: Bundle | None) -> tuple[Artifact, State]:
    return compile_job(config) if config.job.model is not None else _load(config, bundle)


def _load(config: Configuration, bundle: Bundle | None) -> tuple[Artifact, State]:
    """The artifact and the state that the configuration names, for round 1, cut to the sparsity if so configured."""
    job = config.job
    artifact, state = _named(config, bundle)
    try:
        # Opening a session checks that the two belong together.
        if job.first_round == "presparsified":
            state = pruned(artifact, state, job.sparsity, job.budget)
        else:
            Session.open(artifact, state, batch_size=1).close()
        return artifact, State(state.tensors, round=1)
    except (FormatError, InputError, MismatchError) as error:
        message = f"[job] {_source(config)}: {error}"
        raise ConfigurationError(message) from error


def _named(config: Configuration, bundle: Bundle | None) -> tuple[Artifact, State]:
    job = config.job
    if bundle is not None:
        return bundle.artifact, bundle.state
    assert job.artifact is not None
    assert job.state is not None
    artifact = _decode("artifact", job.artifact, Artifact.decode)
    return artifact, _decode("state", job.state, State.decode)


def _source(config: Configuration) -> str:
    job = config.job
    if job.bundle is not None:
        return f"bundle {job.bundle}"
    return f"artifact {job.artifact}, state {job.state}"


def _decode(key: str, path: Path, decode: Callable[[bytes], Content]) -> Content:
    """The content of the file that `key` names."""
    try:
        return decode(_read(key, path))
    except (FormatError, InputError) as error:
        raise ConfigurationError(f"[job] {key}: {path}: {error}") from error


def _identity(config: Configuration) -> dict[str, Any]:
    """What may not change while a job runs, as plain values; files by their content."""
    identity: dict[str, Any] = {}
    for table in (config.job, config.training):
        for key in (field.name for field in fields(table)):
            value = getattr(table, key)
            if isinstance(value, Path):
                # The manifest of a bundle names its files by their hashes.
                file = value / MANIFEST_NAME if key == "bundle" else value
                identity[key] = sha256_hex(_read(key, file))
            elif isinstance(value, Mapping):
                identity[key] = dict(value)
            else:
                identity[key] = list(value) if isinstance(value, tuple) else value
    return identity


def _read(key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"[job] {key}: {path}: {error.strerror}") from error
