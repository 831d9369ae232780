import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from sparsyfed.edge_runtime.errors import InputError, UnsupportedOperationError
from sparsyfed.edge_runtime.kept_inputs import keep_count
from sparsyfed.export.powerprop import (
    PrunedConv2d,
    PrunedLinear,
    keep_largest,
    powerprop,
    reference,
)

torch.set_num_threads(1)

BETAS = [1.0, 1.15, 1.25, 2.0, 4.0]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse(*shape: int, density: float, seed: int = 1) -> Tensor:
    values = random(*shape, seed=seed)
    values[torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= density] = 0
    return values


@pytest.mark.parametrize("beta", BETAS)
def test_power_and_gradient_follow_the_formula(beta: float) -> None:
    v = random(100).double().requires_grad_()
    w = powerprop(v, beta)
    torch.testing.assert_close(w, v.sign() * v.abs() ** beta)
    upstream = random(100, seed=1).double()
    torch.autograd.backward(w, upstream)
    torch.testing.assert_close(v.grad, beta * v.detach().abs() ** (beta - 1) * upstream)


@pytest.mark.parametrize("beta", [1.25, 2.0])
def test_power_passes_a_numerical_gradient_check(beta: float) -> None:
    v = (random(20).double().abs() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: powerprop(x, beta), (v,))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("upstream", [1.0, torch.inf, torch.nan])
def test_zero_stays_zero_whatever_the_upstream_gradient(beta: float, upstream: float) -> None:
    v = torch.tensor([0.0, -0.0, 1.0], requires_grad=True)
    w = powerprop(v, beta)
    torch.autograd.backward(w, torch.tensor([upstream, upstream, 1.0]))
    assert w.tolist() == [0.0, 0.0, 1.0]
    assert v.grad is not None
    assert v.grad.tolist() == [0.0, 0.0, pytest.approx(beta)]


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 10**9), st.integers(0, 10**9))
def test_keep_count_is_the_exact_ceiling(nonzeros: int, positions: int, elements: int) -> None:
    count = keep_count(nonzeros, positions, elements)
    assert count * positions >= nonzeros * elements > (count - 1) * positions


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(0, 35))
def test_largest_are_kept_and_ties_go_to_the_lower_position(values: list[int], count: int) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    wanted = [value if i in order[:count] else 0 for i, value in enumerate(values)]
    assert keep_largest(x, count).tolist() == wanted


def test_ranking_is_over_the_whole_batch() -> None:
    x = torch.tensor([[1.0, 2.0], [30.0, -40.0]])
    assert keep_largest(x, 2).tolist() == [[0.0, 0.0], [30.0, -40.0]]


LAYERS = [
    (nn.Linear(12, 7), (5, 12)),
    (nn.Linear(12, 7, bias=False), (5, 12)),
    (nn.Conv1d(4, 6, 5, 2, 3, 2, groups=2), (3, 4, 20)),
    (nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 2), bias=False), (3, 4, 9, 7)),
    (nn.Conv2d(6, 6, 3, padding="same", groups=6), (2, 6, 5, 5)),
    (nn.Conv2d(6, 4, 3, padding="valid", dilation=2), (2, 6, 7, 7)),
]


def parallel_gradients(
    layer: nn.Module, other: nn.Module, x: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of output, input gradient and parameter gradients of two layers, for one upstream
    gradient."""
    results = []
    for module in (layer, other):
        module.zero_grad()
        given_x = x.clone().requires_grad_()
        output = module(given_x)
        torch.autograd.backward(output, random(*output.shape, seed=9))
        results.append([output, given_x.grad, *(p.grad for p in module.parameters())])
    return list(zip(*results, strict=True))


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_dense_layer_with_beta_one_is_the_plain_layer(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    for got, wanted in parallel_gradients(reference(layer, 1.0), layer, random(*shape)):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("density", [0.5, 0.1, 0.0])
def test_sparse_layer_follows_the_formulas(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d, shape: tuple[int, ...], density: float
) -> None:
    beta = 1.25
    pruned = reference(layer, beta).double()
    v = sparse(*layer.weight.shape, density=density).double()
    with torch.no_grad():
        pruned.get_parameter("weight").copy_(v)
    x = random(*shape, seed=3).double().requires_grad_()
    output = pruned(x)
    upstream = random(*output.shape, seed=4).double()
    torch.autograd.backward(output, upstream)

    # Plain autograd, in three passes: exact x for the output and dX, pruned x for dW.
    w = (v.sign() * v.abs() ** beta).requires_grad_()
    plain = {"weight": w}
    if layer.bias is not None:
        plain["bias"] = layer.bias.detach().double().requires_grad_()
    exact = x.detach().clone().requires_grad_()
    wanted = torch.func.functional_call(layer, plain, (exact,))
    torch.testing.assert_close(output, wanted)
    torch.autograd.backward(wanted, upstream)
    torch.testing.assert_close(x.grad, exact.grad)
    if layer.bias is not None:
        torch.testing.assert_close(pruned.get_parameter("bias").grad, plain["bias"].grad)

    nonzeros, positions = int((v != 0).sum()), v.numel()
    kept = -(-nonzeros * x.numel() // positions)
    order = x.detach().abs().flatten().argsort(descending=True)
    pruned_x = x.detach().flatten().clone()
    pruned_x[order[kept:]] = 0
    again = torch.func.functional_call(layer, plain, (pruned_x.view(shape),))
    (d_w,) = torch.autograd.grad(again, w, upstream)
    d_v = torch.where(v == 0, 0.0, beta * v.abs() ** (beta - 1) * d_w)
    torch.testing.assert_close(pruned.get_parameter("weight").grad, d_v)


def test_support_never_grows_under_sgd_with_weight_decay() -> None:
    torch.manual_seed(0)
    model = reference(nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 3)), 1.25)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(sparse(*parameter.shape, density=0.2))
    supports = {n: p != 0 for n, p in model.named_parameters() if n.endswith("weight")}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
    for step in range(50):
        optimizer.zero_grad()
        output = model(random(4, 8, seed=step))
        torch.autograd.backward(functional.cross_entropy(output, torch.tensor([0, 1, 2, 0])))
        optimizer.step()
    for name, support in supports.items():
        assert torch.equal(model.get_parameter(name) != 0, support)


def test_evaluation_without_gradients_uses_the_same_weights() -> None:
    model = reference(nn.Conv2d(2, 3, 3), 2.0).eval()
    x = random(1, 2, 5, 5)
    with torch.no_grad():
        plain = functional.conv2d(
            x, powerprop(model.get_parameter("weight"), 2.0), model.get_parameter("bias")
        )
        torch.testing.assert_close(model(x), plain)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(x)
        return functional.relu(self.head(features.mean((2, 3))))


def test_reference_is_a_copy_with_the_same_names_and_mode() -> None:
    model = Nested().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied = reference(model)
    assert list(copied.state_dict()) == list(before)
    assert isinstance(copied.get_submodule("features.0"), PrunedConv2d)
    assert isinstance(copied.get_submodule("head"), PrunedLinear)
    assert not any(module.training for module in copied.modules())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert isinstance(model.features[0], nn.Conv2d)
    assert not isinstance(model.features[0], PrunedConv2d)


def test_reference_does_not_drop_out() -> None:
    model = reference(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9))).train()
    x = random(3, 4)
    assert torch.equal(model(x), model(x))


class OtherLinear(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")),
            "0: padding_mode='circular'",
        ),
        (nn.Sequential(nn.Conv1d(1, 1, 4, padding="same")), "pads the two ends differently"),
        (nn.Sequential(OtherLinear(2, 2)), "0: OtherLinear is a subclass"),
        (nn.Linear(2, 2).requires_grad_(requires_grad=False), "weight is frozen"),
    ],
)
def test_reference_refuses_what_devices_cannot_train(model: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=message):
        reference(model)


@pytest.mark.parametrize("beta", [0.5, 0.0, -1.0, 17.0, float("nan")])
def test_exponents_outside_the_format_are_refused(beta: float) -> None:
    with pytest.raises(InputError, match="beta"):
        reference(nn.Linear(2, 2), beta)
