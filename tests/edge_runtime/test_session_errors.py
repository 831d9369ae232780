"""What a session refuses, and that it goes on unharmed."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from session_batches import images, points

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import (
    ArenaError,
    BackendError,
    DivergedError,
    FormatError,
    InputError,
    MismatchError,
)
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.session import BACKENDS, Session
from sparsyfed.edge_runtime.state import State

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
@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf, 1e39, "a", None])
def test_rates_out_of_range_are_refused(
    classifier: Artifact, sparse_state: State, name: str, rate: Any
) -> None:
    rates: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.0, name: rate}
    with Session.open(classifier, sparse_state, batch_size=4) as session:
        with pytest.raises(InputError, match=re.escape(f"got {name} {rate!r}")):
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
    [
        (1.0, "global", 0),
        ("a", "global", 0),
        (None, "global", 0),
        (0.5, "layers", 0),
        (0.5, {"none": 1}, 0),
        (0.5, "global", -1),
    ],
)
def test_bad_update_arguments_are_refused(
    classifier: Artifact,
    sparse_state: State,
    sparsity: Any,
    budget: str | dict[str, int],
    number: int,
) -> None:
    with (
        Session.open(classifier, sparse_state, batch_size=4) as session,
        pytest.raises(InputError),
    ):
        session.update(sparsity, budget, round=number)


def test_smaller_arena_is_refused(classifier: Artifact, sparse_state: State) -> None:
    planned = plan(classifier, sparse_state, 4, memory="small").arena_bytes
    Session.open(classifier, sparse_state, 4, arena_bytes=planned).close()
    with pytest.raises(ArenaError, match="smaller batch or a state of higher sparsity") as caught:
        Session.open(classifier, sparse_state, batch_size=4, arena_bytes=planned - 1)
    assert (caught.value.got, caught.value.wanted) == (planned - 1, planned)


@pytest.mark.parametrize("limit", [0, -5, 3e5, "300000", True])
def test_a_limit_that_is_no_number_of_bytes_is_refused(
    classifier: Artifact, sparse_state: State, limit: Any
) -> None:
    for use in (plan, Session.open):
        with pytest.raises(InputError, match=f"got arena_bytes {limit!r}, wanted 1 to"):
            use(classifier, sparse_state, batch_size=4, arena_bytes=limit)


def test_an_arena_of_one_byte_is_too_small(classifier: Artifact, sparse_state: State) -> None:
    with pytest.raises(ArenaError, match="got an arena of 1 bytes"):
        Session.open(classifier, sparse_state, batch_size=4, arena_bytes=1)


class Compiled:
    """As what `export.compile` returns holds an artifact."""

    native = "an artifact"


def test_what_is_no_artifact_or_state_is_refused_with_what_to_pass(
    classifier: Artifact, sparse_state: State, tmp_path: Path
) -> None:
    wrong: Any
    for use in (plan, Session.open):
        for wrong in (Compiled(), None):
            with pytest.raises(InputError, match=r"wanted a path, bytes or an Artifact.*\.native"):
                use(wrong, sparse_state, 4)
        for wrong in (tmp_path / "trained.sfs", "trained.sfs", None):
            with pytest.raises(InputError, match=r"got a state of type .*State\.load\(path\)"):
                use(classifier, wrong, 4)
        with pytest.raises(FileNotFoundError):
            use(tmp_path / "missing", sparse_state, 4)
        with pytest.raises(FormatError, match="is a folder, wanted an artifact"):
            use(tmp_path, sparse_state, 4)


def test_evaluation_and_gradients_that_diverge_advise_no_other_rate(
    regression: Artifact, regression_state: State
) -> None:
    x, y = points(4)
    x = x * np.float32(1e30)
    with Session.open(regression, regression_state, batch_size=4) as session:
        for name, use in (("evaluation", session.evaluate), ("gradients", session.gradients)):
            with pytest.raises(DivergedError, match=f"^{name}: the loss") as caught:
                use(x, y)
            assert "learning rate" not in str(caught.value)


def test_a_value_that_is_refused_is_named_with_its_example(
    classifier: Artifact, sparse_state: State
) -> None:
    x, y = images(4)
    bad, labels = x.copy(), np.array([0, 2, 1, 3], np.int64)
    bad[2, 0, 1, 1] = np.nan
    with Session.open(classifier, sparse_state, batch_size=4) as session:
        with pytest.raises(InputError, match=r"^step: got x .* not finite: nan in example 2"):
            session.step(bad, y, learning_rate=0.1)
        with pytest.raises(InputError, match=r"^gradients: .* outside 0 to 2: 3 for example 3"):
            session.gradients(x, labels)
        many = np.concatenate([x, x]), np.concatenate([y, labels.astype(y.dtype)])
        with pytest.raises(InputError, match=r"^evaluation: .*: 3 for example 7"):
            session.evaluate(*many)


def test_unknown_choice_of_memory_is_refused(classifier: Artifact, sparse_state: State) -> None:
    with pytest.raises(InputError, match="got memory 'tiny', wanted one of: fast, small"):
        Session.open(classifier, sparse_state, memory="tiny")


def test_arena_that_the_system_does_not_give() -> None:
    with pytest.raises(ArenaError, match="the system does not give") as caught:
        _native.Memory(1 << 62)
    assert caught.value.wanted == 1 << 62


def test_unknown_backend_is_refused(classifier: Artifact, sparse_state: State) -> None:
    with pytest.raises(BackendError, match=f"got backend 'onnx', available: {', '.join(BACKENDS)}"):
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


def test_an_arena_over_the_default_limit_must_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, classifier: Artifact, sparse_state: State
) -> None:
    wanted = plan(classifier, sparse_state, 4).arena_bytes
    monkeypatch.setattr("sparsyfed.edge_runtime.session.DEFAULT_ARENA_LIMIT", wanted - 1)
    with pytest.raises(ArenaError, match=f"arena_bytes={wanted}"):
        Session.open(classifier, sparse_state, batch_size=4)
    with Session.open(classifier, sparse_state, batch_size=4, arena_bytes=wanted) as session:
        assert session.memory.arena_bytes <= wanted
