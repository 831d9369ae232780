import itertools
import struct
import zlib
from array import array
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from sparsyfed.coordinator.aggregation import FederatedAverage, UpdateRules, trainable_norm
from sparsyfed.edge_runtime import (
    Artifact,
    DenseTensor,
    FormatError,
    InputError,
    MismatchError,
    Session,
    SparseTensor,
    SparseUpdate,
    State,
)
from sparsyfed.edge_runtime.format import ParameterKind

Federation = tuple[State, list[tuple[SparseUpdate, int]]]


def sparse(name: str, dense: NDArray[np.float32]) -> SparseTensor:
    return SparseTensor.from_dense(
        name, dense.shape[0], dense.shape[1], dense.data, keep_zeros=False
    )


def vector(name: str, values: ArrayLike, kind: ParameterKind = ParameterKind.DENSE) -> DenseTensor:
    return DenseTensor.from_dense(name, kind, np.asarray(values, np.float32).data)


def dense_of(tensor: SparseTensor | DenseTensor) -> NDArray[np.float64]:
    if isinstance(tensor, DenseTensor):
        return np.array(tensor.value, np.float64)
    matrix = np.zeros((tensor.rows, tensor.columns))
    for row in range(tensor.rows):
        for place in range(tensor.row_pointer[row], tensor.row_pointer[row + 1]):
            matrix[row, tensor.column[place]] = tensor.value[place]
    return matrix


@st.composite
def federations(draw: st.DrawFn) -> Federation:
    """A base state and updates inside its support, with their numbers of examples."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    full = draw(st.booleans())
    support = np.ones((rows, columns), bool) if full else generator.random((rows, columns)) < 0.6
    values = generator.normal(size=(rows, columns)).astype(np.float32)
    weight = np.where(support, values, np.float32(0))
    base = State(
        (
            SparseTensor.from_dense("w", rows, columns, weight.data, keep_zeros=full),
            vector("b", generator.normal(size=4)),
            vector("s", generator.random(2), ParameterKind.STATISTIC),
        ),
        round=3,
    )
    updates = []
    for _ in range(draw(st.integers(1, 5))):
        kept = support & (generator.random((rows, columns)) < 0.5)
        trained = np.where(kept, generator.normal(size=(rows, columns)), 0).astype(np.float32)
        tensors = (
            sparse("w", trained),
            vector("b", generator.normal(size=4)),
            vector("s", generator.random(2), ParameterKind.STATISTIC),
        )
        examples = draw(st.integers(1, 10_000))
        updates.append((SparseUpdate(tensors, base.round, base.support_id), examples))
    return base, updates


def average(base: State, updates: list[tuple[SparseUpdate, int]]) -> State:
    total = FederatedAverage(base)
    for update, examples in updates:
        total.add(update, examples)
    return total.state()


@given(federations())
def test_average_equals_the_dense_formula(federation: Federation) -> None:
    base, updates = federation
    state = average(base, updates)
    examples = sum(n for _, n in updates)
    for index, tensor in enumerate(state.tensors):
        parts = [n * dense_of(update.tensors[index]) for update, n in updates]
        expected = (np.sum(parts, axis=0) / examples).astype(np.float32)
        np.testing.assert_array_equal(dense_of(tensor).astype(np.float32), expected)
        if isinstance(tensor, SparseTensor):
            assert tensor.count == np.count_nonzero(expected)
        assert tensor.name == base.tensors[index].name
    assert state.round == base.round + 1


@given(federations(), st.randoms(use_true_random=False))
def test_any_order_gives_the_same_average_up_to_one_rounding(
    federation: Federation, random: Random
) -> None:
    base, updates = federation
    shuffled = list(updates)
    random.shuffle(shuffled)
    ordered, other = average(base, updates), average(base, shuffled)
    for left, right in zip(ordered.tensors, other.tensors, strict=True):
        np.testing.assert_allclose(dense_of(left), dense_of(right), rtol=3e-7, atol=1e-30)


def test_a_value_that_all_zeroed_leaves_the_support() -> None:
    base = State((sparse("w", np.array([[1, 2, 3]], np.float32)),), round=1)
    first = SparseUpdate((sparse("w", np.array([[4, 0, 2]], np.float32)),), 1, base.support_id)
    second = SparseUpdate((sparse("w", np.array([[0, 0, -2]], np.float32)),), 1, base.support_id)
    state = average(base, [(first, 1), (second, 1)])
    (tensor,) = state.tensors
    assert isinstance(tensor, SparseTensor)
    assert list(tensor.column) == [0]
    assert list(tensor.value) == [2.0]


def test_nothing_added_is_an_error() -> None:
    base = State((sparse("w", np.ones((1, 1), np.float32)),), round=1)
    with pytest.raises(InputError, match="no update"):
        FederatedAverage(base).state()
    with pytest.raises(InputError, match="got 0 examples"):
        FederatedAverage(base).add(SparseUpdate(base.tensors, 1, base.support_id), 0)


# ---- what is refused before it reaches the sum ----


@pytest.fixture
def rules(artifact: Artifact) -> UpdateRules:
    return UpdateRules.of_job(artifact, 0.8, "global", norm_bound=10.0)


@pytest.fixture
def update(artifact: Artifact, dense_state: State) -> SparseUpdate:
    with Session.open(artifact, dense_state, batch_size=1) as session:
        return session.update(0.8, round=1)


def test_a_device_update_passes(
    rules: UpdateRules, update: SparseUpdate, dense_state: State
) -> None:
    assert rules.keep == (18,)
    assert rules.read(update.encode(), dense_state) == update


def test_update_of_another_round_is_refused(
    rules: UpdateRules, update: SparseUpdate, dense_state: State
) -> None:
    other = SparseUpdate(update.tensors, 2, update.support_id)
    with pytest.raises(MismatchError, match="got round 2, wanted 1"):
        rules.read(other.encode(), dense_state)


def test_update_of_another_support_is_refused(
    rules: UpdateRules, update: SparseUpdate, dense_state: State
) -> None:
    other = SparseUpdate(update.tensors, 1, b"elsewher")
    with pytest.raises(MismatchError):
        rules.read(other.encode(), dense_state)


def test_more_entries_than_the_budget_are_refused(
    artifact: Artifact, rules: UpdateRules, dense_state: State
) -> None:
    with Session.open(artifact, dense_state, batch_size=1) as session:
        data = session.update(0.5, round=1).encode()
    with pytest.raises(MismatchError, match="got 45 entries, wanted at most 18"):
        rules.read(data, dense_state)


def test_more_entries_than_a_layer_budget_are_refused(
    artifact: Artifact, update: SparseUpdate, dense_state: State
) -> None:
    counts = [tensor.count for tensor in update.tensors if isinstance(tensor, SparseTensor)]
    budget = {"first.weight": counts[0] - 1, "last.weight": counts[1]}
    rules = UpdateRules.of_job(artifact, 0.8, budget, norm_bound=10.0)
    with pytest.raises(MismatchError, match=r"first.weight: got"):
        rules.read(update.encode(), dense_state)


def test_a_huge_update_is_refused(
    rules: UpdateRules, update: SparseUpdate, dense_state: State
) -> None:
    tensors = tuple(
        replace(t, value=array("f", [1e9] * t.count)) if isinstance(t, SparseTensor) else t
        for t in update.tensors
    )
    huge = SparseUpdate(tensors, 1, update.support_id)
    assert trainable_norm(huge.tensors) > 10 * trainable_norm(dense_state.tensors)
    with pytest.raises(MismatchError, match="norm of"):
        rules.read(huge.encode(), dense_state)


def test_a_value_that_is_not_finite_is_refused(
    rules: UpdateRules, update: SparseUpdate, dense_state: State
) -> None:
    data = bytearray(update.encode())
    last_value = len(data) - 4
    struct.pack_into("<f", data, last_value, float("nan"))
    struct.pack_into("<I", data, 36, 0)
    struct.pack_into("<I", data, 36, zlib.crc32(data))
    with pytest.raises(FormatError):
        rules.read(bytes(data), dense_state)


def test_a_negative_variance_is_refused() -> None:
    weight = np.ones((2, 2), np.float32)
    base = State((sparse("w", weight), vector("v", [1, 1], ParameterKind.STATISTIC)), round=1)
    bad = (sparse("w", weight), vector("v", [1, -1], ParameterKind.STATISTIC))
    data = SparseUpdate(bad, 1, base.support_id).encode()
    rules = UpdateRules((4,), frozenset({"v"}), norm_bound=10.0)
    with pytest.raises(MismatchError, match="negative variance"):
        rules.read(data, base)
    with pytest.raises(MismatchError):
        UpdateRules((3,), frozenset(), norm_bound=10.0).read(data, base)


def test_any_cut_or_flipped_byte_is_refused(
    rules: UpdateRules, update: SparseUpdate, dense_state: State
) -> None:
    data = update.encode()
    for cut, flip in itertools.product((len(data), len(data) - 1), range(0, len(data) - 1, 7)):
        changed = bytearray(data[:cut])
        changed[flip] ^= 0x40
        with pytest.raises((FormatError, MismatchError)):
            rules.read(bytes(changed), dense_state)
