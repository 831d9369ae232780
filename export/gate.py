"""The gate of every export: loss, gradients, statistics and evaluation against the eager reference.

The truth is the reference in float64, at states with zeros, at three sets of keep counts that differ from layer to
layer, in training mode. One set is for a batch of one example, of which the first layer keeps nothing and the last all.

In a deep net float32 itself may be far from float64: a rounding error turns a rectifier or moves an activation over
the threshold of Top-K, and all gradients below change by percents. That is a matter of luck: an engine that is right
passes `STRICT` on one of a few batches, one that is wrong on none. Where the reference in float32, as it is and with
its inputs perturbed in the last bits, is off on all of them as well, the engine may be as far off as a small multiple
of that, and never further than `LOOSE`.
"""

import copy
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sparsyfed.edge_runtime.errors import VerificationError
from sparsyfed.edge_runtime.format import ParameterKind
from sparsyfed.edge_runtime.graph_names import GRADIENT, NEW_STATE, STATE
from sparsyfed.edge_runtime.kept_inputs import input_sizes
from sparsyfed.export.powerprop import keep_largest, method_of, reference
from sparsyfed.export.states import initial_state, load_state
from sparsyfed.export.training_artifact import TrainingArtifact

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""One exported step: from the inputs of a `JointGraph` to its outputs, by name."""

STRICT = 1e-5
"""Relative error of loss and statistics, and of gradients where the reference is quiet."""
LOOSE = 2e-2
"""Relative error of a gradient that is never let through."""
NOISE_FACTOR = 4.0
"""How much further off than the reference in float32 an engine may be: it adds up in another order."""
CANCELLED = 1e-2
"""Share of the norm of all gradients below which a gradient's error is relative to that share: what remains of sums
that cancel, such as the gradient of a bias before a batch norm, is rounding."""

_PERTURBATIONS = 3
_LAST_BITS = 2.0**-22
_BATCHES = 6
_KEEP_SHARES = ((0.4, 5), (0.1, 4), (0.2, 1))
"""The largest share of inputs kept by any layer, and the examples of the batch."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What the gate measured: relative errors of an exported step, and those of float32 PyTorch beside them."""

    loss_error: float
    median_error: float
    worst_error: float
    worst_parameter: str
    median_noise: float
    worst_noise: float


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of a step, the outputs that they must give (float64), and the noise of float32 there."""

    inputs: dict[str, Tensor]
    wanted: dict[str, Tensor]
    weights: tuple[str, ...]
    """The names of the prunable weights."""
    median_noise: float
    worst_noise: float


class Cases:
    """The steps that the gate compares, made when they are asked for."""

    def __init__(self, artifact: TrainingArtifact, seed: int = 0) -> None:
        self._artifact, self._seed = artifact, seed
        self._made: dict[tuple[int, int], Case] = {}

    def case(self, place: int, batch: int) -> Case:
        """Return one of the batches for one of the sets of keep counts."""
        if (place, batch) not in self._made:
            # Values of their own: a weight that was folded into the graph is right for one of them at most.
            seed = self._seed + len(_KEEP_SHARES) * batch + place
            self._made[place, batch] = _case(self._artifact, *_KEEP_SHARES[place], seed)
        return self._made[place, batch]


def verify(cases: Cases, run: Run, target: str) -> Verification:
    """Return the largest errors of `run`, an exported step that gives gradients.

    Raises VerificationError, which names `target`, the parameter and the error, if an output is missing, not finite
    or too far from the reference, or if a zero of v has a gradient.
    """
    results = [_verified_at(cases, place, run, target) for place in range(len(_KEEP_SHARES))]
    return max(results, key=lambda result: result.worst_error)


def _verified_at(cases: Cases, place: int, run: Run, target: str) -> Verification:
    """The result on the first batch that passes strictly, else on the one that comes closest to its limit."""
    results = []
    for batch in range(_BATCHES):
        case = cases.case(place, batch)
        got = run(case.inputs)
        _check_names(case.wanted, got, target)
        _check_zeros(case, got, target)
        results.append(_compared(case, got, target))
        if results[-1].worst_error <= STRICT:
            return results[-1]
    best = min(results, key=lambda result: result.worst_error / _limit(result.worst_noise))
    _require(best.worst_error, _limit(best.worst_noise), best.worst_parameter, target)
    _require(best.median_error, _limit(best.median_noise), "the median of all gradients", target)
    return best


def verify_evaluation(artifact: TrainingArtifact, cases: Cases, run: Run, target: str) -> None:
    """Compare `run`, an exported evaluation, with the reference in evaluation mode: loss and right answers.

    Raises VerificationError, which names `target`.
    """
    for place in range(len(_KEEP_SHARES)):
        case = cases.case(place, 0)
        got = run(case.inputs)
        with torch.no_grad():
            model = _with_state(artifact, case.inputs, torch.float64).eval()
            output = model(case.inputs["x"].double())
            loss = artifact.loss_of(output, _targets(artifact, case.inputs, torch.float64))
        _require(_distance(loss, got["loss"]) / float(loss.norm()), STRICT, "loss", target)
        if artifact.loss == "cross_entropy":
            right = int((output.argmax(1) == case.inputs["y"]).sum())
            if int(got["correct"]) != right:
                raise VerificationError(
                    f"{target}: {int(got['correct'])} right answers, wanted {right}"
                )


def gradients_of_sgd(artifact: TrainingArtifact, run: Run) -> Run:
    """Return a step that gives gradients, from one that applies them with the rates of `add_sgd`.

    The rates are powers of two, so large that the gradients keep their digits in the new values.
    """
    rate, decay = 2.0**10, 2.0**-11
    trained = [p.name for p in artifact.native.parameters if p.kind is not ParameterKind.STATISTIC]

    def gradients(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rates = {
            "learning_rate": torch.tensor(rate, dtype=torch.float32),
            "weight_decay": torch.tensor(decay, dtype=torch.float32),
        }
        results = dict(run({**inputs, **rates}))
        for name in trained:
            if NEW_STATE + name in results:
                old, new = inputs[STATE + name].double(), results.pop(NEW_STATE + name).double()
                results[GRADIENT + name] = (old - new) / rate - decay * old
        return results

    return gradients


@torch.inference_mode(False)  # whatever the caller is in: gradients are wanted
def _case(artifact: TrainingArtifact, share: float, examples: int, seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    inputs = _state(artifact, seed, generator)
    inputs["x"] = _normal((examples, *artifact.input_shape), generator)
    shape = artifact.native.tensors[artifact.native.output].shape
    if artifact.loss == "mse":
        inputs["y"] = _normal((examples, *shape), generator)
    else:
        inputs["y"] = torch.randint(shape[0], (examples,), generator=generator)
    inputs["keep"] = _keep(artifact, share, examples)
    wanted = eager_step(artifact, inputs, torch.float64)
    noise = []
    for turn in range(1 + _PERTURBATIONS):
        perturbed = _perturbed(inputs, generator) if turn else inputs
        errors = gradient_errors(wanted, eager_step(artifact, perturbed, torch.float32))
        noise.append((statistics.median(errors.values()), max(errors.values())))
    weights = tuple(artifact.native.parameters[i].name for i in artifact.native.prunable)
    return Case(inputs, wanted, weights, *(max(column) for column in zip(*noise, strict=True)))


def _state(artifact: TrainingArtifact, seed: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Initial v with zeros, more of them from layer to layer; random dense parameters and statistics."""
    model = copy.deepcopy(artifact.model).cpu()
    load_state(model, initial_state(model, artifact.beta, seed=seed))
    values = model.state_dict()
    densities = iter(torch.linspace(0.9, 0.3, len(artifact.native.prunable)).tolist())
    state = {}
    for parameter in artifact.native.parameters:
        value = values[parameter.name]
        noise = _uniform(value.shape, generator)
        if parameter.kind is ParameterKind.WEIGHT:
            value *= noise < next(densities)
        else:
            value = 0.5 + noise
        state[STATE + parameter.name] = value
    return state


def _keep(artifact: TrainingArtifact, share: float, examples: int) -> Tensor:
    """Counts of which no two layers' shares are equal, so that layers cannot be swapped unseen."""
    sizes = input_sizes(artifact.native)
    shares = torch.linspace(share, share / 2, len(sizes)).tolist()
    counts = [
        max(1, round(part * size * examples)) for part, size in zip(shares, sizes, strict=True)
    ]
    if examples == 1:
        counts[0], counts[-1] = 0, sizes[-1]
    return torch.tensor(counts)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float32)


def _perturbed(inputs: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The inputs with every number changed in its last bits, zeros kept."""
    return {
        name: value * (1 + _LAST_BITS * (_uniform(value.shape, generator) - 0.5))
        if name == "x" or name.startswith(STATE)
        else value
        for name, value in inputs.items()
    }


def eager_step(
    artifact: TrainingArtifact, inputs: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the outputs of a training graph as the eager reference computes them in `dtype`."""
    model = _with_state(artifact, inputs, dtype).train()
    values = model.state_dict()
    for index, count in zip(artifact.native.prunable, inputs["keep"].tolist(), strict=True):
        method = method_of(model, artifact.native.parameters[index].name)
        method.prune = partial(keep_count_largest, count=count)
    loss = artifact.loss_of(model(inputs["x"].to(dtype)), _targets(artifact, inputs, dtype))
    torch.autograd.backward(loss)
    results = {"loss": loss.detach()}
    for name, value in model.named_parameters():
        assert value.grad is not None
        results[GRADIENT + name] = value.grad
    for parameter in artifact.native.parameters:
        if parameter.kind is ParameterKind.STATISTIC:
            results[NEW_STATE + parameter.name] = values[parameter.name]
    return results


def _with_state(
    artifact: TrainingArtifact, inputs: Mapping[str, Tensor], dtype: torch.dtype
) -> nn.Module:
    model = reference(artifact.model, artifact.beta).cpu().to(dtype)
    values = model.state_dict()
    for parameter in artifact.native.parameters:
        values[parameter.name].copy_(inputs[STATE + parameter.name])
    return model


def _targets(
    artifact: TrainingArtifact, inputs: Mapping[str, Tensor], dtype: torch.dtype
) -> Tensor:
    return inputs["y"].to(dtype) if artifact.loss == "mse" else inputs["y"]


def keep_count_largest(x: Tensor, _: Tensor, count: int) -> Tensor:
    """Return x pruned to a count that was given, for `Method.prune`."""
    return keep_largest(x, count)


def gradient_errors(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the relative error |got - wanted| / |wanted| of each gradient (L2 norms, see CANCELLED)."""
    names = [name for name in wanted if name.startswith(GRADIENT)]
    norms = {name: float(wanted[name].norm()) for name in names}
    floor = CANCELLED * math.hypot(*norms.values())
    return {
        name: _distance(wanted[name], got[name]) / max(norms[name], floor, sys.float_info.min)
        for name in names
    }


def _distance(wanted: Tensor, got: Tensor) -> float:
    distance = float((got.double() - wanted).norm())
    return distance if math.isfinite(distance) else math.inf


def _compared(case: Case, got: Mapping[str, Tensor], target: str) -> Verification:
    for name, value in case.wanted.items():
        if not name.startswith(GRADIENT):
            error = _distance(value, got[name]) / max(float(value.norm()), sys.float_info.min)
            _require(error, STRICT, name, target)
    errors = gradient_errors(case.wanted, got)
    worst = max(errors, key=lambda name: errors[name])
    loss_error = _distance(case.wanted["loss"], got["loss"]) / float(case.wanted["loss"].norm())
    return Verification(
        loss_error,
        statistics.median(errors.values()),
        errors[worst],
        worst,
        case.median_noise,
        case.worst_noise,
    )


def _limit(noise: float) -> float:
    return min(max(STRICT, NOISE_FACTOR * noise), LOOSE)


def _require(error: float, limit: float, name: str, target: str) -> None:
    if not error <= limit:
        raise VerificationError(
            f"{target}: {name} has a relative error of {error:.2g} against the eager reference, wanted {limit:.2g} "
            "at most: the export is wrong, do not ship it"
        )


def _check_names(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor], target: str) -> None:
    missing, unknown = sorted(wanted.keys() - got.keys()), sorted(got.keys() - wanted.keys())
    if missing or unknown:
        raise VerificationError(
            f"{target}: the step lacks {', '.join(missing) or 'nothing'} and has besides "
            f"{', '.join(unknown) or 'nothing'}: the export is wrong, do not ship it"
        )
    for name, value in wanted.items():
        if got[name].shape != value.shape:
            raise VerificationError(
                f"{target}: {name} has shape {tuple(got[name].shape)}, wanted {tuple(value.shape)}"
            )


def _check_zeros(case: Case, got: Mapping[str, Tensor], target: str) -> None:
    for name, value in got.items():
        if not torch.isfinite(value).all():
            raise VerificationError(f"{target}: {name} holds a value that is not finite")
    for name in case.weights:
        v, gradient = case.inputs[STATE + name], got[GRADIENT + name]
        if bool((gradient[v == 0] != 0).any()):
            raise VerificationError(
                f"{target}: {GRADIENT}{name} is not zero everywhere v is: pruned weights would come back"
            )
