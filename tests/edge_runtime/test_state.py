import dataclasses
import hashlib
import math
import struct
import tracemalloc
from array import array
from pathlib import Path

import numpy as np
import pytest
from checksums import sealed
from hypothesis import given
from hypothesis import strategies as st

from sparsyfed.edge_runtime.errors import FormatError, InputError
from sparsyfed.edge_runtime.format import ParameterKind
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State

MINOR_OFFSET = 4
FLAGS_OFFSET = 6

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def sparse_tensors(draw: st.DrawFn, name: str) -> SparseTensor:
    """Matrices of a few stored entries, narrow and wide."""
    rows = draw(st.integers(1, 5))
    columns = draw(st.sampled_from([1, 2, 9, 65_536, 65_537]))
    row_pointer = array("I", [0])
    column = array("H" if columns <= 65_536 else "I")
    for _ in range(rows):
        stored = draw(st.sets(st.integers(0, columns - 1), max_size=4))
        column.extend(sorted(stored))
        row_pointer.append(len(column))
    value = array("f", draw(st.lists(finite, min_size=len(column), max_size=len(column))))
    return SparseTensor(name, rows, columns, row_pointer, column, value)


@st.composite
def states(draw: st.DrawFn) -> State:
    """States of a few sparse and dense tensors."""
    tensors: list[SparseTensor | DenseTensor] = []
    for number in range(draw(st.integers(1, 4))):
        name = f"läyer{number}.weight"
        if draw(st.booleans()):
            tensors.append(draw(sparse_tensors(name)))
        else:
            kind = draw(st.sampled_from([ParameterKind.DENSE, ParameterKind.STATISTIC]))
            values = draw(st.lists(finite, min_size=1, max_size=5))
            tensors.append(DenseTensor(name, kind, array("f", values)))
    return State(tuple(tensors), draw(st.integers(0, 0xFFFF_FFFF)))


@given(states())
def test_decode_gives_back_what_was_encoded(state: State) -> None:
    data = state.encode()
    assert State.decode(data) == state
    assert State.decode(memoryview(data)).encode() == data


@given(st.data(), states())
def test_every_flipped_bit_is_noticed(data: st.DataObject, state: State) -> None:
    damaged = bytearray(state.encode())
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        State.decode(damaged)


@given(st.data(), states())
def test_changed_fields_are_refused_or_mean_what_they_say(
    data: st.DataObject, state: State
) -> None:
    changed = bytearray(state.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(changed) - 1))
        if place != MINOR_OFFSET:
            changed[place] = data.draw(st.integers(0, 255))
    encoded = sealed(changed)
    try:
        decoded = State.decode(encoded)
    except FormatError:
        return
    assert decoded.encode() == encoded


@given(st.binary(max_size=300))
def test_noise_raises_format_error(noise: bytes) -> None:
    for data in (noise, b"SFDV\x00\x01\x01\x01" + noise):
        with pytest.raises(FormatError):
            State.decode(data)


def test_bytes_of_a_known_state() -> None:
    weight = SparseTensor(
        "w", 2, 3, array("I", [0, 1, 3]), array("H", [2, 0, 1]), array("f", [1.0, -2.0, 0.5])
    )
    bias = DenseTensor("b", ParameterKind.DENSE, array("f", [4.0, 8.0]))
    index = struct.pack("<3I3H2x", 0, 1, 3, 2, 0, 1)
    table = struct.pack("<BBHIII", 1, 2, 0, 2, 3, 3) + struct.pack("<BBHIII", 2, 0, 0, 1, 2, 2)
    values = struct.pack("<5f", 1.0, -2.0, 0.5, 4.0, 8.0)
    names = struct.pack("<I", 3) + b"w\nb"
    support = hashlib.sha256(index).digest()[:8]
    header = b"SFDV" + struct.pack("<HHI", 0x0100, 0x0101, 7) + support
    header += struct.pack("<IIBBHII", 6, 3, 0, 0, 2, len(index), 0)
    expected = sealed(bytearray(header + table + index + values + names))
    state = State((weight, bias), round=7)
    assert state.encode() == expected
    assert state.support_id == support


def test_a_state_is_encoded_once() -> None:
    state = State((DenseTensor("b", ParameterKind.DENSE, array("f", [1.0])),))
    assert state.encode() is state.encode()
    changed = state.with_values([array("f", [2.0])])
    assert State.decode(changed.encode()) == changed


def test_state_without_names_gets_numbered_ones() -> None:
    state = State((DenseTensor("b", ParameterKind.DENSE, array("f", [1.0])),))
    data = bytearray(state.encode()[: -4 - len("b")])
    struct.pack_into("<H", data, FLAGS_OFFSET, 1)
    assert State.decode(sealed(data)).tensors[0].name == "tensor_0"


def test_wrong_support_id_is_refused(sparse_state: State) -> None:
    changed = bytearray(sparse_state.encode())
    changed[12] ^= 1
    with pytest.raises(FormatError, match="support id"):
        State.decode(sealed(changed))


def test_repeated_names_are_refused(sparse_state: State) -> None:
    data = sparse_state.encode().replace(b"head.bias", b"norm.bias")
    with pytest.raises(FormatError, match=r"norm\.bias"):
        State.decode(sealed(bytearray(data)))
    with pytest.raises(InputError, match=r"norm\.bias"):
        State((*sparse_state.tensors, sparse_state.tensors[3]))


def test_an_update_is_no_state(sparse_state: State) -> None:
    changed = bytearray(sparse_state.encode())
    changed[FLAGS_OFFSET] = 2
    with pytest.raises(FormatError, match=r"got an update, wanted a state \(.sfs\)"):
        State.decode(sealed(changed))


def test_a_printed_state_has_no_values(sparse_state: State) -> None:
    text = repr(sparse_state)
    assert "head.weight" in text
    assert len(text) < 200 * len(sparse_state.tensors)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.data(),
)
def test_from_dense_keeps_the_nonzeros_in_order(
    rows: int, columns: int, data: st.DataObject
) -> None:
    size = rows * columns
    element = st.sampled_from([0.0, -0.0]) | finite
    numbers = data.draw(st.lists(element, min_size=size, max_size=size))
    matrix = np.array(numbers, np.float32).reshape(rows, columns)
    sparse = SparseTensor.from_dense("w", rows, columns, matrix, keep_zeros=False)
    whole = SparseTensor.from_dense("w", rows, columns, matrix, keep_zeros=True)
    for tensor in (sparse, whole):
        assert (State((tensor,)).csr()["w"].toarray() == matrix).all()
    assert sparse.count == np.count_nonzero(matrix)
    assert whole.count == size
    assert list(whole.column) == list(range(columns)) * rows
    both = State((sparse, dataclasses.replace(whole, name="all")))
    assert State.decode(both.encode()) == both


@pytest.mark.parametrize(
    "data",
    [
        np.zeros(6, np.float64),
        np.zeros(7, np.float32),
        np.zeros((3, 4), np.float32)[:, :2],
        np.array([0, 0, 0, 0, 0, math.nan], np.float32),
        np.array([0, 0, 0, 0, math.inf, -math.inf], np.float32),
    ],
)
def test_from_dense_refuses_what_it_can_not_hold(data: np.ndarray) -> None:
    with pytest.raises(InputError):
        SparseTensor.from_dense("w", 2, 3, data, keep_zeros=True)


def test_from_dense_takes_read_only_bytes() -> None:
    data = memoryview(struct.pack("4f", 0, 1, 2, 0)).cast("f")
    tensor = SparseTensor.from_dense("w", 2, 2, data, keep_zeros=False)
    assert (list(tensor.row_pointer), list(tensor.column)) == ([0, 1, 2], [1, 0])


def test_tensors_whose_arrays_disagree_are_refused() -> None:
    good = SparseTensor("w", 1, 4, array("I", [0, 2]), array("H", [0, 3]), array("f", [1.0, 2.0]))
    for change in (
        {"row_pointer": array("I", [0, 1, 2])},
        {"row_pointer": array("I", [1, 2])},
        {"row_pointer": array("I", [0, 3])},
        {"column": array("I", [0, 3])},
        {"column": array("H", [0])},
        {"value": array("d", [1.0, 2.0])},
        {"columns": 65_537},
    ):
        with pytest.raises(InputError, match="w: "):
            dataclasses.replace(good, **change)
    with pytest.raises(InputError, match="SparseTensor"):
        DenseTensor("w", ParameterKind.WEIGHT, array("f", [1.0]))


def test_values_not_finite_are_not_encoded(sparse_state: State) -> None:
    values = [array("f", tensor.value) for tensor in sparse_state.tensors]
    values[0][1] = math.nan
    with pytest.raises(InputError, match=r"first\.weight"):
        sparse_state.with_values(values).encode()


def test_with_values_keeps_the_support(sparse_state: State) -> None:
    doubled = [array("f", [2 * v for v in tensor.value]) for tensor in sparse_state.tensors]
    state = sparse_state.with_values(doubled, round=9)
    assert (state.round, state.support_id) == (9, sparse_state.support_id)
    assert State.decode(state.encode()) == state
    assert sparse_state.with_values(doubled).round == sparse_state.round
    with pytest.raises(InputError, match="arrays"):
        sparse_state.with_values(doubled[1:])
    with pytest.raises(InputError, match=r"first\.weight"):
        sparse_state.with_values([array("f"), *doubled[1:]])


def test_counts(dense_state: State, sparse_state: State) -> None:
    assert (dense_state.positions, dense_state.nonzeros, dense_state.density) == (120, 120, 1.0)
    stored = sum(matrix.nnz for matrix in sparse_state.csr().values())
    assert (sparse_state.positions, sparse_state.nonzeros) == (120, stored)
    assert sparse_state.density == stored / 120
    assert list(sparse_state.csr()) == ["first.weight", "depthwise.weight", "head.weight"]


def test_csr_is_a_copy_of_float32(sparse_state: State) -> None:
    before = sparse_state.encode()
    matrix = sparse_state.csr()["first.weight"]
    assert matrix.dtype == np.float32
    matrix.data[:] = 0
    matrix.indices[:] = 0
    assert sparse_state.encode() == before


def test_support_id_names_the_support_alone(dense_state: State, sparse_state: State) -> None:
    assert len(sparse_state.support_id) == 8
    assert sparse_state.support_id != dense_state.support_id
    zeros = [array("f", bytes(4 * tensor.count)) for tensor in sparse_state.tensors]
    assert State(sparse_state.with_values(zeros).tensors).support_id == sparse_state.support_id


def test_file_round_trip(sparse_state: State, tmp_path: Path) -> None:
    sparse_state.save(tmp_path / "round-3.sfs")
    assert State.load(tmp_path / "round-3.sfs") == sparse_state
    assert [entry.name for entry in tmp_path.iterdir()] == ["round-3.sfs"]


def test_numbers_over_their_field_raise_input_error(sparse_state: State) -> None:
    for number in (-1, 2**32):
        with pytest.raises(InputError, match="round"):
            State(sparse_state.tensors, number)
    with pytest.raises(InputError, match="0 tensors"):
        State(())


def test_decode_allocates_twice_its_input_at_most() -> None:
    numbers = array("f", [1.0]) * 100_000
    data = State((SparseTensor.from_dense("w", 100, 1000, numbers, keep_zeros=True),)).encode()
    State.decode(data)
    tracemalloc.start()
    try:
        State.decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 2 * len(data) + 1024


def test_decode_of_many_tensors_allocates_a_kibibyte_for_each() -> None:
    value = array("f", [1.0])
    kind = ParameterKind.DENSE
    data = State(tuple(DenseTensor(f"t{i}", kind, value) for i in range(4096))).encode()
    tracemalloc.start()
    try:
        State.decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 2 * len(data) + 4096 * 1024
