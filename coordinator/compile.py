"""Artifact and first state of a named model. The only module here that reaches export, and torch with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsyfed.coordinator.config import Configuration
from sparsyfed.coordinator.evaluation import map_array
from sparsyfed.edge_runtime import Artifact, Quantization, State
from sparsyfed.edge_runtime.errors import ConfigurationError

if TYPE_CHECKING:
    from sparsyfed.export import TrainingArtifact


def compile_job(config: Configuration) -> tuple[Artifact, State]:
    """Artifact of `[job] model` and its initial state, dense or presparsified as `first_round` says.

    Raises what `compile_model` raises.
    """
    job = config.job
    assert job.model is not None
    return compile_model(
        job.model,
        input_shape=job.input_shape or _held_out_shape(config.evaluation.x),
        beta=job.beta,
        loss=job.loss,
        sparsity=job.sparsity if job.first_round == "presparsified" else 0.0,
        budget=job.budget,
        seed=job.seed,
    )


def compile_model(
    name: str,
    *,
    seed: int,
    input_shape: Sequence[int] | None = None,
    beta: float = 1.25,
    loss: str = "cross_entropy",
    sparsity: float = 0.0,
    budget: str | Mapping[str, int] = "global",
) -> tuple[Artifact, State]:
    """Artifact of a model for native devices and its initial state; see `compile_training`."""
    artifact, state = compile_training(
        name,
        seed=seed,
        input_shape=input_shape,
        beta=beta,
        loss=loss,
        sparsity=sparsity,
        budget=budget,
    )
    return artifact.native, state


def compile_training(
    name: str,
    *,
    seed: int,
    input_shape: Sequence[int] | None,
    beta: float,
    loss: str,
    sparsity: float,
    budget: str | Mapping[str, int],
    quantization: Quantization | None = None,
) -> tuple["TrainingArtifact", State]:
    """What every target of a model is written from, and its initial state of this sparsity, for round 1.

    `name` is a built-in name or package.module:function; `input_shape` is that of one example and needed for the
    latter. `seed` also seeds PyTorch, since a function may draw values while it builds the model.

    Raises ConfigurationError without the extra `export` and where model or shape can't be found,
    UnsupportedOperationError for a model that the runtime can't train, InputError for a wrong number.
    """
    try:
        import torch  # noqa: PLC0415 - only a job that names a model needs it

        from sparsyfed import export  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"compiling a model needs {error.name}: "
            "pip install 'sparsyfed-edge[export]', or name a compiled artifact"
        ) from error
    torch.manual_seed(seed)
    model = export.models.load_model(name)
    if input_shape is not None:
        example = torch.zeros(1, *input_shape)
    elif ":" not in name:
        example = export.models.example_input(name)
    else:
        raise ConfigurationError(
            f"the shape of one example of {name} is not known: --input-shape, or [job] input_shape"
        )
    artifact = export.compile(model, example, beta=beta, loss=loss, quantization=quantization)
    state = export.initial_state(model, beta=beta, sparsity=sparsity, seed=seed, budget=budget)
    return artifact, State(state.tensors, round=1)


def _held_out_shape(path: Path | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    return map_array(path, "x").shape[1:]
