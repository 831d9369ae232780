from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from user_models import Forward, Model, lowered

from sparsyfed import export
from sparsyfed.edge_runtime import Artifact, Session
from sparsyfed.edge_runtime.artifact import Operation
from sparsyfed.edge_runtime.format import (
    FLAG_COUNT_PADDING,
    FLAG_GELU_TANH,
    Loss,
    OperationKind,
    ParameterKind,
)

torch.set_num_threads(1)

Kind = OperationKind


def kinds(artifact: Artifact) -> list[OperationKind]:
    return [operation.kind for operation in artifact.operations]


def operation(layer: nn.Module, *shape: int) -> Operation:
    """The one operation of a layer that stands behind a first convolution or linear layer."""
    channels = shape[0]
    if len(shape) == 1:
        first: nn.Module = nn.Linear(channels, channels)
    else:
        first = (
            nn.Conv1d(channels, channels, 1)
            if len(shape) == 2
            else nn.Conv2d(channels, channels, 1)
        )
    artifact = lowered(nn.Sequential(first, layer), *shape)
    assert len(artifact.operations) == 2
    return artifact.operations[1]


def check_against_reference(model: nn.Module, *shape: int, batch: int = 3) -> Artifact:
    """Loss and gradients of the artifact and of the eager reference agree. Returns the artifact."""
    compiled = export.compile(model, torch.zeros(1, *shape), loss="mse")
    state = export.initial_state(model, sparsity=0.3, seed=1)
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(2))
    reference = export.reference(model).train()
    export.load_state(reference, state)
    reference.double()
    output = reference(x.double())
    y = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    loss = functional.mse_loss(output, y.double())
    torch.autograd.backward(loss)
    with Session.open(compiled.native, state, batch_size=batch) as session:
        native_loss, gradients = session.gradients(x.numpy(), y.numpy().reshape(-1))
    assert native_loss == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad[parameter != 0] if parameter.dim() > 1 else parameter.grad
        if state_kind(compiled.native, name) is ParameterKind.DENSE:
            gradient = parameter.grad.flatten()
        torch.testing.assert_close(
            torch.tensor(gradients[name]).double(), gradient, rtol=1e-4, atol=1e-6
        )
    return compiled.native


def state_kind(artifact: Artifact, name: str) -> ParameterKind:
    return next(parameter.kind for parameter in artifact.parameters if parameter.name == name)


# Every operation, field by field.


def test_convolution_2d() -> None:
    layer = nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), (1, 2), groups=2)
    got = operation(layer, 4, 9, 12)
    assert (got.kind, got.groups) == (Kind.CONVOLUTION, 2)
    assert (got.kernel, got.stride, got.padding, got.dilation) == ((3, 5), (2, 1), (1, 2), (1, 2))
    assert (got.weight, got.bias) == (2, 3)


def test_convolution_1d_lies_along_the_width() -> None:
    artifact = lowered(nn.Conv1d(4, 6, 5, 2, 3, 2, groups=2, bias=False), 4, 20)
    (got,) = artifact.operations
    assert (got.kernel, got.stride, got.padding, got.dilation) == ((1, 5), (1, 2), (0, 3), (1, 2))
    assert (got.weight, got.bias) == (0, None)
    assert artifact.parameters[0].dimensions == (6, 2, 1, 5)
    assert artifact.parameters[0].shape == (6, 2, 5)
    assert [tensor.shape for tensor in artifact.tensors] == [(4, 20), (6, 9)]


@pytest.mark.parametrize(("padding", "wanted"), [("same", (2, 4)), ("valid", (0, 0))])
def test_named_padding(padding: str, wanted: tuple[int, int]) -> None:
    got = operation(nn.Conv2d(2, 2, (3, 5), dilation=2, padding=padding), 2, 12, 12)
    assert got.padding == wanted


def test_linear() -> None:
    artifact = lowered(nn.Linear(5, 3), 5)
    assert artifact.parameters[0].dimensions == (3, 5, 1, 1)
    assert artifact.operations == (Operation(Kind.LINEAR, (0,), 1, "linear", weight=0, bias=1),)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d, (4,)), (nn.BatchNorm1d, (4, 6)), (nn.BatchNorm2d, (4, 5, 6))],
)
def test_batch_norm(norm: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    got = operation(norm(4, eps=1e-3, momentum=0.3), *shape)
    assert (got.kind, got.epsilon, got.momentum) == (Kind.BATCH_NORM, 1e-3, 0.3)
    assert (got.weight, got.bias, got.mean, got.variance) == (2, 3, 4, 5)


def test_batch_norm_without_affine() -> None:
    got = operation(nn.BatchNorm2d(4, affine=False), 4, 5, 6)
    assert (got.weight, got.bias, got.mean, got.variance) == (None, None, 2, 3)


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(affine: bool) -> None:
    got = operation(nn.GroupNorm(2, 4, eps=1e-4, affine=affine), 4, 7)
    assert (got.kind, got.groups, got.epsilon) == (Kind.GROUP_NORM, 2, 1e-4)
    assert (got.weight, got.bias) == ((2, 3) if affine else (None, None))


@pytest.mark.parametrize(("normalized", "count"), [((6,), 6), ((5, 6), 30), ((4, 5, 6), 120)])
def test_layer_norm(normalized: tuple[int, ...], count: int) -> None:
    got = operation(nn.LayerNorm(normalized), 4, 5, 6)
    assert (got.kind, got.normalized, got.weight, got.bias) == (Kind.LAYER_NORM, count, 2, 3)


def test_layer_norm_without_bias() -> None:
    assert operation(nn.LayerNorm(4, bias=False), 4).bias is None


@pytest.mark.parametrize(
    ("layer", "kind", "flags"),
    [
        (nn.ReLU(), Kind.RELU, 0),
        (nn.ReLU(inplace=True), Kind.RELU, 0),
        (nn.ReLU6(), Kind.RELU6, 0),
        (nn.ReLU6(inplace=True), Kind.RELU6, 0),
        (nn.Hardtanh(0, 6), Kind.RELU6, 0),
        (nn.Hardtanh(0.0, 6.0, inplace=True), Kind.RELU6, 0),
        (nn.GELU(), Kind.GELU, 0),
        (nn.GELU(approximate="tanh"), Kind.GELU, FLAG_GELU_TANH),
        (nn.SiLU(), Kind.SILU, 0),
        (nn.SiLU(inplace=True), Kind.SILU, 0),
    ],
)
def test_activations(layer: nn.Module, kind: OperationKind, flags: int) -> None:
    got = operation(layer, 4, 5, 6)
    assert (got.kind, got.flags, got.inputs, got.output) == (kind, flags, (1,), 2)


def test_max_pool() -> None:
    got = operation(nn.MaxPool2d((3, 2), padding=(1, 0)), 4, 9, 8)
    assert (got.kind, got.flags) == (Kind.MAX_POOL, 0)
    assert (got.kernel, got.stride, got.padding) == ((3, 2), (3, 2), (1, 0))
    got = operation(nn.MaxPool1d(3, 2, 1), 4, 9)
    assert (got.kernel, got.stride, got.padding) == ((1, 3), (1, 2), (0, 1))


def test_pool_that_also_returns_unused_indices() -> None:
    model = Model(
        lambda m, x: m.pool(m.conv(x))[0],
        conv=nn.Conv1d(2, 2, 1),
        pool=nn.MaxPool1d(2, return_indices=True),
    )
    assert kinds(lowered(model, 2, 8)) == [Kind.CONVOLUTION, Kind.MAX_POOL]


@pytest.mark.parametrize("counted", [True, False])
def test_average_pool(counted: bool) -> None:
    got = operation(nn.AvgPool2d(3, 2, 1, count_include_pad=counted), 4, 9, 8)
    assert (got.kind, got.flags) == (Kind.AVERAGE_POOL, FLAG_COUNT_PADDING if counted else 0)
    assert (got.kernel, got.stride, got.padding) == ((3, 3), (2, 2), (1, 1))
    assert operation(nn.AvgPool1d(4), 4, 9).stride == (1, 4)


@pytest.mark.parametrize(
    ("layer", "shape", "wanted"),
    [
        (nn.AdaptiveAvgPool2d(1), (4, 9, 8), (4, 1, 1)),
        (nn.AdaptiveAvgPool2d((None, 3)), (4, 9, 8), (4, 9, 3)),
        (nn.AdaptiveAvgPool1d(5), (4, 9), (4, 5)),
    ],
)
def test_adaptive_average_pool(
    layer: nn.Module, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    artifact = lowered(
        nn.Sequential(nn.Conv2d(4, 4, 1) if len(shape) == 3 else nn.Conv1d(4, 4, 1), layer), *shape
    )
    assert artifact.operations[1].kind is Kind.ADAPTIVE_AVERAGE_POOL
    assert artifact.tensors[2].shape == wanted


@pytest.mark.parametrize(
    ("axes", "keep", "wanted"),
    [
        ((2, 3), False, [(4, 1, 1), (4,)]),
        ((-1, -2), True, [(4, 1, 1)]),
        ((3,), False, [(4, 9, 1), (4, 9)]),
    ],
)
def test_mean_over_space(axes: tuple[int, ...], keep: bool, wanted: list[tuple[int, ...]]) -> None:
    model = Model(lambda m, x: m.conv(x).mean(axes, keepdim=keep), conv=nn.Conv2d(4, 4, 1))
    artifact = check_against_reference(model, 4, 9, 8)
    assert [tensor.shape for tensor in artifact.tensors[2:]] == wanted


@pytest.mark.parametrize(
    "dropout",
    [
        nn.Dropout(0.5),
        nn.Dropout(0.5, inplace=True),
        nn.Dropout2d(0.5),
        nn.AlphaDropout(0.5),
        nn.FeatureAlphaDropout(0.5),
        nn.Identity(),
    ],
)
def test_dropout_and_identity_leave_nothing(dropout: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), dropout, nn.ReLU())
    assert kinds(lowered(model, 1, 5, 5)) == [Kind.CONVOLUTION, Kind.RELU]


@pytest.mark.parametrize(
    "reshape",
    [
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], 2 * 3 * 3),
        lambda x: torch.flatten(x, 1),
        lambda x: x.contiguous().view(-1, 18),
        lambda x: x.flatten(2).flatten(1),
        lambda x: x.clone().flatten(2).unflatten(2, (3, 3)).flatten(1),
        lambda x: x.view(x.size(0), x.size(1), -1).view(-1, x.size(1) * x.size(2) * x.size(3)),
        lambda x: x.to(x.dtype).flatten(1),
    ],
)
def test_reshapes_for_any_batch_size(reshape: Callable[[Tensor], Tensor]) -> None:
    model = Model(
        lambda m, x: m.fc(reshape(m.conv(x))), conv=nn.Conv2d(1, 2, 3), fc=nn.Linear(18, 4)
    )
    for batch in (1, 2, 5):
        artifact = check_against_reference(model, 1, 5, 5, batch=batch)
    assert set(kinds(artifact)) == {Kind.CONVOLUTION, Kind.RESHAPE, Kind.LINEAR}
    assert artifact.tensors[-1].shape == (4,)


def test_squeeze_and_unsqueeze() -> None:
    model = Model(
        lambda m, x: m.fc(m.pool(m.conv(x.unsqueeze(1))).squeeze(-1).squeeze(-1)),
        conv=nn.Conv2d(1, 3, 3),
        pool=nn.AdaptiveAvgPool2d(1),
        fc=nn.Linear(3, 2),
    )
    artifact = check_against_reference(model, 6, 5)
    assert [tensor.shape for tensor in artifact.tensors] == [
        *[(6, 5), (1, 6, 5), (3, 4, 3), (3, 1, 1), (3, 1), (3,), (2,)]
    ]


# Models as users write them.


def residual(m: Any, x: Tensor) -> Any:
    y = functional.relu(m.bn1(m.conv1(x)))
    y = m.bn2(m.conv2(y))
    y += m.down(x)
    return m.fc(torch.flatten(functional.adaptive_avg_pool2d(functional.relu_(y), (1, 1)), 1))


def test_residual_function_with_downsampling() -> None:
    model = Model(
        residual,
        conv1=nn.Conv2d(2, 4, 3, 2, 1, bias=False),
        bn1=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 4, 3, 1, 1, bias=False),
        bn2=nn.BatchNorm2d(4),
        down=nn.Conv2d(2, 4, 1, 2),
        fc=nn.Linear(4, 3),
    )
    artifact = check_against_reference(model, 2, 8, 8)
    assert kinds(artifact).count(Kind.ADD) == 1
    names = [operation.name for operation in artifact.operations]
    assert {"conv1", "bn1", "conv2", "bn2", "down", "fc"} <= set(names)


def test_one_tensor_added_to_itself() -> None:
    model = Model(
        lambda m, x: m.b(m.a(x) + m.a_again(x)),
        a=nn.Linear(4, 4),
        a_again=nn.Linear(4, 4),
        b=nn.Linear(4, 2),
    )
    check_against_reference(model, 4)
    model = Model(lambda m, x: m.b((y := m.a(x)) + y), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    check_against_reference(model, 4)


@pytest.mark.parametrize(
    "forward",
    [
        # y is read after relu_ changed it
        lambda m, x: m.b((y := m.a(x)) + functional.relu(y, inplace=True)),
        # the result of relu_ is not used, its effect is
        lambda m, x: (y := m.a(x), functional.relu_(y), m.b(y))[-1],
        # a copy is changed, the original is not
        lambda m, x: m.b((y := m.a(x)) + functional.relu_(y.clone())),
        # two names of one tensor
        lambda m, x: m.b((y := m.a(x)).view(-1, 6) + functional.silu(y, inplace=True)),
        # in-place add, then the old name
        lambda m, x: m.b((y := m.a(x)).add_(m.c(x)) + y),
        # in-place activation on a view
        lambda m, x: m.b(functional.relu_(m.a(x).view(-1, 2, 3)).flatten(1)),
    ],
)
def test_in_place_operations_mean_what_pytorch_means(forward: Forward) -> None:
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 3)}
    if "c" in forward.__code__.co_names:
        layers["c"] = nn.Linear(4, 6)
    check_against_reference(Model(forward, **layers), 4)


def test_dropout_before_an_in_place_operation_is_a_copy() -> None:
    model = Model(
        lambda m, x: m.b((y := m.a(x)) + functional.relu_(m.drop(y))),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 3),
        drop=nn.Dropout(0.5),
    )
    artifact = lowered(model, 4)
    assert [op.inputs for op in artifact.operations] == [(0,), (1,), (1, 2), (3,)]


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(3, 3, 3, padding=1) for _ in range(3)])
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = self.act(conv(x)) + x
        return x


def test_names_are_module_paths() -> None:
    model = nn.Sequential(Stage(), nn.Flatten(), nn.Linear(3 * 8, 2))
    artifact = check_against_reference(model, 3, 8)
    names = [operation.name for operation in artifact.operations]
    assert names[:3] == ["0.convs.0", "0.act", "0.add"]
    assert names[-2:] == ["1", "2"]
    assert [p.name for p in artifact.parameters] == list(model.state_dict())


def test_parameters_are_in_state_dict_order_whatever_the_order_of_use() -> None:
    model = Model(lambda m, x: m.b(m.a(x)), b=nn.Linear(4, 2), a=nn.Linear(3, 4))
    artifact = check_against_reference(model, 3)
    assert [p.name for p in artifact.parameters] == ["b.weight", "b.bias", "a.weight", "a.bias"]
    assert [op.weight for op in artifact.operations] == [2, 0]


def test_the_result_holds_what_it_was_made_of(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    compiled = export.compile(model, torch.zeros(5, 3), beta=1.5)
    assert compiled.model is model
    assert (compiled.beta, compiled.loss, compiled.input_shape) == (1.5, "cross_entropy", (3,))
    assert (compiled.native.beta, compiled.native.loss) == (1.5, Loss.CROSS_ENTROPY)
    kinds_by_name = {p.name: p.kind for p in compiled.native.parameters}
    assert kinds_by_name["1.running_mean"] is ParameterKind.STATISTIC
    assert kinds_by_name["1.weight"] is ParameterKind.DENSE
    assert "1.num_batches_tracked" not in kinds_by_name
    compiled.save(tmp_path / "model.sfd")
    assert (tmp_path / "model.sfd").read_bytes() == compiled.encode()
    loaded = Artifact.load(tmp_path / "model.sfd")
    assert loaded.encode() == compiled.encode()
    assert loaded.parameters == compiled.native.parameters
