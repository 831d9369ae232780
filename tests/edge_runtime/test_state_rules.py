"""Each rule for states in docs/format.md, broken alone, is refused at the field that breaks it."""

from __future__ import annotations

import re
from array import array

import pytest
from checksums import sealed

from sparsyfed.edge_runtime import format as layout
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.format import ParameterKind
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State

STATE = State(
    (
        SparseTensor(
            "w",
            rows=3,
            columns=5,
            row_pointer=array("I", [0, 2, 2, 3]),
            column=array("H", [1, 4, 0]),
            value=array("f", [1.0, -2.0, 0.5]),
        ),
        DenseTensor("b", ParameterKind.DENSE, array("f", [0.25, 0.5])),
    )
)
SPARSE_ENTRY, DENSE_ENTRY, POINTERS, COLUMNS, VALUES, NAMES, END = 40, 56, 72, 88, 96, 116, 123


def refused_at(data: bytes, position: int) -> None:
    with pytest.raises(FormatError) as caught:
        State.decode(data)
    found = re.search(r"at byte (\d+):", str(caught.value))
    assert found is not None, caught.value
    assert int(found[1]) == position, caught.value


def test_the_small_state_is_laid_out_as_the_rules_below_assume() -> None:
    data = STATE.encode()
    assert len(data) == END
    assert data[NAMES:] == b"\x03\0\0\0w\nb"
    assert State.decode(data) == STATE


@pytest.mark.parametrize(
    ("offset", "written", "position"),
    [
        (5, b"\2", 4),
        (6, b"\0", 6),
        (6, b"\3", 6),
        (6, b"\5", 6),
        (6, b"\x11", 6),
        (7, b"\3", 6),
        (20, b"\x0e", 20),
        (24, b"\4", 24),
        (28, b"\1", 28),
        (29, b"\1", 29),
        (SPARSE_ENTRY, b"\0", SPARSE_ENTRY),
        (SPARSE_ENTRY, b"\4", SPARSE_ENTRY),
        (SPARSE_ENTRY + 1, b"\4", SPARSE_ENTRY + 1),
        (SPARSE_ENTRY + 2, b"\1", SPARSE_ENTRY + 2),
        (SPARSE_ENTRY + 4, b"\0", SPARSE_ENTRY + 4),
        (SPARSE_ENTRY + 4, b"\0\0\0\x80", SPARSE_ENTRY + 4),
        (SPARSE_ENTRY + 8, b"\0", SPARSE_ENTRY + 8),
        (SPARSE_ENTRY + 8, b"\0\0\2", SPARSE_ENTRY + 1),
        (SPARSE_ENTRY + 4, b"\1\0\0\0\2", SPARSE_ENTRY + 12),
        (DENSE_ENTRY + 1, b"\2", DENSE_ENTRY + 1),
        (DENSE_ENTRY + 4, b"\2", DENSE_ENTRY + 4),
        (DENSE_ENTRY + 8, b"\0", DENSE_ENTRY + 8),
        (DENSE_ENTRY + 8, b"\3", DENSE_ENTRY + 12),
        (DENSE_ENTRY + 8, b"\0\0\0\x80", DENSE_ENTRY + 8),
        (SPARSE_ENTRY + 4, b"\2\0\0\0\5", 20),
        (POINTERS, b"\1", POINTERS),
        (POINTERS + 8, b"\1", POINTERS + 8),
        (POINTERS + 8, b"\4", POINTERS + 8),
        (POINTERS + 12, b"\2", POINTERS + 12),
        (COLUMNS, b"\4", COLUMNS + 2),
        (COLUMNS + 2, b"\5", COLUMNS + 2),
        (COLUMNS + 6, b"\1", COLUMNS + 6),
        (VALUES, b"\0\0\x80\x7f", VALUES),
        (VALUES + 12, b"\1\0\x80\xff", VALUES + 12),
        (NAMES + 4, b"\xff", NAMES + 4),
        (NAMES + 5, b"x", NAMES),
        (NAMES + 6, b"\n", NAMES),
        (NAMES + 6, b"\t", NAMES + 6),
    ],
)
def test_a_wrong_field_of_a_state_is_refused(offset: int, written: bytes, position: int) -> None:
    data = bytearray(STATE.encode())
    data[offset : offset + len(written)] = written
    refused_at(sealed(data), position)


@pytest.mark.parametrize("offset", [30, 32, SPARSE_ENTRY + 12, DENSE_ENTRY + 12, NAMES])
def test_a_wrong_length_of_a_state_is_refused(offset: int) -> None:
    for change in (1, 2, 255):
        data = bytearray(STATE.encode())
        data[offset] = (data[offset] + change) % 256
        with pytest.raises(FormatError, match="shorter or longer"):
            State.decode(sealed(data))


def test_rows_that_do_not_fill_the_index_section_are_refused() -> None:
    data = bytearray(STATE.encode())
    data[SPARSE_ENTRY + 4 : SPARSE_ENTRY + 12] = b"\5\0\0\0\3\0\0\0"
    refused_at(sealed(data), 32)


@pytest.mark.parametrize("tensors", [0, 4097])
def test_a_number_of_tensors_out_of_range_is_refused(tensors: int) -> None:
    entry = layout.TABLE_ENTRY.pack(ParameterKind.DENSE, 0, 1, 1, 1)
    header = (b"SFDV", 0x0100, 1, 0, bytes(8), 0, 0, 0, 0, tensors, 0, 0)
    body = entry * tensors + bytes(4 * tensors)
    refused_at(sealed(bytearray(layout.CONTAINER_HEADER.pack(*header) + body)), 30)
