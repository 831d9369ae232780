from array import array

import numpy as np
import pytest
from session_batches import images, points

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter, Tensor
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind
from sparsyfed.edge_runtime.measurements import MeasuredMemory
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.session import Session
from sparsyfed.edge_runtime.state import SparseTensor, State
from sparsyfed.edge_runtime.update import SparseUpdate


def values(state: State) -> dict[str, list[float]]:
    """Values of a state by name."""
    return {tensor.name: list(tensor.value) for tensor in state.tensors}


def test_training_lowers_the_loss(classifier: Artifact, sparse_state: State) -> None:
    x, y = images(8)
    with Session.open(classifier, sparse_state, batch_size=8) as session:
        losses = [session.step(x, y, learning_rate=0.3) for _ in range(40)]
        loss, correct = session.evaluate(x, y)
    assert losses[-1] < 0.6 * losses[0]
    assert loss < losses[0]
    assert correct is not None
    assert correct >= 6


def test_step_is_sgd_with_weight_decay(classifier: Artifact, sparse_state: State) -> None:
    x, y = images(4)
    rate, decay = 0.25, 0.125
    with Session.open(classifier, sparse_state, batch_size=4) as session:
        before = values(session.state())
        loss, gradients = session.gradients(x, y)
        assert values(session.state()) == before
        assert session.step(x, y, learning_rate=rate, weight_decay=decay) == loss
        after = values(session.state())
    assert set(before) - set(gradients) == {"norm.running_mean", "norm.running_var"}
    for name, gradient in gradients.items():
        v = np.array(before[name], np.float32)
        g = np.frombuffer(gradient, np.float32)
        expected = v - np.float32(rate) * (g + np.float32(decay) * v)
        np.testing.assert_allclose(after[name], expected, rtol=1e-6, atol=1e-7)


def test_same_input_gives_the_same_bytes(classifier: Artifact, sparse_state: State) -> None:
    x, y = images(8)
    encoded = []
    for _ in range(2):
        with Session.open(classifier, sparse_state, batch_size=8) as session:
            for _ in range(3):
                session.step(x, y, learning_rate=0.5)
            encoded.append((session.state().encode(), session.update(0.8).encode()))
    assert encoded[0] == encoded[1]


def test_state_before_training_is_the_one_that_was_opened(
    classifier: Artifact, sparse_state: State, dense_state: State
) -> None:
    for state in (sparse_state, dense_state):
        for source in (state, state.encode()):
            with Session.open(classifier, source, batch_size=2) as session:
                assert session.state() == state


def test_wide_layers_use_wide_columns() -> None:
    model = wide_model()
    weight = SparseTensor(
        "wide.weight", 2, 70_000, array("I", [0, 1, 2]), array("I", [69_999, 3]), array("f", [1, 2])
    )
    state = State((weight,))
    x = np.zeros((1, 70_000), np.float32)
    x[0, 69_999], x[0, 3] = 3.0, 5.0
    with Session.open(model, state, batch_size=1) as session:
        assert session.state() == state
        loss, _ = session.evaluate(x, np.zeros((1, 2), np.float32))
        assert session.update(0.0).tensors == state.tensors
    assert loss == pytest.approx((3.0**2 + 10.0**2) / 2)


def wide_model() -> Artifact:
    """A linear layer of 70,000 inputs and two outputs."""
    return Artifact(
        (Parameter(ParameterKind.WEIGHT, 2, (2, 70_000, 1, 1), "wide.weight"),),
        (Tensor(70_000, 1, 1, 1), Tensor(2, 1, 1, 1)),
        (Operation(OperationKind.LINEAR, (0,), 1, "wide", weight=0),),
        Loss.MEAN_SQUARED_ERROR,
        1,
        1.0,
    )


def test_inputs_of_every_accepted_form_give_the_same_loss(
    classifier: Artifact, sparse_state: State
) -> None:
    x, y = images(4)
    frozen = x.copy()
    frozen.flags.writeable = False
    with Session.open(classifier, sparse_state, batch_size=4) as session:
        expected = session.evaluate(x, y)
        for form in (
            x.ravel(),
            frozen,
            array("f", x.ravel().tolist()),
            memoryview(x.tobytes()).cast("f"),
            memoryview(x.tobytes()).cast("f", (4, 2, 6, 5)),
        ):
            assert session.evaluate(form, y) == expected
        for labels in (y.astype(np.int64), array("i", y.tolist()), array("q", y.tolist())):
            assert session.evaluate(x, labels) == expected


def test_evaluation_in_chunks_is_the_mean_over_the_examples(
    classifier: Artifact, sparse_state: State
) -> None:
    x, y = images(11)
    with Session.open(classifier, sparse_state, batch_size=4) as session:
        loss, correct = session.evaluate(x, y)
        parts = [session.evaluate(x[i : i + 1], y[i : i + 1]) for i in range(11)]
        assert session.counters.evaluation == 22 * plan(classifier, sparse_state, 1).macs.forward
    assert loss == pytest.approx(sum(part[0] for part in parts) / 11, rel=1e-6)
    assert correct == sum(part[1] or 0 for part in parts)


def test_regression_trains_and_counts_no_right_answers(
    regression: Artifact, regression_state: State
) -> None:
    x, y = points(10)
    with Session.open(regression, regression_state, batch_size=16) as session:
        first, correct = session.evaluate(x, y)
        assert correct is None
        assert session.evaluate(x.ravel(), y.ravel()) == (first, None)
        for _ in range(50):
            session.step(x, y, learning_rate=0.1)
        assert session.evaluate(x, y)[0] < 0.8 * first


@pytest.mark.parametrize("budget", ["erk", {"first.weight": 5, "head.weight": 2}])
def test_update_follows_layer_budgets(
    classifier: Artifact, dense_state: State, budget: str | dict[str, int]
) -> None:
    counts = keep_counts(classifier.parameters, 0.8, budget)
    with Session.open(classifier, dense_state, batch_size=4) as session:
        update = session.update(0.8, budget, round=12)
        assert session.update(0.8).round == dense_state.round
    assert update.round == 12
    assert SparseUpdate.decode(update.encode(), base=dense_state) == update
    for tensor, source, count in zip(update.tensors, dense_state.tensors, counts, strict=True):
        if isinstance(tensor, SparseTensor):
            assert tensor.count == count
            assert min(map(abs, tensor.value)) == sorted(map(abs, source.value))[-count]


def test_arena_has_the_planned_size_and_is_used_to_its_end(
    classifier: Artifact, dense_state: State
) -> None:
    planned = plan(classifier, dense_state, 4).arena_bytes
    with Session.open(classifier, dense_state, batch_size=4) as session:
        session.step(*images(4), learning_rate=0.1)
        assert session.memory == MeasuredMemory(planned, planned, None)


def test_two_sessions_do_not_touch_each_other(classifier: Artifact, sparse_state: State) -> None:
    x, y = images(4)
    with (
        Session.open(classifier, sparse_state, batch_size=4) as one,
        Session.open(classifier, sparse_state, batch_size=4) as other,
    ):
        one.step(x, y, learning_rate=0.5)
        assert other.state() == sparse_state
        assert one.state() != sparse_state
