"""The native kernels against the NumPy reference in double precision.

Rectifiers, max pools and the Top-K of saved inputs decide: where single and double precision decide
differently, gradients differ by more than rounding, and both are right. So model and batch are
drawn anew until every decision of the reference has a clear margin.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from model_strategies import (
    ARCHITECTURES,
    Floats,
    Model,
    ModelBuilder,
    random_model,
    random_state,
)
from numpy.typing import NDArray
from odd_models import odd_model
from operation_cases import OPERATION_CASES, TIE_CASES, operation_case, tie_case

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Tensor
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind
from sparsyfed.edge_runtime.plan import MultiplyAdds, plan
from sparsyfed.edge_runtime.reference import ReferenceModel
from sparsyfed.edge_runtime.session import Session
from sparsyfed.edge_runtime.state import SparseTensor

GRADIENT_BOUND = 1e-4
TRAINING_BOUND = 1e-4
MARGIN = 2e-6  # of the largest value of a tensor: some ten times the error of single precision
DENSITIES = [1.0, 0.1, 0.05, 0.001]


def gap(ordered: NDArray[Any], keep: int) -> float:
    """Return the distance between the last value kept and the first one dropped.

    Equal entries come from equal computations, in any precision: then the position decides.
    """
    if not 0 < keep < ordered.size or ordered[keep - 1] in (0.0, ordered[keep]):
        return np.inf
    return float(ordered[keep - 1] - ordered[keep])


def nearest(values: NDArray[Any], threshold: float) -> float:
    """Return the distance to a threshold of the value that is nearest to it, but not on it."""
    distance = np.abs(values - threshold)
    return float(distance[distance > 0].min(initial=np.inf))


def pool_gap(operation: Operation, x: NDArray[Any]) -> float:
    """Return the least distance between the largest value of a window and the next other one."""
    rows, columns = operation.padding
    border = ((0, 0), (0, 0), (rows, rows), (columns, columns))
    padded = np.pad(x, border, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, operation.kernel, axis=(2, 3))
    windows = windows[:, :, :: operation.stride[0], :: operation.stride[1]]
    windows = windows.reshape(-1, operation.kernel[0] * operation.kernel[1])
    below = windows.max(axis=1, keepdims=True) - windows
    return float(below[below > 0].min(initial=np.inf))


def decision_margin(reference: ReferenceModel) -> float:
    """Return the least distance of the last forward to another decision, as a share of the tensor."""
    least = np.inf
    for operation in reference.artifact.operations:
        x = reference.activations[operation.inputs[0]]
        distance = np.inf
        if operation.kind in (OperationKind.CONVOLUTION, OperationKind.LINEAR):
            assert operation.weight is not None
            ordered = np.sort(np.abs(x), axis=None)[::-1]
            distance = gap(ordered, reference.keep_count(operation.weight, x.size))
        elif operation.kind is OperationKind.RELU:
            distance = nearest(x, 0)
        elif operation.kind is OperationKind.RELU6:
            distance = min(nearest(x, 0), nearest(x, 6))
        elif operation.kind is OperationKind.MAX_POOL:
            distance = pool_gap(operation, x)
        least = min(least, distance / (np.abs(x).max() + 1e-30))
    return least


@dataclass(frozen=True)
class Case:
    """A model and a batch for which every decision has a margin."""

    model: Model
    x: Floats
    y: NDArray[Any]


def clear_case(
    draw: Callable[[int], Model], examples: int, seed: int = 0, scale: float = 1
) -> Case:
    """Return the first model drawn from `seed` on, with a batch, whose decisions are clear."""
    for number in range(seed, seed + 200):
        model = draw(number)
        x, y = model.batch(np.random.default_rng(number), examples)
        x *= scale
        reference = ReferenceModel(model.artifact, model.state)
        reference.forward(x, training=True)
        if decision_margin(reference) > MARGIN:
            return Case(model, x, y)
    raise AssertionError("no batch of clear decisions was found: make the model smaller")


def states_of(artifact: Artifact, density: float | list[float]) -> Callable[[int], Model]:
    """Return a way to draw states for this artifact."""
    return lambda seed: Model(
        artifact, random_state(artifact, np.random.default_rng(seed), density)
    )


def assert_close(got: Any, wanted: Any, bound: float, what: str, floor: float = 0.0) -> None:
    """Bound the relative error in norm; what is smaller than the floor counts as that large."""
    got, wanted = np.asarray(got, np.float64).ravel(), np.asarray(wanted, np.float64).ravel()
    scale = max(float(np.linalg.norm(wanted)), floor)
    error = float(np.linalg.norm(got - wanted))
    assert error <= bound * scale, f"{what}: error {error:.3g} of {scale:.3g}"


def assert_same_gradients(
    case: Case, batch_size: int | None = None, bound: float = GRADIENT_BOUND
) -> None:
    model, x, y = case.model, case.x, case.y
    reference = ReferenceModel(model.artifact, model.state)
    wanted_loss, wanted = reference.gradients(x, y)
    with Session.open(model.artifact, model.state, batch_size or len(x)) as session:
        loss, got = session.gradients(x, y)
        assert session.state() == model.state
    assert_close(loss, wanted_loss, 1e-5, "loss", floor=0.1)
    # A gradient may be zero but for rounding, such as that of a bias before a batch norm.
    floor = 1e-2 * np.sqrt(sum(np.sum(gradient**2) for gradient in wanted.values()))
    assert got.keys() == wanted.keys()
    for parameter, support in zip(model.artifact.parameters, reference.supports, strict=True):
        if parameter.kind is not ParameterKind.STATISTIC:
            gradient = wanted[parameter.name]
            at_support = gradient if support is None else gradient[support]
            assert_close(got[parameter.name], at_support, bound, parameter.name, floor)


def assert_same_values(session: Session, reference: ReferenceModel, bound: float) -> None:
    for tensor, value, support in zip(
        session.state().tensors, reference.values, reference.supports, strict=True
    ):
        wanted = value if support is None else value[support]
        assert_close(tensor.value, wanted, bound, tensor.name)


@pytest.mark.parametrize("case", OPERATION_CASES)
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_each_operation_has_the_gradients_of_the_reference(case: str, density: float) -> None:
    artifact = operation_case(case)
    # The first layer is dense: a norm makes much of the rounding in a channel that is constant.
    densities = [1.0, *[density] * (len(artifact.prunable) - 1)]
    for examples in (1, 6):
        # Wide enough that ReLU6 has both of its ends.
        assert_same_gradients(clear_case(states_of(artifact, densities), examples, scale=4))


@pytest.mark.parametrize("case", TIE_CASES)
def test_ties_and_edges_are_decided_as_in_the_reference(case: str) -> None:
    assert_same_gradients(Case(*tie_case(case)))


@pytest.mark.parametrize("seed", range(40))
def test_odd_geometry_has_the_gradients_and_the_evaluation_of_the_reference(seed: int) -> None:
    case = clear_case(states_of(odd_model(seed), (1.0, 0.5)[seed % 4 // 2]), 3)
    # Norms over two or three values, one after the other, make much of rounding.
    assert_same_gradients(case, batch_size=4, bound=10 * GRADIENT_BOUND)
    wanted = ReferenceModel(case.model.artifact, case.model.state).evaluate(case.x, case.y)
    with Session.open(case.model.artifact, case.model.state, 4) as session:
        loss, correct = session.evaluate(case.x, case.y)
    assert_close(loss, wanted[0], 1e-5, "loss", floor=0.1)
    assert correct == wanted[1]


@pytest.mark.parametrize("empty", [False, True], ids=["", "empty layer"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_the_reference(
    architecture: str, density: float, empty: bool
) -> None:
    for seed in (0, 1000, 2000):
        case = clear_case(
            partial(random_model, architecture, density=density, empty=empty), 8, seed
        )
        assert_same_gradients(case)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_agree_at_every_batch_size(architecture: str) -> None:
    for examples in (1, 2, 3, 5, 13, 16, 17, 33):
        assert_same_gradients(
            clear_case(partial(random_model, architecture, density=0.1), examples)
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_partial_batch_has_its_own_top_k(architecture: str) -> None:
    for examples in (1, 6, 15):
        case = clear_case(partial(random_model, architecture, density=0.1), examples)
        assert_same_gradients(case, batch_size=16)


@pytest.mark.parametrize("empty", [False, True], ids=["", "empty layer"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_twenty_steps_are_those_of_the_reference(
    architecture: str, density: float, empty: bool
) -> None:
    rng = np.random.default_rng(2)
    artifact = random_model(architecture, 11, density).artifact
    densities = [density] * len(artifact.prunable)
    if empty:
        densities[1] = 0.0
    model = Model(artifact, random_state(artifact, rng, densities, stored_zeros=True))
    reference = ReferenceModel(artifact, model.state)
    with Session.open(artifact, model.state, 8) as session:
        for step in range(20):
            x, y = model.batch(rng, 8 if step % 5 else 3)
            loss = session.step(x, y, learning_rate=0.02, weight_decay=1e-3)
            assert_close(loss, reference.step(x, y, 0.02, 1e-3), 1e-3, f"loss of step {step}")
        assert_same_values(session, reference, TRAINING_BOUND)
        trained = session.state()
        assert trained.support_id == model.state.support_id
        for before, after in zip(model.state.tensors, trained.tensors, strict=True):
            zeros = np.asarray(before.value) == 0
            assert not np.asarray(after.value)[zeros].any()


def test_running_statistics_take_the_unbiased_variance() -> None:
    model = random_model("residual", 1, 0.5)
    reference = ReferenceModel(model.artifact, model.state)
    x, y = model.batch(np.random.default_rng(0), 3)
    with Session.open(model.artifact, model.state, 4) as session:
        session.step(x, y, learning_rate=0.0)
        reference.step(x, y, 0.0)
        assert_same_values(session, reference, 1e-6)
        assert session.state() != model.state


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_evaluation_is_that_of_the_reference(architecture: str) -> None:
    model = random_model(architecture, 4, 0.3)
    reference = ReferenceModel(model.artifact, model.state)
    x, y = model.batch(np.random.default_rng(0), 19)
    wanted_loss, wanted_correct = reference.evaluate(x, y)
    with Session.open(model.artifact, model.state, 8) as session:
        loss, correct = session.evaluate(x, y)
        assert session.state() == model.state
    assert_close(loss, wanted_loss, 1e-5, "loss", floor=0.1)
    assert correct == wanted_correct


@pytest.mark.parametrize("budget", ["global", "erk"])
def test_an_update_is_the_top_k_of_the_reference_with_its_ties(budget: str) -> None:
    model = random_model("mlp", 3, 0.6)
    values = []
    for tensor in model.state.tensors:
        coarse = np.sign(tensor.value) * np.ceil(np.abs(tensor.value) * 4) / 4
        coarse[::5] = 0
        values.append(array("f", coarse.astype(np.float32).tobytes()))
    state = model.state.with_values(values)
    reference = ReferenceModel(model.artifact, state)
    for sparsity in (0.0, 0.5, 0.7, 0.9):
        with Session.open(model.artifact, state, 4) as session:
            update = session.update(sparsity, budget)
        counts = keep_counts(model.artifact.parameters, sparsity, budget)
        wanted = reference.top_k(counts[0] if budget == "global" else counts)
        for name, value in wanted.items():
            np.testing.assert_array_equal(update.csr()[name].toarray(), value.astype(np.float32))
        assert update.nonzeros == sum(np.count_nonzero(value) for value in wanted.values())


def brute_force_work(model: Model) -> tuple[int, int, int]:
    """Count the multiply-adds of one example, one by one: forward, input and weight gradients."""
    artifact = model.artifact
    forward = d_input = 0
    for operation in artifact.operations:
        if operation.kind not in (OperationKind.CONVOLUTION, OperationKind.LINEAR):
            continue
        assert operation.weight is not None
        tensor = model.state.tensors[operation.weight]
        work = tensor.count
        if operation.kind is OperationKind.CONVOLUTION:
            assert isinstance(tensor, SparseTensor)
            work = sum(pixels_read(artifact, operation, column) for column in tensor.column)
        forward += work
        d_input += work if depends_on_parameters(artifact, operation.inputs[0]) else 0
    return forward, d_input, forward


def pixels_read(artifact: Artifact, operation: Operation, column: int) -> int:
    """Count the output pixels that read inside the image at this column of the weight."""
    source, output = artifact.tensors[operation.inputs[0]], artifact.tensors[operation.output]
    place = column % (operation.kernel[0] * operation.kernel[1])
    offset = divmod(place, operation.kernel[1])
    count = 0
    for row in range(output.height):
        for pixel in range(output.width):
            y, x = (
                at * operation.stride[i] - operation.padding[i] + offset[i] * operation.dilation[i]
                for i, at in enumerate((row, pixel))
            )
            count += 0 <= y < source.height and 0 <= x < source.width
    return count


def depends_on_parameters(artifact: Artifact, tensor: int) -> bool:
    """Return whether a trainable parameter has touched this tensor."""
    if tensor == 0:
        return False
    operation = artifact.operations[tensor - 1]
    return (
        operation.weight is not None
        or operation.bias is not None
        or any(depends_on_parameters(artifact, source) for source in operation.inputs)
    )


@pytest.mark.parametrize("density", [1.0, 0.1, 0.001])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_plan_is_what_a_session_uses_and_does(architecture: str, density: float) -> None:
    rng = np.random.default_rng(0)
    for seed in range(4):
        model = random_model(architecture, seed, density, empty=seed == 3)
        batch_size = int(rng.integers(1, 34))
        planned = plan(model.artifact, model.state, batch_size)
        x, y = model.batch(rng, batch_size)
        with Session.open(model.artifact, model.state, batch_size) as session:
            for _ in range(3):
                session.step(x, y, learning_rate=0.01)
            session.evaluate(x, y)
            counters = session.counters
            assert session.memory.arena_bytes == planned.arena_bytes
            assert session.memory.arena_peak_bytes == planned.arena_bytes
        macs = (planned.macs.forward, planned.macs.d_input, planned.macs.d_weight)
        assert macs == tuple(batch_size * work for work in brute_force_work(model))
        done = (counters.forward, counters.d_input, counters.d_weight)
        assert done == tuple(3 * work for work in macs)
        assert (counters.steps, counters.evaluation) == (3, planned.macs.forward)


@pytest.mark.parametrize("seed", range(40))
def test_the_plan_counts_the_work_of_odd_geometry(seed: int) -> None:
    model = states_of(odd_model(seed), 0.5)(seed)
    work = MultiplyAdds(*(3 * count for count in brute_force_work(model)))
    assert plan(model.artifact, model.state, 3).macs == work


def test_partial_batches_count_their_own_work() -> None:
    model = random_model("depthwise", 0, 0.2)
    forward, d_input, d_weight = brute_force_work(model)
    with Session.open(model.artifact, model.state, 8) as session:
        for examples in (8, 3):
            session.step(*model.batch(np.random.default_rng(0), examples), learning_rate=0.01)
        counters = session.counters
    done = (counters.forward, counters.d_input, counters.d_weight)
    assert done == (11 * forward, 11 * d_input, 11 * d_weight)


def test_an_input_that_is_only_reshaped_needs_no_gradient() -> None:
    net = ModelBuilder(Tensor(6, 1, 8, 2))
    x = net.reshape(0, Tensor(6, 2, 4, 3))
    x = net.activation(net.convolution(x, 4, (2, 2), bias=True), OperationKind.SILU)
    net.linear(net.reshape(x), 3)
    artifact = net.finish(Loss.CROSS_ENTROPY)
    case = clear_case(states_of(artifact, 0.5), 5)
    assert_same_gradients(case)
    assert plan(artifact, case.model.state, 5).macs.d_input == 5 * brute_force_work(case.model)[1]


def test_a_layer_of_more_columns_than_two_bytes_can_name() -> None:
    net = ModelBuilder(Tensor(66000, 1, 1, 1))
    net.linear(net.activation(net.linear(0, 4), OperationKind.GELU), 3)
    artifact = net.finish()
    assert_same_gradients(clear_case(states_of(artifact, [0.001, 1.0]), 2))


def test_a_tensor_read_by_several_operations_sums_its_gradients() -> None:
    net = ModelBuilder(Tensor(3, 6, 6, 3))
    x = net.convolution(0, 4, (3, 3), padding=(1, 1))
    a = net.activation(x, OperationKind.SILU)
    b = net.convolution(x, 4, (1, 1), bias=True)
    c = net.group_norm(x, 2)
    total = net.add(net.add(net.add(a, b), net.add(c, x)), net.add(x, x))
    net.linear(net.reshape(net.pool(total, OperationKind.AVERAGE_POOL, (2, 2), stride=(2, 2))), 3)
    artifact = net.finish()
    for density in (1.0, 0.2):
        for examples in (1, 4):
            assert_same_gradients(clear_case(states_of(artifact, density), examples))
