"""What comes from the network or a broken disk is refused with one clear error, and never crashes."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import (
    ArenaError,
    DivergedError,
    FormatError,
    InputError,
    MismatchError,
)
from sparsyfed.edge_runtime.format import ARTIFACT_MAGIC
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.session import Session
from sparsyfed.edge_runtime.state import SparseTensor, State
from sparsyfed.edge_runtime.update import SparseUpdate

Value = TypeVar("Value")


class Sample(NamedTuple):
    """Files that belong together, as objects."""

    artifact: Artifact
    state: State
    update: SparseUpdate


@pytest.fixture(scope="session")
def classification(classifier: Artifact, sparse_state: State) -> Sample:
    return Sample(classifier, sparse_state, whole_update(sparse_state))


@pytest.fixture(scope="session")
def fitting(regression: Artifact, regression_state: State) -> Sample:
    return Sample(regression, regression_state, whole_update(regression_state))


@pytest.fixture(scope="session")
def samples(classification: Sample, fitting: Sample) -> tuple[Sample, ...]:
    return classification, fitting


def whole_update(state: State) -> SparseUpdate:
    return SparseUpdate(state.tensors, state.round, state.support_id)


edits = st.lists(
    st.tuples(
        st.integers(0, 100) | st.integers(0, 4000),
        st.sampled_from([0, 1, 2, 127, 128, 255]) | st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


class Damage(NamedTuple):
    """Bytes that change, bytes cut off at the end, and whether length and checksum are made right again."""

    edits: list[tuple[int, int]]
    cut: int
    repaired: bool

    def apply(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for place, value in self.edits:
            changed[place % len(changed)] = value
        del changed[len(changed) - self.cut :]
        if self.repaired:
            is_artifact = data.startswith(ARTIFACT_MAGIC)
            crc = 12 if is_artifact else 36
            if is_artifact:
                changed[8:12] = len(changed).to_bytes(4, "little")
            changed[crc : crc + 4] = bytes(4)
            changed[crc : crc + 4] = zlib.crc32(changed).to_bytes(4, "little")
        return bytes(changed)


def read(decode: Callable[[bytes], Value], data: bytes) -> Value | None:
    """What the bytes hold, or None if they are refused as they should be."""
    try:
        return decode(data)
    except FormatError:
        return None


damages = st.builds(Damage, edits, st.just(0) | st.integers(0, 100), st.booleans())
sample_indices = st.integers(0, 1)


@given(sample_indices, damages)
def test_damaged_artifact_bytes_are_refused_or_read(
    samples: tuple[Sample, ...], index: int, damage: Damage
) -> None:
    decoded = read(Artifact.decode, damage.apply(samples[index].artifact.encode()))
    assert decoded is None or Artifact.decode(decoded.encode()) == decoded


@given(sample_indices, damages)
def test_damaged_state_bytes_are_refused_or_read(
    samples: tuple[Sample, ...], index: int, damage: Damage
) -> None:
    decoded = read(State.decode, damage.apply(samples[index].state.encode()))
    assert decoded is None or State.decode(decoded.encode()) == decoded


@given(sample_indices, damages)
def test_damaged_update_bytes_are_refused_or_read(
    samples: tuple[Sample, ...], index: int, damage: Damage
) -> None:
    decoded = read(SparseUpdate.decode, damage.apply(samples[index].update.encode()))
    assert decoded is None or SparseUpdate.decode(decoded.encode()) == decoded


@given(sample_indices, damages)
def test_damaged_update_bytes_are_refused_or_fit_their_base(
    samples: tuple[Sample, ...], index: int, damage: Damage
) -> None:
    sample = samples[index]
    try:
        decoded = SparseUpdate.decode(damage.apply(sample.update.encode()), base=sample.state)
    except (FormatError, MismatchError):
        return
    assert decoded.support_id == sample.state.support_id
    assert [t.name for t in decoded.tensors] == [t.name for t in sample.state.tensors]


@pytest.mark.parametrize("data", [b"", b"S", b"SFDA", b"SFDV", bytes(64), bytes(4096)])
def test_tiny_and_foreign_inputs_are_format_errors(data: bytes) -> None:
    for decode in (Artifact.decode, State.decode, SparseUpdate.decode):
        with pytest.raises(FormatError):
            decode(data)


def test_a_state_is_no_update_and_an_update_no_state(fitting: Sample) -> None:
    with pytest.raises(FormatError):
        SparseUpdate.decode(fitting.state.encode())
    with pytest.raises(FormatError):
        SparseUpdate.decode(fitting.state.encode(), base=fitting.state)
    with pytest.raises(FormatError):
        State.decode(fitting.update.encode())
    with pytest.raises(FormatError):
        Session.open(fitting.artifact, fitting.update.encode())


def test_an_update_of_another_model_is_a_mismatch(classification: Sample, fitting: Sample) -> None:
    with pytest.raises(MismatchError):
        SparseUpdate.decode(fitting.update.encode(), base=classification.state)


def test_an_update_of_another_support_is_a_mismatch(fitting: Sample) -> None:
    other = SparseUpdate(fitting.update.tensors, fitting.update.round, bytes(8))
    with pytest.raises(MismatchError):
        SparseUpdate.decode(other.encode(), base=fitting.state)


def test_an_update_outside_its_base_is_a_mismatch(fitting: Sample) -> None:
    first, *rest = fitting.update.tensors
    assert isinstance(first, SparseTensor)
    ones = array("f", [1.0]) * (first.rows * first.columns)
    whole = SparseTensor.from_dense(first.name, first.rows, first.columns, ones, keep_zeros=True)
    outside = SparseUpdate((whole, *rest), fitting.update.round, fitting.update.support_id)
    with pytest.raises(MismatchError):
        SparseUpdate.decode(outside.encode(), base=fitting.state)


def test_a_state_of_another_model_is_a_mismatch(classification: Sample, fitting: Sample) -> None:
    with pytest.raises(MismatchError):
        Session.open(classification.artifact, fitting.state)


def test_an_arena_one_byte_too_small_says_what_it_wants(classification: Sample) -> None:
    artifact, state, _ = classification
    wanted = plan(artifact, state, 4).arena_bytes
    with pytest.raises(ArenaError) as caught:
        Session.open(artifact, state, batch_size=4, arena_bytes=wanted - 1)
    assert (caught.value.got, caught.value.wanted) == (wanted - 1, wanted)


EXAMPLES = 4
X = array("f", (((i * 7) % 13 - 6) / 6 for i in range(EXAMPLES * 2 * 6 * 5)))
Y = array("i", [0, 2, 1, 0])
NAN, INFINITY = float("nan"), float("inf")

BAD_BATCHES: dict[str, tuple[Any, Any]] = {
    "NaN": (X[:-1] + array("f", [NAN]), Y),
    "infinity": (X[:-1] + array("f", [INFINITY]), Y),
    "half an example": (X[:-30], Y),
    "no example": (array("f"), array("i")),
    "float64": (array("d", X), Y),
    "no buffer": (X.tolist(), Y),
    "another shape": (memoryview(X).cast("B").cast("f", (EXAMPLES, 2, 5, 6)), Y),
    "too many examples": (X + X, Y + Y),
    "labels missing": (X, Y[:-1]),
    "labels of 16 bits": (X, array("h", Y)),
    "labels as float32": (X, array("f", Y)),
    "a label too large": (X, array("i", [0, 1, 2, 3])),
    "a label below zero": (X, array("i", [0, 1, -1, 0])),
    "a label beyond 32 bits": (X, array("q", [0, 1, 2, 2**32])),
}


@pytest.mark.parametrize(("x", "y"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_a_bad_batch_is_one_clear_error_and_training_goes_on(
    classification: Sample, x: Any, y: Any
) -> None:
    artifact, state, _ = classification
    with (
        Session.open(artifact, state, batch_size=EXAMPLES) as session,
        Session.open(artifact, state, batch_size=EXAMPLES) as untouched,
    ):
        before = session.state().encode()
        with pytest.raises(InputError):
            session.step(x, y, learning_rate=0.1)
        with pytest.raises(InputError):
            session.gradients(x, y)
        assert session.state().encode() == before
        assert session.counters.steps == 0
        assert session.step(X, Y, learning_rate=0.1) == untouched.step(X, Y, learning_rate=0.1)
        assert session.state().encode() == untouched.state().encode()


@pytest.mark.parametrize("rates", [(NAN, 0.0), (INFINITY, 0.0), (-0.1, 0.0), (0.1, NAN), (1e39, 0)])
def test_a_bad_rate_is_an_input_error(classification: Sample, rates: tuple[float, float]) -> None:
    artifact, state, _ = classification
    with Session.open(artifact, state, batch_size=EXAMPLES) as session:
        with pytest.raises(InputError):
            session.step(X, Y, learning_rate=rates[0], weight_decay=rates[1])
        assert session.counters.steps == 0
        assert session.step(X, Y, learning_rate=0.1) > 0


@pytest.mark.parametrize(
    ("x", "learning_rate", "weight_decay"),
    [(3e38, 0.1, 0.0), (1.0, 3e38, 3e38)],
    ids=["the loss overflows", "the new values overflow"],
)
def test_a_step_that_diverges_changes_nothing(
    fitting: Sample, x: float, learning_rate: float, weight_decay: float
) -> None:
    batch, target = array("f", [x] * 5), array("f", [0.5, -0.5])
    with Session.open(fitting.artifact, fitting.state, batch_size=1) as session:
        before = session.state().encode()
        with pytest.raises(DivergedError):
            session.step(batch, target, learning_rate=learning_rate, weight_decay=weight_decay)
        assert session.state().encode() == before
        assert session.counters.steps == 0
        assert session.step(array("f", [1.0] * 5), target, learning_rate=0.01) > 0


def test_a_step_whose_statistics_overflow_changes_nothing(classification: Sample) -> None:
    artifact, state, _ = classification
    with Session.open(artifact, state, batch_size=EXAMPLES) as session:
        before = session.state().encode()
        with pytest.raises(DivergedError):
            session.step(array("f", (1e30 * v for v in X)), Y, learning_rate=0.0)
        assert session.state().encode() == before
        assert session.step(X, Y, learning_rate=0.1) > 0
