import math
import re
from array import array
from typing import Any

import numpy as np
import pytest

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter, Tensor
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.errors import (
    ArenaError,
    BackendError,
    DivergedError,
    InputError,
    MismatchError,
)
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.session import MeasuredMemory, Session
from sparsyfed.edge_runtime.state import SparseTensor, State
from sparsyfed.edge_runtime.update import SparseUpdate

Batch = tuple[np.ndarray, np.ndarray]


def images(count: int, seed: int = 0) -> Batch:
    """Noise images of the classifier's shape, whose mean shifts with the label."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count, dtype=np.int32)
    noise = generator.normal(size=(count, 2, 6, 5))
    return (noise + labels[:, None, None, None]).astype(np.float32), labels


def points(count: int, seed: int = 0) -> Batch:
    """Inputs and targets of the regression."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 5)).astype(np.float32)
    return x, np.ascontiguousarray(x[:, :2] * 2)


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


BAD_BATCHES: dict[str, tuple[Any, Any, str]] = {
    "float64": (np.zeros((2, 2, 6, 5)), np.zeros(2, np.int32), "float64"),
    "other shape": (np.zeros((2, 6, 5, 2), np.float32), np.zeros(2, np.int32), r"\(2, 6, 5, 2\)"),
    "not contiguous": (
        np.zeros((2, 2, 6, 10), np.float32)[..., ::2],
        np.zeros(2, np.int32),
        "contiguous",
    ),
    "part of an example": (np.zeros(61, np.float32), np.zeros(1, np.int32), r"\(61,\)"),
    "empty": (np.zeros((0, 2, 6, 5), np.float32), np.zeros(0, np.int32), "at least one"),
    "no buffer": ([0.0] * 60, np.zeros(1, np.int32), "list"),
    "too many": (np.zeros((5, 2, 6, 5), np.float32), np.zeros(5, np.int32), "wanted 4 at most"),
    "too few labels": (np.zeros((2, 2, 6, 5), np.float32), np.zeros(1, np.int32), r"\(1,\)"),
    "labels of two dimensions": (
        np.zeros((2, 2, 6, 5), np.float32),
        np.zeros((2, 1), np.int32),
        r"\(2, 1\)",
    ),
    "float labels": (np.zeros((2, 2, 6, 5), np.float32), np.zeros(2, np.float32), "float32"),
    "unsigned labels": (
        np.zeros((2, 2, 6, 5), np.float32),
        np.zeros(2, np.uint32),
        "int32 or int64",
    ),
    "short labels": (np.zeros((2, 2, 6, 5), np.float32), np.zeros(2, np.int16), "int32 or int64"),
    "not a number": (
        np.full((2, 2, 6, 5), np.nan, np.float32),
        np.zeros(2, np.int32),
        "not finite",
    ),
    "infinite": (np.full((2, 2, 6, 5), np.inf, np.float32), np.zeros(2, np.int32), "not finite"),
    "label too high": (np.zeros((2, 2, 6, 5), np.float32), np.array([0, 3], np.int32), "label"),
    "label beyond 32 bits": (
        np.zeros((2, 2, 6, 5), np.float32),
        np.array([0, 2**32], np.int64),
        "label",
    ),
    "off its alignment": (
        memoryview(bytearray(4 * 120 + 4))[1:-3].cast("f"),
        np.zeros(2, np.int32),
        "no multiple of 4",
    ),
    "label below zero": (np.zeros((2, 2, 6, 5), np.float32), np.array([-1, 0], np.int64), "label"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batch_is_refused_and_the_session_goes_on(
    classifier: Artifact, sparse_state: State, case: str
) -> None:
    x, y, message = BAD_BATCHES[case]
    with (
        Session.open(classifier, sparse_state, batch_size=4) as session,
        Session.open(classifier, sparse_state, batch_size=4) as untouched,
    ):
        with pytest.raises(InputError, match=message):
            session.step(x, y, learning_rate=0.1)
        with pytest.raises(InputError, match=message):
            session.gradients(x, y)
        if case != "too many":
            with pytest.raises(InputError, match=message):
                session.evaluate(x, y)
        assert session.state() == sparse_state
        assert session.counters.steps == 0
        assert session.step(*images(4), learning_rate=0.1) == untouched.step(
            *images(4), learning_rate=0.1
        )
        assert session.state() == untouched.state()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros((3, 2), np.float64), "float64"),
        (np.zeros((3, 1), np.float32), r"\(3, 1\)"),
        (np.zeros(3, np.int32), "wanted float32 with 2 values for each of 3"),
        (np.full((3, 2), np.nan, np.float32), "not finite"),
    ],
)
def test_bad_targets_are_refused(
    regression: Artifact, regression_state: State, targets: np.ndarray, message: str
) -> None:
    with Session.open(regression, regression_state, batch_size=4) as session:
        with pytest.raises(InputError, match=message):
            session.step(points(3)[0], targets, learning_rate=0.1)
        assert session.state() == regression_state


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf, 1e39])
def test_rates_out_of_range_are_refused(
    classifier: Artifact, sparse_state: State, name: str, rate: float
) -> None:
    rates: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.0, name: rate}
    with Session.open(classifier, sparse_state, batch_size=4) as session:
        with pytest.raises(InputError, match=re.escape(f"got {name} {rate}")):
            session.step(*images(4), **rates)
        assert session.state() == sparse_state


@pytest.mark.parametrize(
    ("scale", "learning_rate", "weight_decay"),
    [(1e30, 0.1, 0.0), (1.0, 3e38, 3e38)],
    ids=["the loss overflows", "the new values overflow"],
)
def test_a_step_that_diverges_changes_nothing(
    regression: Artifact,
    regression_state: State,
    scale: float,
    learning_rate: float,
    weight_decay: float,
) -> None:
    x, y = points(4)
    large = x * np.float32(scale)
    with Session.open(regression, regression_state, batch_size=4) as session:
        with pytest.raises(DivergedError, match="lower the learning rate"):
            session.step(large, y, learning_rate=learning_rate, weight_decay=weight_decay)
        assert session.state() == regression_state
        assert session.counters.steps == 0
        assert math.isfinite(session.step(x, y, learning_rate=0.1))


def test_a_step_whose_statistics_overflow_changes_nothing(
    classifier: Artifact, sparse_state: State
) -> None:
    x, y = images(4)
    with Session.open(classifier, sparse_state, batch_size=4) as session:
        with pytest.raises(DivergedError):
            session.step(x * np.float32(1e30), y, learning_rate=0.0)
        assert session.state() == sparse_state
        assert session.step(x, y, learning_rate=0.1) > 0


@pytest.mark.parametrize(
    ("sparsity", "budget", "number"),
    [(1.0, "global", 0), (0.5, "layers", 0), (0.5, {"none": 1}, 0), (0.5, "global", -1)],
)
def test_bad_update_arguments_are_refused(
    classifier: Artifact,
    sparse_state: State,
    sparsity: float,
    budget: str | dict[str, int],
    number: int,
) -> None:
    with (
        Session.open(classifier, sparse_state, batch_size=4) as session,
        pytest.raises(InputError),
    ):
        session.update(sparsity, budget, round=number)


def test_arena_has_the_planned_size_and_is_used_to_its_end(
    classifier: Artifact, dense_state: State
) -> None:
    planned = plan(classifier, dense_state, 4).arena_bytes
    with Session.open(classifier, dense_state, batch_size=4) as session:
        session.step(*images(4), learning_rate=0.1)
        assert session.memory == MeasuredMemory(planned, planned, None)
    with Session.open(classifier, dense_state, 4, arena_bytes=planned + 10_000) as session:
        session.step(*images(4), learning_rate=0.1)
        assert session.memory == MeasuredMemory(planned + 10_000, planned, None)


def test_smaller_arena_is_refused(classifier: Artifact, sparse_state: State) -> None:
    planned = plan(classifier, sparse_state, 4).arena_bytes
    Session.open(classifier, sparse_state, 4, arena_bytes=planned).close()
    with pytest.raises(ArenaError, match="smaller batch or a state of higher sparsity") as caught:
        Session.open(classifier, sparse_state, batch_size=4, arena_bytes=planned - 1)
    assert (caught.value.got, caught.value.wanted) == (planned - 1, planned)


def test_arena_that_the_system_does_not_give(classifier: Artifact, sparse_state: State) -> None:
    with pytest.raises(ArenaError, match="the system does not give") as caught:
        Session.open(classifier, sparse_state, batch_size=4, arena_bytes=1 << 62)
    assert caught.value.wanted == 1 << 62


def test_unknown_backend_is_refused(classifier: Artifact, sparse_state: State) -> None:
    with pytest.raises(BackendError, match="got backend 'onnx', available: native"):
        Session.open(classifier, sparse_state, backend="onnx")


def test_state_of_another_model_is_refused(regression: Artifact, sparse_state: State) -> None:
    with pytest.raises(MismatchError):
        Session.open(regression, sparse_state)


def test_closed_session_says_so(classifier: Artifact, sparse_state: State) -> None:
    x, y = images(4)
    session = Session.open(classifier, sparse_state, batch_size=4)
    session.close()
    session.close()
    for use in (
        lambda: session.step(x, y, learning_rate=0.1),
        lambda: session.gradients(x, y),
        lambda: session.evaluate(x, y),
        lambda: session.update(0.5),
        session.state,
        lambda: session.memory,
        lambda: session.counters,
    ):
        with pytest.raises(InputError, match="closed"):
            use()


def test_two_sessions_do_not_touch_each_other(classifier: Artifact, sparse_state: State) -> None:
    x, y = images(4)
    with (
        Session.open(classifier, sparse_state, batch_size=4) as one,
        Session.open(classifier, sparse_state, batch_size=4) as other,
    ):
        one.step(x, y, learning_rate=0.5)
        assert other.state() == sparse_state
        assert one.state() != sparse_state


def test_an_arena_over_the_default_limit_must_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, classifier: Artifact, sparse_state: State
) -> None:
    wanted = plan(classifier, sparse_state, 4).arena_bytes
    monkeypatch.setattr("sparsyfed.edge_runtime.session.DEFAULT_ARENA_LIMIT", wanted - 1)
    with pytest.raises(ArenaError, match=f"arena_bytes={wanted}"):
        Session.open(classifier, sparse_state, batch_size=4)
    with Session.open(classifier, sparse_state, batch_size=4, arena_bytes=wanted) as session:
        assert session.memory.arena_bytes == wanted
