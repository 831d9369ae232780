"""The multiply-adds that a plan tells and a session counts, against counting them one by one."""

from dataclasses import replace

import numpy as np
import pytest
from clear_cases import clear_case, states_of
from model_strategies import ARCHITECTURES, Floats, Model, ModelBuilder, random_model
from odd_models import odd_model

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Tensor
from sparsyfed.edge_runtime.format import Loss, OperationKind
from sparsyfed.edge_runtime.measurements import Counters
from sparsyfed.edge_runtime.plan import MultiplyAdds, plan
from sparsyfed.edge_runtime.reference import ReferenceModel
from sparsyfed.edge_runtime.session import Session
from sparsyfed.edge_runtime.state import SparseTensor

LAYERS = (OperationKind.CONVOLUTION, OperationKind.LINEAR)


def pixels_read(artifact: Artifact, operation: Operation, column: int) -> list[tuple[int, int]]:
    """List the pixels inside the image that a layer reads at this column of its weight."""
    if operation.kind is OperationKind.LINEAR:
        return [(0, 0)]
    source, output = artifact.tensors[operation.inputs[0]], artifact.tensors[operation.output]
    offset = divmod(column % (operation.kernel[0] * operation.kernel[1]), operation.kernel[1])
    pixels = []
    for row in range(output.height):
        for pixel in range(output.width):
            y, x = (
                at * operation.stride[i] - operation.padding[i] + offset[i] * operation.dilation[i]
                for i, at in enumerate((row, pixel))
            )
            if 0 <= y < source.height and 0 <= x < source.width:
                pixels.append((y, x))
    return pixels


def depends_on_parameters(artifact: Artifact, tensor: int) -> bool:
    """Return whether a trainable parameter has touched this tensor."""
    if tensor == 0:
        return False
    operation = artifact.operations[tensor - 1]
    return (
        operation.weight is not None
        or operation.bias is not None
        or any(depends_on_parameters(artifact, source) for source in operation.inputs)
    )


def is_linear(artifact: Artifact, operation: Operation) -> bool:
    """Return whether each channel of a layer is one pixel that all its nonzeros meet."""
    source = artifact.tensors[operation.inputs[0]]
    return operation.kind is OperationKind.LINEAR or (
        (source.height, source.width) == operation.kernel == (1, 1)
        and operation.padding == (0, 0)
        and operation.groups == 1
    )


def brute_force_work(model: Model, examples: int) -> MultiplyAdds:
    """Count the multiply-adds of a batch; of weight gradients, as if kept inputs lay anywhere.

    A convolution that keeps over a third of its inputs multiplies all of them, zeros in between.
    """
    artifact = model.artifact
    forward = d_input = d_weight = 0
    for operation in artifact.operations:
        if operation.kind not in LAYERS:
            continue
        assert operation.weight is not None
        tensor = model.state.tensors[operation.weight]
        assert isinstance(tensor, SparseTensor)
        reads = sum(len(pixels_read(artifact, operation, column)) for column in tensor.column)
        elements = examples * artifact.tensors[operation.inputs[0]].size
        kept = -(-elements * tensor.count // (tensor.rows * tensor.columns))
        if not is_linear(artifact, operation) and 3 * tensor.count > tensor.rows * tensor.columns:
            kept = elements
        forward += examples * reads
        d_input += examples * reads if depends_on_parameters(artifact, operation.inputs[0]) else 0
        d_weight += examples * reads * kept // elements
    return MultiplyAdds(forward, d_input, d_weight, recomputed=0)


def kept_places(x: Floats, keep: int) -> Floats:
    """Return 1 where the `keep` largest |x| lie, else 0."""
    kept = np.zeros_like(x)
    kept.flat[np.argsort(-np.abs(x), axis=None, kind="stable")[:keep]] = 1
    return kept


def work_of_kept_inputs(reference: ReferenceModel, model: Model) -> int:
    """Count the multiply-adds of all weight gradients, over the inputs that the last batch kept."""
    artifact, done = model.artifact, 0
    for operation in artifact.operations:
        if operation.kind not in LAYERS:
            continue
        assert operation.weight is not None
        tensor = model.state.tensors[operation.weight]
        assert isinstance(tensor, SparseTensor)
        x = reference.activations[operation.inputs[0]]
        kept = kept_places(x, reference.keep_count(operation.weight, x.size))
        area = operation.kernel[0] * operation.kernel[1]
        if operation.kind is OperationKind.LINEAR:
            kept, area = kept.reshape(len(x), -1, 1, 1), 1
        groups = kept.shape[1] // (tensor.columns // area)
        for row in range(tensor.rows):
            first = row // (tensor.rows // groups) * (tensor.columns // area)
            for column in tensor.column[tensor.row_pointer[row] : tensor.row_pointer[row + 1]]:
                for y, pixel in pixels_read(artifact, operation, column):
                    done += int(kept[:, first + column // area, y, pixel].sum())
    return done


def done_by(model: Model, batch_size: int, x: Floats, y: object) -> Counters:
    with Session.open(model.artifact, model.state, batch_size, kernels="portable") as session:
        session.gradients(x, y)  # type: ignore[arg-type]
        return session.counters


@pytest.mark.parametrize("density", [1.0, 0.1, 0.001])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernels", ["portable", None])
def test_the_plan_is_what_a_session_uses_and_does(
    architecture: str, density: float, kernels: str | None
) -> None:
    rng = np.random.default_rng(0)
    for seed in range(4):
        model = random_model(architecture, seed, density, empty=seed == 3)
        batch_size = int(rng.integers(1, 34))
        planned = plan(model.artifact, model.state, batch_size, kernels=kernels)
        x, y = model.batch(rng, batch_size)
        with Session.open(model.artifact, model.state, batch_size, kernels=kernels) as session:
            skips_zeros = session.kernels == "portable"
            for _ in range(3):
                session.step(x, y, learning_rate=0.01)
            session.evaluate(x, y)
            counters = session.counters
            assert session.memory.arena_bytes == planned.arena_bytes
            assert session.memory.arena_peak_bytes == planned.arena_bytes
        macs = planned.macs
        expected = brute_force_work(model, batch_size)
        if not skips_zeros:
            expected = replace(expected, d_weight=expected.forward)
        assert replace(macs, recomputed=0) == expected
        assert (counters.forward, counters.d_input) == (3 * macs.forward, 3 * macs.d_input)
        assert counters.recomputed == 3 * macs.recomputed
        assert counters.d_weight <= 3 * macs.forward
        assert counters.d_weight > 0 or density < 0.1
        if macs.d_weight == macs.forward or not skips_zeros:
            assert counters.d_weight == 3 * macs.d_weight
        assert (counters.steps, counters.evaluation) == (3, macs.forward)


@pytest.mark.parametrize("seed", range(40))
def test_the_plan_counts_the_work_of_odd_geometry(seed: int) -> None:
    model = states_of(odd_model(seed), 0.5)(seed)
    macs = plan(model.artifact, model.state, 3, kernels="portable").macs
    assert replace(macs, recomputed=0) == brute_force_work(model, 3)


def test_partial_batches_count_their_own_work() -> None:
    model = random_model("depthwise", 0, 1.0)
    with Session.open(model.artifact, model.state, 8) as session:
        for examples in (8, 3):
            session.step(*model.batch(np.random.default_rng(0), examples), learning_rate=0.01)
        counters = session.counters
    done = MultiplyAdds(counters.forward, counters.d_input, counters.d_weight, recomputed=0)
    assert done == brute_force_work(model, 11)


def smooth_model(stride: tuple[int, int], dilation: tuple[int, int]) -> Artifact:
    """Return convolutions, one of them in groups, and a linear layer; no input of theirs is zero."""
    net = ModelBuilder(Tensor(4, 9, 8, 3))
    x = net.convolution(0, 6, (3, 2), stride=stride, padding=(2, 1), dilation=dilation, groups=2)
    x = net.activation(x, OperationKind.SILU)
    x = net.activation(net.convolution(x, 5, (1, 1)), OperationKind.SILU)
    net.linear(net.reshape(x), 3)
    return net.finish(Loss.CROSS_ENTROPY)


@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 3), (4, 2)])
def test_the_portable_weight_gradient_multiplies_the_kept_inputs_alone(
    stride: tuple[int, int], dilation: tuple[int, int]
) -> None:
    for examples in (1, 7, 20):
        case = clear_case(states_of(smooth_model(stride, dilation), 0.3), examples)
        reference = ReferenceModel(case.model.artifact, case.model.state)
        reference.forward(case.x, training=True)
        counters = done_by(case.model, examples, case.x, case.y)
        assert counters.d_weight == work_of_kept_inputs(reference, case.model)


def test_the_planned_weight_gradient_is_the_mean_over_random_inputs() -> None:
    model = states_of(smooth_model((1, 1), (1, 1)), 0.2)(0)
    rng = np.random.default_rng(0)
    planned = plan(model.artifact, model.state, 32, kernels="portable").macs
    done = [done_by(model, 32, *model.batch(rng, 32)).d_weight for _ in range(10)]
    assert planned.d_weight < planned.forward / 4
    assert np.mean(done) == pytest.approx(planned.d_weight, rel=0.05)
