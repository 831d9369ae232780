"""A job made ready: its artifact, its rules, and the journal that holds where it stands."""

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sparsyfed.coordinator.compile import compile_job
from sparsyfed.coordinator.config import Configuration
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


def prepare(config: Configuration, store: Store) -> Artifact:
    """Artifact of the job; a new job is compiled or loaded and journalled with its first state.

    A job that the store holds goes on as it is: nothing is compiled again. Raises ConfigurationError if the store
    holds a job with other settings.
    """
    wanted = _identity(config)
    stored = store.job()
    if stored is None:
        artifact, state = _begin(config)
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
    logger.info("job %s: going on with round %d", config.job.name, store.progress().round)
    return Artifact.decode(data)


def _begin(config: Configuration) -> tuple[Artifact, State]:
    return compile_job(config) if config.job.model is not None else _load(config)


def _load(config: Configuration) -> tuple[Artifact, State]:
    """The artifact and the state that the configuration names, for round 1, cut to the sparsity if so configured."""
    job = config.job
    assert job.artifact is not None
    assert job.state is not None
    try:
        artifact = Artifact.load(job.artifact)
        state = State.load(job.state)
        # Opening a session checks that the two belong together; its Top-K is the one that devices use.
        with Session.open(artifact, state, batch_size=1) as session:
            if job.first_round == "presparsified":
                state = State(session.update(job.sparsity, job.budget).tensors)
            return artifact, State(state.tensors, round=1)
    except OSError as error:
        raise ConfigurationError(f"[job] artifact, state: {error}") from error
    except (FormatError, InputError, MismatchError) as error:
        message = f"[job] artifact {job.artifact}, state {job.state}: {error}"
        raise ConfigurationError(message) from error


def _identity(config: Configuration) -> dict[str, Any]:
    """What may not change while a job runs, as plain values; files by their content."""
    identity: dict[str, Any] = {}
    for table in (config.job, config.training):
        for key in (field.name for field in fields(table)):
            value = getattr(table, key)
            if isinstance(value, Path):
                identity[key] = _content(key, value)
            elif isinstance(value, Mapping):
                identity[key] = dict(value)
            else:
                identity[key] = list(value) if isinstance(value, tuple) else value
    return identity


def _content(key: str, path: Path) -> str:
    try:
        return sha256_hex(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"[job] {key}: {error}") from error
