from array import array

import pytest
from checksums import sealed
from hypothesis import given
from hypothesis import strategies as st

from sparsyfed.edge_runtime.errors import FormatError, InputError, MismatchError
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State
from sparsyfed.edge_runtime.update import SparseUpdate

MINOR_OFFSET = 4


def part_of(state: State, keep: list[bool]) -> SparseUpdate:
    """Update that keeps the stored entries of the state for which `keep` holds, in order."""
    chosen = iter(keep)
    tensors: list[SparseTensor | DenseTensor] = []
    for tensor in state.tensors:
        if isinstance(tensor, DenseTensor):
            tensors.append(tensor)
            continue
        row_pointer, column, value = array("I", [0]), array(tensor.column.typecode), array("f")
        for row in range(tensor.rows):
            for place in range(tensor.row_pointer[row], tensor.row_pointer[row + 1]):
                if next(chosen):
                    column.append(tensor.column[place])
                    value.append(tensor.value[place])
            row_pointer.append(len(column))
        shape = (tensor.rows, tensor.columns)
        tensors.append(SparseTensor(tensor.name, *shape, row_pointer, column, value))
    return SparseUpdate(tuple(tensors), state.round, state.support_id)


@given(st.data())
def test_any_part_of_the_support_survives(sparse_state: State, data: st.DataObject) -> None:
    size = sparse_state.nonzeros
    keep = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    update = part_of(sparse_state, keep)
    decoded = SparseUpdate.decode(update.encode(), base=sparse_state)
    assert decoded == update
    assert decoded.nonzeros == sum(keep)
    assert decoded.density == sum(keep) / sparse_state.positions


@given(st.data())
def test_every_flipped_bit_is_noticed(sparse_state: State, data: st.DataObject) -> None:
    damaged = bytearray(part_of(sparse_state, [True] * sparse_state.nonzeros).encode())
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    for base in (None, sparse_state):
        with pytest.raises(FormatError):
            SparseUpdate.decode(damaged, base)


@given(st.data())
def test_changed_fields_are_refused_or_mean_what_they_say(
    sparse_state: State, data: st.DataObject
) -> None:
    changed = bytearray(part_of(sparse_state, [True] * sparse_state.nonzeros).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(changed) - 1))
        if place != MINOR_OFFSET:
            changed[place] = data.draw(st.integers(0, 255))
    encoded = sealed(changed)
    try:
        decoded = SparseUpdate.decode(encoded, base=sparse_state)
    except (FormatError, MismatchError):
        return
    assert decoded.encode() == encoded


@given(st.binary(max_size=300))
def test_noise_raises_format_error(sparse_state: State, noise: bytes) -> None:
    for data in (noise, b"SFDV\x00\x01\x02\x00" + noise):
        for base in (None, sparse_state):
            with pytest.raises(FormatError):
                SparseUpdate.decode(data, base)


def test_names_come_from_the_base(sparse_state: State) -> None:
    data = part_of(sparse_state, [False] * sparse_state.nonzeros).encode()
    with_base = SparseUpdate.decode(data, base=sparse_state)
    assert [t.name for t in with_base.tensors] == [t.name for t in sparse_state.tensors]
    alone = SparseUpdate.decode(data)
    assert [t.name for t in alone.tensors] == [f"tensor_{i}" for i in range(9)]
    assert list(with_base.csr()) == ["first.weight", "depthwise.weight", "head.weight"]


def test_update_of_another_support_is_refused(sparse_state: State, dense_state: State) -> None:
    data = part_of(dense_state, [True] * dense_state.nonzeros).encode()
    with pytest.raises(MismatchError):
        SparseUpdate.decode(data, base=sparse_state)


def test_codecs_that_are_not_there_are_named(sparse_state: State) -> None:
    update = part_of(sparse_state, [True] * sparse_state.nonzeros)
    assert update.encode(codec="csr", values="fp32") == update.encode()
    with pytest.raises(InputError, match="got codec 'rice', wanted one of: csr"):
        update.encode(codec="rice")
    with pytest.raises(InputError, match="got values 'int8', wanted one of: fp32"):
        update.encode(values="int8")


def test_support_id_has_eight_bytes(sparse_state: State) -> None:
    with pytest.raises(InputError, match="3 bytes"):
        SparseUpdate(sparse_state.tensors, 0, b"abc")
