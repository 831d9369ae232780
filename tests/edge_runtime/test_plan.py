import dataclasses
import itertools
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter, Tensor
from sparsyfed.edge_runtime.errors import FormatError, InputError, MismatchError
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind
from sparsyfed.edge_runtime.plan import MemoryPlan, MultiplyAdds, plan
from sparsyfed.edge_runtime.state import SparseTensor, State
from sparsyfed.edge_runtime.update import SparseUpdate


def stored_places(tensor: SparseTensor) -> list[tuple[int, int]]:
    """Row and column of each stored entry."""
    return [
        (row, tensor.column[place])
        for row in range(tensor.rows)
        for place in range(tensor.row_pointer[row], tensor.row_pointer[row + 1])
    ]


def products(artifact: Artifact, state: State, batch_size: int) -> MultiplyAdds:
    """Multiply-adds counted one by one, by walking over all output positions."""
    forward = d_input = 0
    for operation in artifact.operations:
        if operation.weight is None or operation.kind is OperationKind.BATCH_NORM:
            continue
        tensor = state.tensors[operation.weight]
        assert isinstance(tensor, SparseTensor)
        places = stored_places(tensor)
        count = len(places)
        if operation.kind is OperationKind.CONVOLUTION:
            source = artifact.tensors[operation.inputs[0]]
            target = artifact.tensors[operation.output]
            count = 0
            for (_, column), y, x in itertools.product(
                places, range(target.height), range(target.width)
            ):
                i, j = divmod(
                    column % (operation.kernel[0] * operation.kernel[1]), operation.kernel[1]
                )
                row = y * operation.stride[0] - operation.padding[0] + i * operation.dilation[0]
                col = x * operation.stride[1] - operation.padding[1] + j * operation.dilation[1]
                count += 0 <= row < source.height and 0 <= col < source.width
        forward += batch_size * count
        d_input += 0 if operation.inputs == (0,) else batch_size * count
    return MultiplyAdds(forward, d_input, forward)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Artifact, State]:
    """Two convolutions with odd geometry, and a state of the first's random support."""
    extent, kernel = draw(st.integers(3, 7)), draw(st.integers(1, 3))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, kernel - 1))
    dilation = draw(st.integers(1, 2))
    reach = dilation * (kernel - 1) + 1
    out = (extent + 2 * padding - reach) // stride + 1
    if out < 1:
        padding, dilation, stride = 0, 1, 1
        out = extent - kernel + 1
    first = Operation(
        OperationKind.CONVOLUTION,
        (0,),
        1,
        "a",
        weight=0,
        groups=1,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
    )
    second = dataclasses.replace(
        first, inputs=(1,), output=2, name="b", weight=1, kernel=(1, 1), padding=(0, 0)
    )
    last = (out - 1) // stride + 1
    artifact = Artifact(
        (
            Parameter(ParameterKind.WEIGHT, 4, (2, 2, kernel, kernel), "a.weight"),
            Parameter(ParameterKind.WEIGHT, 4, (3, 2, 1, 1), "b.weight"),
        ),
        (Tensor(2, extent, extent, 3), Tensor(2, out, out, 3), Tensor(3, last, last, 3)),
        (first, second),
        Loss.MEAN_SQUARED_ERROR,
        2,
        1.25,
    )
    tensors = []
    for parameter in artifact.parameters:
        size = parameter.count
        values = array(
            "f", draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size))
        )
        shape = (parameter.rows, parameter.columns)
        tensors.append(SparseTensor.from_dense(parameter.name, *shape, values, keep_zeros=False))
    return artifact, State(tuple(tensors))


@given(convolutions(), st.integers(1, 3))
def test_multiply_adds_are_the_products_counted_one_by_one(
    model: tuple[Artifact, State], batch_size: int
) -> None:
    artifact, state = model
    assert plan(artifact, state, batch_size).macs == products(artifact, state, batch_size)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_multiply_adds_of_grouped_convolutions_and_linear_layers(
    classifier: Artifact, sparse_state: State, batch_size: int
) -> None:
    planned = plan(classifier, sparse_state, batch_size).macs
    assert planned == products(classifier, sparse_state, batch_size)
    assert planned.total == planned.forward + planned.d_input + planned.d_weight


def alive(planned: MemoryPlan, step: int) -> int:
    """Bytes of the buffers alive at a step."""
    return sum(b.bytes for b in planned.buffers if b.first_step <= step <= b.last_step)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_buffers_lie_in_the_arena_and_never_share_bytes_while_alive(
    classifier: Artifact, dense_state: State, batch_size: int
) -> None:
    planned = plan(classifier, dense_state, batch_size)
    assert all(b.offset + b.bytes <= planned.arena_bytes for b in planned.buffers)
    assert max(b.offset + b.bytes for b in planned.buffers) == planned.arena_bytes
    for one, other in itertools.combinations([b for b in planned.buffers if b.bytes], 2):
        together = one.first_step <= other.last_step and other.first_step <= one.last_step
        overlap = one.offset < other.offset + other.bytes and other.offset < one.offset + one.bytes
        assert not (together and overlap), (one, other)


def test_parts_are_what_is_alive_at_the_peak(classifier: Artifact, sparse_state: State) -> None:
    planned = plan(classifier, sparse_state, 4)
    steps = range(2 * len(classifier.operations) + 2)
    assert sum(planned.parts.values()) == alive(planned, planned.live_peak_step)
    assert sum(planned.parts.values()) == max(alive(planned, step) for step in steps)
    assert sum(planned.parts.values()) <= planned.arena_bytes
    assert planned.live_peak_bytes <= planned.transient_bytes < planned.arena_bytes
    assert planned.parts["weight"] == 4 * sparse_state.nonzeros


def test_memory_and_work_fall_with_the_density(
    classifier: Artifact, dense_state: State, sparse_state: State
) -> None:
    dense, sparse = plan(classifier, dense_state, 8), plan(classifier, sparse_state, 8)
    assert sparse.arena_bytes < dense.arena_bytes
    assert sparse.macs.total < dense.macs.total


def test_table_shows_every_part_and_its_total(classifier: Artifact, sparse_state: State) -> None:
    planned = plan(classifier, sparse_state, 4)
    lines = str(planned).splitlines()
    memory, work = lines[1:-6], lines[-5:]
    numbers = [int(line.split()[-1].replace(",", "")) for line in memory if "---" not in line]
    parts, (live, placement, arena) = numbers[:-3], numbers[-3:]
    assert parts == list(planned.parts.values())
    assert live == sum(parts)
    assert live + placement == arena == planned.arena_bytes
    assert int(work[-1].split()[-1].replace(",", "")) == planned.macs.total
    assert len({len(line) for line in memory}) == 1
    assert lines[0] == "Memory in bytes, batch size 4"
    for kind in planned.parts:
        assert kind.replace("_", " ") in str(planned)


def test_artifact_may_be_a_path_bytes_or_itself(
    classifier: Artifact, sparse_state: State, tmp_path: Path
) -> None:
    path = tmp_path / "model.sfd"
    classifier.save(path)
    expected = plan(classifier, sparse_state, 2)
    for source in (path, str(path), classifier.encode()):
        assert plan(source, sparse_state.encode(), 2) == expected


@pytest.mark.parametrize("batch_size", [0, -1, 2**32])
def test_batch_size_out_of_range_is_refused(
    classifier: Artifact, sparse_state: State, batch_size: int
) -> None:
    with pytest.raises(InputError, match="batch size"):
        plan(classifier, sparse_state, batch_size)


def test_state_of_another_model_is_refused(regression: Artifact, sparse_state: State) -> None:
    with pytest.raises(MismatchError):
        plan(regression, sparse_state, 2)


def test_update_is_no_state(classifier: Artifact, sparse_state: State) -> None:
    update = SparseUpdate(sparse_state.tensors, 0, sparse_state.support_id)
    with pytest.raises(FormatError):
        plan(classifier, update.encode(), 2)
