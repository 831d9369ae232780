"""The NumPy reference against PyTorch's autograd, in double precision."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_strategies import (
    ARCHITECTURES,
    Model,
    random_model,
    random_state,
)
from operation_cases import OPERATION_CASES, TIE_CASES, operation_case, tie_case
from torch.nn import functional

from sparsyfed.edge_runtime.artifact import Operation
from sparsyfed.edge_runtime.errors import InputError, MismatchError
from sparsyfed.edge_runtime.format import (
    FLAG_COUNT_PADDING,
    FLAG_GELU_TANH,
    Loss,
    OperationKind,
    ParameterKind,
)
from sparsyfed.edge_runtime.reference import ReferenceModel
from sparsyfed.edge_runtime.reference_operations import top_k

torch.set_num_threads(1)

BOUND = 1e-9


class TorchModel:
    """The same artifact, interpreted with PyTorch's own operations; gradients by autograd.

    A training batch goes through the reference first.
    """

    def __init__(self, reference: ReferenceModel) -> None:
        self.artifact = reference.artifact
        self.reference = reference
        self.values = [
            torch.tensor(value.reshape(parameter.shape), dtype=torch.float64)
            for parameter, value in zip(self.artifact.parameters, reference.values, strict=True)
        ]
        for parameter, value in zip(self.artifact.parameters, self.values, strict=True):
            value.requires_grad_(parameter.kind is not ParameterKind.STATISTIC)

    def forward(self, x: Any, training: bool) -> torch.Tensor:
        tensors = [torch.tensor(x, dtype=torch.float64)]
        for operation in self.artifact.operations:
            inputs = [tensors[i] for i in operation.inputs]
            shape = self.artifact.tensors[operation.output].shape
            y = self._run(operation, training, shape, *inputs)
            tensors.append(y.reshape(len(x), *shape))
        return tensors[self.artifact.output]

    def loss(self, output: torch.Tensor, y: Any) -> torch.Tensor:
        if self.artifact.loss is Loss.MEAN_SQUARED_ERROR:
            return functional.mse_loss(output, torch.tensor(y, dtype=torch.float64))
        return functional.cross_entropy(output, torch.tensor(y, dtype=torch.int64))

    def gradients(self, x: Any, y: Any) -> tuple[float, dict[str, Any]]:
        for value in self.values:
            value.grad = None
        loss = self.loss(self.forward(x, training=True), y)
        loss.backward()  # type: ignore[no-untyped-call]
        found = {
            parameter.name: value.grad.numpy()
            for parameter, value in zip(self.artifact.parameters, self.values, strict=True)
            if value.grad is not None
        }
        return loss.item(), found

    def step(self, x: Any, y: Any, learning_rate: float, weight_decay: float) -> float:
        trained = [value for value in self.values if value.requires_grad]
        optimizer = torch.optim.SGD(trained, learning_rate, weight_decay=weight_decay)
        loss, _ = self.gradients(x, y)
        optimizer.step()
        return loss

    def _value(self, index: int | None) -> torch.Tensor | None:
        return None if index is None else self.values[index]

    def _multiply(
        self,
        operation: Operation,
        training: bool,
        x: torch.Tensor,
        product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Return a product with w = sign(v)|v|^beta; its gradient of w sees the pruned input."""
        assert operation.weight is not None
        v = self.values[operation.weight]
        w = torch.sign(v) * v.abs() ** self.artifact.beta
        if not training:
            return product(x, w)
        pruned = product(self._pruned(operation, x.detach()), w)
        return product(x, w.detach()) + pruned - pruned.detach()

    def _pruned(self, operation: Operation, x: torch.Tensor) -> torch.Tensor:
        """Return x at the entries that the reference has kept, after a check that they are a Top-K.

        Entries that would be equal but for rounding may be ranked differently: either choice is right.
        """
        assert operation.weight is not None
        support = self.reference.supports[operation.weight]
        assert support is not None
        keep = -(-int(support.sum()) * x.numel() // support.size)
        kept = top_k(self.reference.activations[operation.inputs[0]], keep).reshape(x.shape) != 0
        magnitude = x.abs().numpy()
        smallest = magnitude[kept].min(initial=np.inf) if kept.sum() == keep else 0.0
        assert kept.sum() <= keep
        assert magnitude[~kept].max(initial=0.0) <= smallest + BOUND
        return x * torch.tensor(kept)

    def _run(
        self, operation: Operation, training: bool, shape: tuple[int, ...], *inputs: torch.Tensor
    ) -> torch.Tensor:
        x, kind, flags = inputs[0], operation.kind, operation.flags
        weight, bias = self._value(operation.weight), self._value(operation.bias)
        axes = x.ndim - 2
        kernel, stride = operation.kernel[-axes:], operation.stride[-axes:]
        padding, dilation = operation.padding[-axes:], operation.dilation[-axes:]
        if kind is OperationKind.CONVOLUTION:
            convolve = functional.conv1d if axes == 1 else functional.conv2d
            y = self._multiply(
                operation,
                training,
                x,
                lambda a, w: convolve(a, w, None, stride, padding, dilation, operation.groups),
            )
            return y if bias is None else y + bias.reshape(-1, *[1] * axes)
        if kind is OperationKind.LINEAR:
            y = self._multiply(operation, training, x.flatten(1), lambda a, w: a @ w.T)
            return y if bias is None else y + bias
        if kind is OperationKind.BATCH_NORM:
            mean, variance = self._value(operation.mean), self._value(operation.variance)
            by_batch = training or mean is None
            return functional.batch_norm(
                x, mean, variance, weight, bias, by_batch, operation.momentum, operation.epsilon
            )
        if kind is OperationKind.GROUP_NORM:
            return functional.group_norm(x, operation.groups, weight, bias, operation.epsilon)
        if kind is OperationKind.LAYER_NORM:
            rows = x.reshape(-1, operation.normalized)
            size = (operation.normalized,)
            return functional.layer_norm(rows, size, weight, bias, operation.epsilon)
        if kind is OperationKind.MAX_POOL:
            pool = functional.max_pool1d if axes == 1 else functional.max_pool2d
            return pool(x, kernel, stride, padding)
        if kind is OperationKind.AVERAGE_POOL:
            counts = bool(flags & FLAG_COUNT_PADDING)
            if axes == 1:
                return functional.avg_pool1d(x, kernel, stride, padding, False, counts)
            return functional.avg_pool2d(x, kernel, stride, padding, False, counts)
        if kind is OperationKind.ADAPTIVE_AVERAGE_POOL:
            if axes == 1:
                return functional.adaptive_avg_pool1d(x, shape[-1])
            return functional.adaptive_avg_pool2d(x, (shape[-2], shape[-1]))
        simple: dict[OperationKind, Callable[..., torch.Tensor]] = {
            OperationKind.RELU: functional.relu,
            OperationKind.RELU6: functional.relu6,
            OperationKind.SILU: functional.silu,
            OperationKind.ADD: torch.add,
            OperationKind.RESHAPE: torch.clone,
        }
        if kind is OperationKind.GELU:
            return functional.gelu(x, approximate="tanh" if flags & FLAG_GELU_TANH else "none")
        return simple[kind](*inputs)


def assert_close(got: Any, wanted: Any, what: str, floor: float = 1e-3) -> None:
    """Bound the relative error in norm; what is smaller than the floor counts as that large."""
    got, wanted = np.asarray(got).ravel(), np.asarray(wanted).ravel()
    scale = max(float(np.linalg.norm(wanted)), floor)
    assert np.linalg.norm(got - wanted) <= BOUND * scale, what


def assert_same_gradients(model: Model, x: Any, y: Any) -> None:
    reference = ReferenceModel(model.artifact, model.state)
    loss, got = reference.gradients(x, y)
    wanted_loss, wanted = TorchModel(reference).gradients(x, y)
    assert_close(loss, wanted_loss, "loss")
    assert got.keys() == wanted.keys()
    # A gradient may be zero but for rounding, such as that of a bias before a batch norm.
    whole = np.sqrt(sum(np.sum(gradient**2) for gradient in wanted.values()))
    for name, gradient in wanted.items():
        assert_close(got[name], gradient, name, floor=1e-3 * whole)


@pytest.mark.parametrize("case", OPERATION_CASES)
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_an_operation_has_the_gradients_of_autograd(case: str, density: float) -> None:
    rng = np.random.default_rng(1)
    artifact = operation_case(case)
    model = Model(artifact, random_state(artifact, rng, density, stored_zeros=True))
    x, y = model.batch(rng, 5)
    assert_same_gradients(model, 4 * x, y)  # wide enough that ReLU6 has both of its ends


@pytest.mark.parametrize("case", TIE_CASES)
def test_ties_and_edges_are_decided_as_in_pytorch(case: str) -> None:
    assert_same_gradients(*tie_case(case))


def test_every_operation_kind_is_among_the_cases() -> None:
    seen = {o.kind for case in OPERATION_CASES for o in operation_case(case).operations}
    assert seen == set(OperationKind)


@settings(max_examples=40)
@given(
    architecture=st.sampled_from(sorted(ARCHITECTURES)),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([1.0, 0.5, 0.1, 0.05, 0.001]),
    empty=st.booleans(),
    examples=st.integers(1, 9),
)
def test_a_random_model_trains_as_in_pytorch(
    architecture: str, seed: int, density: float, empty: bool, examples: int
) -> None:
    model = random_model(architecture, seed, density, empty=empty)
    rng = np.random.default_rng(seed)
    x, y = model.batch(rng, examples)
    assert_same_gradients(model, x, y)

    reference = ReferenceModel(model.artifact, model.state)
    torch_model = TorchModel(reference)
    for _ in range(3):
        got, wanted = (m.step(x, y, 0.05, 0.01) for m in (reference, torch_model))
        assert_close(got, wanted, "loss")
    for parameter, value, expected in zip(
        model.artifact.parameters, reference.values, torch_model.values, strict=True
    ):
        assert_close(value, expected.detach(), parameter.name)
    output = torch_model.forward(x, training=False)
    loss, correct = reference.evaluate(x, y)
    assert_close(loss, torch_model.loss(output, y).item(), "evaluation loss")
    if model.artifact.loss is Loss.CROSS_ENTROPY:
        assert correct == int((output.argmax(1).numpy() == y).sum())
    else:
        assert correct is None


def test_gradients_leave_the_model_as_it_was() -> None:
    model = random_model("residual", 3, 0.5)
    reference = ReferenceModel(model.artifact, model.state)
    reference.gradients(*model.batch(np.random.default_rng(0), 4))
    assert reference.state() == model.state


def test_a_step_keeps_the_support_and_its_stored_zeros() -> None:
    rng = np.random.default_rng(0)
    artifact = random_model("mlp", 0, 0.5).artifact
    model = Model(artifact, random_state(artifact, rng, 0.2, stored_zeros=True))
    reference = ReferenceModel(artifact, model.state)
    for _ in range(5):
        reference.step(*model.batch(rng, 8), 0.1, 1e-3)
    trained = reference.state()
    assert trained.support_id == model.state.support_id
    for before, after in zip(model.state.tensors, trained.tensors, strict=True):
        zeros = np.asarray(before.value) == 0
        assert not np.asarray(after.value)[zeros].any()


def test_single_precision_is_kept_throughout() -> None:
    for architecture in ARCHITECTURES:
        model = random_model(architecture, 1, 0.5)
        reference = ReferenceModel(model.artifact, model.state, np.float32)
        x, y = model.batch(np.random.default_rng(0), 4)
        _, gradients = reference.gradients(x, y)
        reference.step(x, y, 0.1, 0.1)
        arrays = [*gradients.values(), *reference.activations, *reference.values]
        assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=30), share=st.floats(0, 1))
def test_top_k_keeps_the_largest_and_the_lower_position_of_equals(
    values: list[int], share: float
) -> None:
    keep = round(share * len(values))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    wanted = [value if i in order[:keep] else 0 for i, value in enumerate(values)]
    assert top_k(np.array(values, float), keep).tolist() == wanted


def test_top_k_ranks_over_all_layers_or_in_each() -> None:
    model = random_model("mlp", 2, 0.5)
    reference = ReferenceModel(model.artifact, model.state)
    everything = np.concatenate(
        [
            abs(v).ravel()
            for v, s in zip(reference.values, reference.supports, strict=True)
            if s is not None
        ]
    )
    threshold = np.sort(everything)[-20]
    for value in reference.top_k(20).values():
        assert ((value == 0) | (abs(value) >= threshold)).all()
    assert sum(np.count_nonzero(value) for value in reference.top_k(20).values()) == 20

    keep = list(range(len(model.artifact.parameters)))
    for name, value in reference.top_k(keep).items():
        index = [p.name for p in model.artifact.parameters].index(name)
        assert np.count_nonzero(value) == keep[index]


def test_a_state_of_another_artifact_is_refused() -> None:
    model, other = random_model("mlp", 0, 1.0), random_model("mlp", 1, 1.0)
    for state in (other.state, replace(model.state, tensors=model.state.tensors[:-1])):
        with pytest.raises(MismatchError):
            ReferenceModel(model.artifact, state)


def test_a_batch_of_another_size_is_refused() -> None:
    model = random_model("mlp", 0, 1.0)
    with pytest.raises(InputError, match="wanted"):
        ReferenceModel(model.artifact, model.state).forward(np.zeros((2, 3)), training=False)
