"""Artifact and first state of a job that names a model. The only module here that reaches export, and torch with it."""

from pathlib import Path

import numpy as np

from sparsyfed.coordinator.config import Configuration
from sparsyfed.edge_runtime import Artifact, State
from sparsyfed.edge_runtime.errors import ConfigurationError


def compile_job(config: Configuration) -> tuple[Artifact, State]:
    """Artifact of `[job] model` and its initial state, dense or presparsified as `first_round` says.

    Raises ConfigurationError without the extra `export` and where model or shape can't be found,
    UnsupportedOperationError for a model that the runtime can't train.
    """
    try:
        import torch  # noqa: PLC0415 - only a job that names a model needs it

        from sparsyfed import export  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"[job] model: compiling a model needs {error.name}: "
            "pip install 'sparsyfed-edge[export]', or name a compiled artifact"
        ) from error
    job = config.job
    assert job.model is not None
    model = export.models.load_model(job.model)
    shape = job.input_shape or _held_out_shape(config.evaluation.x)
    if shape is not None:
        example = torch.zeros(1, *shape)
    elif ":" not in job.model:
        example = export.models.example_input(job.model)
    else:
        raise ConfigurationError(
            f"[job] input_shape: got nothing, wanted the shape of one example of {job.model}"
        )
    artifact = export.compile(model, example, beta=job.beta, loss=job.loss)
    sparsity = job.sparsity if job.first_round == "presparsified" else 0.0
    state = export.initial_state(
        model, beta=job.beta, sparsity=sparsity, seed=job.seed, budget=job.budget
    )
    return artifact.native, state


def _held_out_shape(path: Path | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        shape: tuple[int, ...] = np.load(path, mmap_mode="r", allow_pickle=False).shape[1:]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"[evaluation] x: {path}: {error}") from error
    return shape
