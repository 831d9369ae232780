"""A state fits one artifact and an update one state; anything else says which tensor differs, and how."""

from __future__ import annotations

import dataclasses
import re
from array import array

import pytest

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter, Tensor
from sparsyfed.edge_runtime.errors import FormatError, MismatchError
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind
from sparsyfed.edge_runtime.match import require_match
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State
from sparsyfed.edge_runtime.update import SparseUpdate

ARTIFACT = Artifact(
    parameters=(
        Parameter(ParameterKind.WEIGHT, 2, (3, 5, 1, 1), "w"),
        Parameter(ParameterKind.DENSE, 1, (3, 1, 1, 1), "b"),
    ),
    tensors=(Tensor(5, 1, 1, 1), Tensor(3, 1, 1, 1)),
    operations=(Operation(OperationKind.LINEAR, (0,), 1, "linear", weight=0, bias=1),),
    loss=Loss.CROSS_ENTROPY,
    output=1,
    beta=1.25,
)
SPARSE = SparseTensor(
    "w",
    rows=3,
    columns=5,
    row_pointer=array("I", [0, 2, 2, 4]),
    column=array("H", [1, 4, 0, 3]),
    value=array("f", [1.0, -2.0, 0.5, 3.0]),
)
DENSE = DenseTensor("b", ParameterKind.DENSE, array("f", [0.25, 0.5, 0.75]))
STATE = State((SPARSE, DENSE))

TENSORS, FIRST, SECOND = 30, 40, 56
"""Byte offsets of the number of tensors and of their entries in a container."""

OTHERS: dict[str, tuple[int, tuple[SparseTensor | DenseTensor, ...]]] = {
    "a tensor less": (TENSORS, (SPARSE,)),
    "a tensor more": (TENSORS, (SPARSE, DENSE, dataclasses.replace(DENSE, name="c"))),
    "another kind": (SECOND, (SPARSE, dataclasses.replace(DENSE, kind=ParameterKind.STATISTIC))),
    "dense for sparse": (FIRST, (dataclasses.replace(DENSE, name="w"), DENSE)),
    "more columns": (FIRST + 8, (dataclasses.replace(SPARSE, columns=6), DENSE)),
    "more rows": (
        FIRST + 4,
        (dataclasses.replace(SPARSE, rows=4, row_pointer=array("I", [0, 2, 2, 4, 4])), DENSE),
    ),
    "fewer elements": (
        SECOND + 8,
        (SPARSE, dataclasses.replace(DENSE, value=array("f", [0.5, 0.5]))),
    ),
}


def position(error: pytest.ExceptionInfo[MismatchError]) -> int:
    found = re.search(r"at byte (\d+):", str(error.value))
    assert found is not None, error.value
    return int(found[1])


@pytest.mark.parametrize(("field", "tensors"), OTHERS.values(), ids=OTHERS)
def test_a_state_of_other_tensors_does_not_fit_the_artifact(
    field: int, tensors: tuple[SparseTensor | DenseTensor, ...]
) -> None:
    with pytest.raises(MismatchError) as caught:
        plan(ARTIFACT, State(tensors), 1)
    assert position(caught) == field
    assert str(caught.value).startswith("state: ")
    if field > TENSORS:
        assert ("'w'" if field < SECOND else "'b'") in str(caught.value)
    with pytest.raises(MismatchError) as checked:
        require_match(ARTIFACT, State(tensors).encode())
    assert str(checked.value) == str(caught.value)


def test_bytes_that_are_no_state_do_not_fit_the_artifact() -> None:
    require_match(ARTIFACT, STATE.encode())
    with pytest.raises(FormatError, match="state: "):
        require_match(ARTIFACT, b"junk")


def test_a_state_with_any_support_fits_the_artifact() -> None:
    empty = dataclasses.replace(
        SPARSE, row_pointer=array("I", [0, 0, 0, 0]), column=array("H"), value=array("f")
    )
    assert plan(ARTIFACT, STATE, 1).macs.forward == 4
    assert plan(ARTIFACT, State((empty, DENSE)), 1).macs.forward == 0


def test_an_update_is_no_state_to_train() -> None:
    update = SparseUpdate(STATE.tensors, 0, STATE.support_id)
    with pytest.raises(FormatError):
        plan(ARTIFACT, update.encode(), 1)


@pytest.mark.parametrize(("field", "tensors"), OTHERS.values(), ids=OTHERS)
def test_an_update_of_other_tensors_does_not_fit_its_base(
    field: int, tensors: tuple[SparseTensor | DenseTensor, ...]
) -> None:
    update = SparseUpdate(tensors, 0, STATE.support_id)
    with pytest.raises(MismatchError) as caught:
        SparseUpdate.decode(update.encode(), base=STATE)
    assert position(caught) == field


def with_support(row_pointer: list[int], column: list[int]) -> SparseUpdate:
    values = array("f", [1.0] * len(column))
    pointers, columns = array("I", row_pointer), array("H", column)
    kept = SparseTensor("w", 3, 5, pointers, columns, values)
    return SparseUpdate((kept, DENSE), 0, STATE.support_id)


@pytest.mark.parametrize(
    ("row_pointer", "column"),
    [
        ([0, 2, 2, 4], [1, 4, 0, 3]),
        ([0, 1, 1, 2], [4, 3]),
        ([0, 0, 0, 1], [0]),
        ([0, 1, 1, 1], [1]),
        ([0, 0, 0, 0], []),
    ],
)
def test_an_update_inside_its_base_is_read(row_pointer: list[int], column: list[int]) -> None:
    update = with_support(row_pointer, column)
    assert SparseUpdate.decode(update.encode(), base=STATE) == update


@pytest.mark.parametrize(
    ("row_pointer", "column", "outside"),
    [
        ([0, 1, 1, 1], [0], 0),
        ([0, 2, 2, 2], [1, 2], 1),
        ([0, 2, 2, 2], [3, 4], 0),
        ([0, 1, 2, 2], [1, 4], 1),
        ([0, 0, 1, 1], [0], 0),
        ([0, 0, 0, 3], [0, 3, 4], 2),
        ([0, 0, 0, 2], [1, 3], 0),
    ],
)
def test_an_entry_outside_the_base_is_named(
    row_pointer: list[int], column: list[int], outside: int
) -> None:
    update = with_support(row_pointer, column)
    with pytest.raises(MismatchError) as caught:
        SparseUpdate.decode(update.encode(), base=STATE)
    columns = SECOND + 16 + 4 * len(row_pointer)
    assert position(caught) == columns + 2 * outside
    assert f"got {column[outside]}" in str(caught.value)
