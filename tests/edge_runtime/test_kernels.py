"""Every set of native kernels against the NumPy reference in double precision, on clear cases."""

from array import array
from functools import partial
from typing import Any

import numpy as np
import pytest
from clear_cases import Case, clear_case, states_of
from model_strategies import (
    ARCHITECTURES,
    Model,
    ModelBuilder,
    random_model,
    random_state,
)
from odd_models import odd_model
from operation_cases import OPERATION_CASES, TIE_CASES, operation_case, tie_case

from sparsyfed.edge_runtime.artifact import Tensor
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind
from sparsyfed.edge_runtime.kernels import KERNELS_VARIABLE, available_kernels
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.reference import ReferenceModel
from sparsyfed.edge_runtime.session import Session

GRADIENT_BOUND = 1e-4
TRAINING_BOUND = 1e-4
DENSITIES = [1.0, 0.1, 0.05, 0.001]


@pytest.fixture(autouse=True, params=available_kernels())
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set of kernels that this processor runs, in turn."""
    monkeypatch.setenv(KERNELS_VARIABLE, request.param)


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
    # A gradient may be zero but for rounding, such as that of a bias before a batch norm, or nearly.
    floor = 4e-2 * np.sqrt(sum(np.sum(gradient**2) for gradient in wanted.values()))
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
    for examples in (1, 6, 21):
        # Wide enough that ReLU6 has both of its ends.
        assert_same_gradients(clear_case(states_of(artifact, densities), examples, scale=4))


@pytest.mark.parametrize("case", [name for name in OPERATION_CASES if "batch norm" in name])
def test_batch_norm_over_whole_words_of_a_mask(case: str) -> None:
    for examples in (16, 32):
        assert_same_gradients(clear_case(states_of(operation_case(case), 1.0), examples, scale=4))


@pytest.mark.parametrize("examples", [6, 16, 17, 39])
@pytest.mark.parametrize("case", TIE_CASES)
def test_ties_and_edges_are_decided_as_in_the_reference(case: str, examples: int) -> None:
    assert_same_gradients(Case(*tie_case(case, examples)))


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
    for examples in (1, 2, 3, 5, 13, 16, 17, 32, 33, 64):
        assert_same_gradients(
            clear_case(partial(random_model, architecture, density=0.1), examples)
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_partial_batch_has_its_own_top_k(architecture: str) -> None:
    for examples, batch_size in ((1, 16), (6, 16), (15, 16), (16, 40), (20, 40), (39, 40)):
        case = clear_case(partial(random_model, architecture, density=0.1), examples)
        assert_same_gradients(case, batch_size)


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


def test_an_input_that_is_only_reshaped_needs_no_gradient() -> None:
    net = ModelBuilder(Tensor(6, 1, 8, 2))
    x = net.reshape(0, Tensor(6, 2, 4, 3))
    x = net.activation(net.convolution(x, 4, (2, 2), bias=True), OperationKind.SILU)
    net.linear(net.reshape(x), 3)
    artifact = net.finish(Loss.CROSS_ENTROPY)
    case = clear_case(states_of(artifact, 0.5), 5)
    assert_same_gradients(case)
    linear = case.model.state.tensors[-2]
    assert plan(artifact, case.model.state, 5).macs.d_input == 5 * linear.count


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
