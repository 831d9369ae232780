"""Inputs as int8: the same step, bit for bit, as on the float32 that they stand for."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from model_strategies import ModelBuilder, random_state
from numpy.typing import NDArray
from odd_models import every_operation
from session_batches import images

from sparsyfed.edge_runtime import Artifact, InputError, Quantization, Session, State, plan
from sparsyfed.edge_runtime.artifact import Tensor
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.format import Loss, OperationKind
from sparsyfed.edge_runtime.reference import ReferenceModel

RATES = {"learning_rate": 0.1, "weight_decay": 1e-3}
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ZERO_POINTS = st.integers(-128, 127)
SCALES = st.floats(2.0**-126, 2.0**90, width=32)


def quantized(x: NDArray[np.float32], form: Quantization) -> NDArray[np.int8]:
    """The rule of docs/format.md in NumPy."""
    with np.errstate(over="ignore"):
        steps = np.rint(x / np.float32(form.scale))
    return np.asarray(np.clip(steps + np.float32(form.zero_point), -128, 127), np.int8)


def stood_for(q: NDArray[np.int8], form: Quantization) -> NDArray[np.float32]:
    """The rule of docs/format.md in NumPy."""
    steps = q.astype(np.float32) - np.float32(form.zero_point)
    return np.asarray(np.float32(form.scale) * steps)


@given(x=arrays(np.float32, 40, elements=FLOATS), scale=SCALES, zero_point=ZERO_POINTS)
def test_int8_are_those_of_the_page(x: NDArray[np.float32], scale: float, zero_point: int) -> None:
    form = Quantization(scale, zero_point)
    got = np.asarray(form.quantize(x))
    assert got.tolist() == quantized(x, form).tolist()
    assert np.array_equal(np.asarray(form.dequantize(got)), stood_for(got, form))


def test_ties_go_to_the_even_number() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, -128.5, -129.5], np.float32)
    assert Quantization(1.0).quantize(x).tolist() == [0, 2, 2, 0, -2, 126, 127, -128, -128]


@given(x=arrays(np.float32, st.integers(1, 30), elements=st.floats(-(2.0**66), 2.0**66, width=32)))
def test_what_lies_in_the_range_is_off_by_half_a_scale_and_zero_is_exact(
    x: NDArray[np.float32],
) -> None:
    form = Quantization.of(x)
    error = np.abs(stood_for(quantized(x, form), form).astype(float) - x)
    # the ends of the range, whose zero point was rounded, may be another half off
    assert error.max() <= form.scale * (1 + 1e-5)
    assert form.dequantize(form.quantize(np.zeros(1, np.float32))).tolist() == [0.0]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Quantization(0.0),
        lambda: Quantization(float("nan")),
        lambda: Quantization(2e30),
        lambda: Quantization(1.0, 128),
        lambda: Quantization(1.0, 0.5),  # type: ignore[arg-type]
        lambda: Quantization.of_range(1.0, -1.0),
        lambda: Quantization.of(np.zeros(0, np.float32)),
        lambda: Quantization.of(np.array([0, np.nan], np.float32)),
        lambda: Quantization.of(np.array([0, np.inf], np.float32)),
        lambda: Quantization.of(np.zeros(3)),
        lambda: Quantization(1.0).quantize(np.array([np.nan], np.float32)),
        lambda: Quantization(1.0).quantize(np.zeros(3, np.int8)),
        lambda: Quantization(1.0).dequantize(np.zeros(3, np.float32)),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: object) -> None:
    assert callable(wrong)
    with pytest.raises(InputError):
        wrong()


def test_the_artifact_keeps_it(classifier: Artifact) -> None:
    form = Quantization(0.1, -7)
    data = replace(classifier, quantization=form).encode()
    assert Artifact.decode(data).quantization == form
    assert struct.unpack_from("<H", data, 6) == (1,)
    assert struct.unpack_from("<Hhf", data, 36) == (1, -7, form.scale)
    plain = classifier.encode()
    assert Artifact.decode(plain).quantization is None
    assert struct.unpack_from("<H", plain, 6) == (0,)  # as readers without int8 take it
    assert plain[36:64] == bytes(28)


@pytest.mark.parametrize("kernels", ["portable", None])
@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("memory", ["fast", "small", "layerwise"])
def test_steps_are_those_on_the_numbers_that_int8_stand_for(
    classifier: Artifact, sparse_state: State, kernels: str | None, batch: int, memory: str
) -> None:
    x, y = images(batch)
    form = Quantization.of(x)
    narrow = replace(classifier, quantization=form)
    q = quantized(x, form)
    with (
        Session.open(narrow, sparse_state, batch, kernels=kernels, memory=memory) as int8,
        Session.open(narrow, sparse_state, batch, kernels=kernels, memory=memory) as rounded,
        Session.open(classifier, sparse_state, batch, kernels=kernels, memory=memory) as wide,
    ):
        for _ in range(3):
            loss = wide.step(stood_for(q, form), y, **RATES)
            assert int8.step(q, y, **RATES) == rounded.step(x, y, **RATES) == loss
        assert int8.evaluate(q, y) == wide.evaluate(stood_for(q, form), y)
        assert int8.state().encode() == rounded.state().encode() == wide.state().encode()
        assert int8.memory.arena_peak_bytes == int8.memory.arena_bytes


def input_read_often() -> Artifact:
    """Operations in place on the input, an addition of it to itself, and to a later tensor."""
    net = ModelBuilder(Tensor(2, 4, 3, 3))
    twice = net.add(0, 0)
    x = net.activation(0, OperationKind.RELU)
    x = net.add(net.convolution(x, 2, (3, 3), padding=(1, 1)), 0)
    x = net.add(net.batch_norm(x), twice)
    x = net.add(net.batch_norm(0), x)
    net.linear(net.reshape(x), 3)
    return net.finish()


@pytest.mark.parametrize("model", [input_read_often, every_operation])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("memory", ["fast", "small", "layerwise"])
def test_every_reader_of_the_input_finds_it(model: object, batch: int, memory: str) -> None:
    assert callable(model)
    wide: Artifact = model()
    random = np.random.default_rng(batch)
    state = random_state(wide, random, 0.4)
    x = random.normal(size=(batch, *wide.tensors[0].shape)).astype(np.float32)
    y = random.integers(0, wide.tensors[wide.output].size, batch).astype(np.int32)
    form = Quantization.of(x)
    narrow = replace(wide, quantization=form)
    numbers = stood_for(quantized(x, form), form)
    reference = ReferenceModel(narrow, state)
    with (
        Session.open(narrow, state, batch, kernels="portable", memory=memory) as int8,
        Session.open(wide, state, batch, kernels="portable", memory=memory) as floats,
    ):
        loss = int8.step(x, y, **RATES)
        assert loss == floats.step(numbers, y, **RATES)
        assert loss == pytest.approx(reference.step(x, y, **RATES), rel=1e-4)
        assert int8.state().encode() == floats.state().encode()
        assert int8.memory.arena_peak_bytes == int8.memory.arena_bytes


def test_the_input_is_interleaved_only_where_it_is_read(
    classifier: Artifact, sparse_state: State
) -> None:
    for form in (None, Quantization(0.1)):
        artifact = replace(classifier, quantization=form)
        planned = plan(artifact, sparse_state, 8, kernels="portable")
        copies = [b for b in planned.buffers if b.kind == "activation" and b.owner is None]
        assert copies
        assert all(buffer.first_step == buffer.last_step for buffer in copies)
    one = plan(classifier, sparse_state, 1, kernels="portable")
    assert not [b for b in one.buffers if b.kind == "activation" and b.owner is None]


def test_a_session_refuses_int8_that_its_artifact_does_not_describe(
    classifier: Artifact, sparse_state: State
) -> None:
    x, y = images(2)
    with (
        Session.open(classifier, sparse_state, 2) as session,
        pytest.raises(InputError, match="int8, wanted float32 of shape"),
    ):
        session.step(np.zeros(x.shape, np.int8), y, **RATES)
    narrow = replace(classifier, quantization=Quantization(0.1))
    with Session.open(narrow, sparse_state, 2) as session:
        with pytest.raises(InputError, match="wanted float32 or int8 of shape"):
            session.step(x.astype(np.int32), y, **RATES)
        with pytest.raises(InputError, match="not finite"):
            session.step(np.full_like(x, np.nan), y, **RATES)
        with pytest.raises(InputError, match="label"):
            session.step(x, y + 100, **RATES)


def test_a_loss_over_values_takes_int8_inputs(
    regression: Artifact, regression_state: State
) -> None:
    assert regression.loss is Loss.MEAN_SQUARED_ERROR
    x = np.linspace(-2, 2, 15, dtype=np.float32).reshape(3, 5)
    narrow = replace(regression, quantization=Quantization.of(x))
    with Session.open(narrow, regression_state, 3) as session:
        assert session.step(x, x[:, :2].copy(), **RATES) > 0
        with pytest.raises(InputError, match="y with a value that is not finite"):
            session.step(x, np.full((3, 2), np.inf, np.float32), **RATES)


def test_a_damaged_form_is_refused(classifier: Artifact) -> None:
    data = bytearray(replace(classifier, quantization=Quantization(0.1)).encode())
    data[38] ^= 1
    with pytest.raises(FormatError, match="checksum"):
        Artifact.decode(bytes(data))
