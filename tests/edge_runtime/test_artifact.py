import dataclasses
import itertools
import struct
import tracemalloc
from pathlib import Path

import pytest
from checksums import sealed
from hypothesis import given
from hypothesis import strategies as st

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter, Tensor
from sparsyfed.edge_runtime.errors import FormatError, InputError
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind

MINOR_OFFSET = 6


@st.composite
def linear_stacks(draw: st.DrawFn) -> Artifact:
    """Chains of linear layers, some with a bias, some with an activation behind them."""
    name = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x24F, exclude_categories=["C"]))
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=5))
    parameters: list[Parameter] = []
    tensors = [Tensor(sizes[0], 1, 1, 1)]
    operations: list[Operation] = []
    for number, (inner, out) in enumerate(itertools.pairwise(sizes)):
        weight, bias = len(parameters), None
        parameters.append(
            Parameter(ParameterKind.WEIGHT, 2, (out, inner, 1, 1), f"{number}.weight{draw(name)}")
        )
        if draw(st.booleans()):
            bias = len(parameters)
            parameters.append(Parameter(ParameterKind.DENSE, 1, (out, 1, 1, 1), f"{number}.bias"))
        place = len(operations)
        operations.append(
            Operation(
                OperationKind.LINEAR, (place,), place + 1, draw(name), weight=weight, bias=bias
            )
        )
        tensors.append(Tensor(out, 1, 1, 1))
        if draw(st.booleans()):
            operations.append(Operation(OperationKind.SILU, (place + 1,), place + 2, draw(name)))
            tensors.append(Tensor(out, 1, 1, 1))
    loss = draw(st.sampled_from(Loss))
    beta = draw(st.floats(1.0, 16.0, width=32))
    return Artifact(
        tuple(parameters), tuple(tensors), tuple(operations), loss, len(operations), beta
    )


@given(linear_stacks())
def test_decode_gives_back_what_was_encoded(artifact: Artifact) -> None:
    assert Artifact.decode(artifact.encode()) == artifact


def test_every_field_of_every_operation_survives(classifier: Artifact) -> None:
    assert Artifact.decode(classifier.encode()) == classifier


def test_header_is_that_of_the_format(classifier: Artifact) -> None:
    data = classifier.encode()
    names = sum(len(p.name) for p in classifier.parameters)
    names += sum(len(o.name) for o in classifier.operations)
    assert data[:4] == b"SFDA"
    assert struct.unpack_from("<HHI", data, 4) == (1, 0, len(data))
    assert struct.unpack_from("<6H", data, 16) == (9, 8, 7, 1, 0, 7)
    assert struct.unpack_from("<fI", data, 28) == (1.25, names)
    assert data[36:64] == bytes(28)
    assert len(data) == 64 + 9 * 32 + 8 * 16 + 7 * 56 + names


@given(st.data())
def test_every_flipped_bit_is_noticed(classifier: Artifact, data: st.DataObject) -> None:
    damaged = bytearray(classifier.encode())
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        Artifact.decode(damaged)


@given(st.data())
def test_changed_fields_are_refused_or_mean_what_they_say(
    classifier: Artifact, data: st.DataObject
) -> None:
    changed = bytearray(classifier.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(changed) - 1))
        if place not in (MINOR_OFFSET, MINOR_OFFSET + 1):
            changed[place] = data.draw(st.integers(0, 255))
    encoded = sealed(changed)
    try:
        artifact = Artifact.decode(encoded)
    except FormatError:
        return
    assert artifact.encode() == encoded


@given(st.binary(max_size=400))
def test_noise_raises_format_error(noise: bytes) -> None:
    for data in (noise, b"SFDA\x01\x00\x00\x00" + noise):
        with pytest.raises(FormatError):
            Artifact.decode(data)


def test_every_shorter_and_longer_file_is_refused(classifier: Artifact) -> None:
    data = classifier.encode()
    for size in range(len(data)):
        with pytest.raises(FormatError):
            Artifact.decode(data[:size])
    with pytest.raises(FormatError):
        Artifact.decode(data + b"\0")


def test_error_says_where_and_what(classifier: Artifact) -> None:
    changed = bytearray(classifier.encode())
    changed[22] = 9
    with pytest.raises(FormatError, match=r"at byte 22: got 9, wanted"):
        Artifact.decode(sealed(changed))


def test_numbers_over_their_field_raise_input_error(classifier: Artifact) -> None:
    for changed in (
        dataclasses.replace(classifier, output=70_000),
        dataclasses.replace(classifier, beta=1e300),
        dataclasses.replace(classifier, tensors=(Tensor(-1, 1, 1, 1),)),
    ):
        with pytest.raises(InputError, match="does not fit"):
            changed.encode()


def test_repeated_parameter_names_are_refused(classifier: Artifact) -> None:
    changed = bytearray(classifier.encode().replace(b"norm.bias", b"head.bias"))
    with pytest.raises(FormatError, match=r"head\.bias"):
        Artifact.decode(sealed(changed))
    bias = dataclasses.replace(classifier.parameters[3], name="head.bias")
    parameters = (*classifier.parameters[:3], bias, *classifier.parameters[4:])
    with pytest.raises(InputError, match=r"head\.bias"):
        dataclasses.replace(classifier, parameters=parameters).encode()


def test_file_round_trip_and_identity(classifier: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "model.sfd"
    classifier.save(path)
    assert Artifact.load(path) == classifier
    assert Artifact.load(path).identity == classifier.identity
    assert dataclasses.replace(classifier, beta=1.5).identity != classifier.identity
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.sfd"]


def test_failed_save_keeps_the_old_file(classifier: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "model.sfd"
    classifier.save(path)
    with pytest.raises(InputError):
        dataclasses.replace(classifier, output=70_000).save(path)
    assert Artifact.load(path) == classifier


def test_matrix_view_of_parameters(classifier: Artifact) -> None:
    first, bias = classifier.parameters[:2]
    assert (first.rows, first.columns, first.count, first.shape) == (4, 18, 72, (4, 2, 3, 3))
    assert (bias.rows, bias.columns, bias.count, bias.shape) == (1, 4, 4, (4,))
    assert Parameter(ParameterKind.WEIGHT, 3, (6, 2, 1, 5), "c").shape == (6, 2, 5)
    assert classifier.parameters[7].shape == (3, 4)
    assert classifier.prunable == (0, 6, 7)


def test_shape_of_tensors() -> None:
    assert Tensor(3, 8, 9, 3).shape == (3, 8, 9)
    assert Tensor(3, 1, 9, 2).shape == (3, 9)
    assert Tensor(27, 1, 1, 1).shape == (27,)
    assert Tensor(3, 8, 9, 3).size == 216


def test_decode_allocates_a_bounded_multiple_of_its_input(classifier: Artifact) -> None:
    data = classifier.encode()
    Artifact.decode(data)
    tracemalloc.start()
    try:
        Artifact.decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 32 * len(data)
