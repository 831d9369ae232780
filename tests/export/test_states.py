from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsyfed import export
from sparsyfed.edge_runtime import DenseTensor, SparseTensor, State
from sparsyfed.edge_runtime.errors import InputError, MismatchError

torch.set_num_threads(1)


def small_model() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    with torch.no_grad():
        for i, (_, value) in enumerate(model.state_dict().items()):
            if value.is_floating_point():
                value.copy_(torch.linspace(0.1, 1, value.numel()).view(value.shape) + i)
    return model


def dense(tensor: SparseTensor) -> np.ndarray:
    values = np.zeros((tensor.rows, tensor.columns), np.float32)
    for row in range(tensor.rows):
        start, end = tensor.row_pointer[row], tensor.row_pointer[row + 1]
        values[row, list(tensor.column[start:end])] = tensor.value[start:end]
    return values


def weights(state: State) -> dict[str, np.ndarray]:
    return {t.name: dense(t) for t in state.tensors if isinstance(t, SparseTensor)}


def test_state_and_artifact_have_one_order() -> None:
    model = small_model()
    artifact = export.compile(model, torch.zeros(1, 2, 6, 6)).native
    for state in (export.initial_state(model, sparsity=0.5), export.state_from_model(model)):
        assert [t.name for t in state.tensors] == [p.name for p in artifact.parameters]
        for tensor, parameter in zip(state.tensors, artifact.parameters, strict=True):
            if isinstance(tensor, SparseTensor):
                assert (tensor.rows, tensor.columns) == (parameter.rows, parameter.columns)
            else:
                assert (tensor.kind, tensor.count) == (parameter.kind, parameter.count)


def test_initial_dense_tensors() -> None:
    model = small_model()
    state = export.initial_state(model)
    values = {t.name: list(t.value) for t in state.tensors if isinstance(t, DenseTensor)}
    assert values["0.bias"] == [0.0] * 4
    assert values["5.bias"] == [0.0] * 5
    own = model.state_dict()
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias"):
        assert values[name] == own[name].tolist()
    assert "1.num_batches_tracked" not in values


@pytest.mark.parametrize("beta", [1.0, 1.25, 3.0])
def test_initial_weights_have_the_spread_of_the_method(beta: float) -> None:
    model = nn.Sequential(
        nn.Conv1d(20, 60, 5, groups=2, bias=False), nn.Linear(100, 200, bias=False)
    )
    for values, fan_in in zip(
        weights(export.initial_state(model, beta=beta)).values(), (50, 100), strict=True
    ):
        u = np.sign(values) * np.abs(values) ** beta
        std = math.sqrt(1 / fan_in) / 0.87962566
        assert np.abs(u).max() <= 2 * std * (1 + 1e-5)
        assert np.abs(u).max() > 1.9 * std
        assert u.std() == pytest.approx(math.sqrt(1 / fan_in), rel=0.03)
        assert abs(u.mean()) < 0.05 * std


def test_initial_state_depends_on_the_seed_alone() -> None:
    model = small_model()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = export.initial_state(model, seed=3).encode()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    assert export.initial_state(model, seed=3).encode() == first
    assert export.initial_state(model, seed=4).encode() != first


def test_initial_state_leaves_the_model_alone() -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export.initial_state(model, sparsity=0.7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.99))
def test_presparsified_state_keeps_the_largest_of_all_layers(sparsity: float) -> None:
    model = small_model()
    whole = np.concatenate([v.ravel() for v in weights(export.initial_state(model)).values()])
    kept = whole.size - round(sparsity * whole.size)
    state = export.initial_state(model, sparsity=sparsity)
    assert state.nonzeros == kept
    pruned = np.concatenate([v.ravel() for v in weights(state).values()])
    order = np.argsort(-np.abs(whole), kind="stable")
    wanted = whole.copy()
    wanted[order[kept:]] = 0
    assert np.array_equal(pruned, wanted)


def test_layer_budgets() -> None:
    model = small_model()
    state = export.initial_state(model, sparsity=0.5, budget={"0.weight": 7, "5.weight": 1})
    counts = {t.name: t.count for t in state.tensors if isinstance(t, SparseTensor)}
    assert counts == {"0.weight": 7, "2.weight": 36, "5.weight": 1}
    whole = weights(export.initial_state(model))["0.weight"].ravel()
    first = weights(state)["0.weight"].ravel()
    assert set(np.flatnonzero(first)) == set(np.argsort(-np.abs(whole))[:7])
    erk = export.initial_state(model, sparsity=0.5, budget="erk")
    assert erk.nonzeros == 188 - 94
    with pytest.raises(InputError):
        export.initial_state(model, sparsity=0.5, budget="local")


def test_dense_state_has_every_position() -> None:
    model = small_model()
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    state = export.state_from_model(model)
    assert (state.nonzeros, state.density) == (188, 1.0)


def test_a_state_comes_back_from_a_model() -> None:
    model = small_model()
    state = export.initial_state(model, seed=5)
    other = small_model()
    export.load_state(other, state)
    assert export.state_from_model(other).encode() == state.encode()


def test_a_sparse_state_is_loaded_with_zeros_off_its_support() -> None:
    model = small_model()
    state = export.initial_state(model, sparsity=0.8)
    export.load_state(model, state)
    for name, values in weights(state).items():
        assert np.array_equal(
            model.get_parameter(name).detach().numpy().reshape(values.shape), values
        )
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_empty_layer_is_loaded() -> None:
    model = small_model()
    state = export.initial_state(model, sparsity=0.9)
    first = state.tensors[0]
    assert isinstance(first, SparseTensor)
    pointer = first.row_pointer[:1] * (first.rows + 1)
    emptied = replace(first, row_pointer=pointer, column=first.column[:0], value=first.value[:0])
    export.load_state(model, State((emptied, *state.tensors[1:])))
    assert torch.count_nonzero(model.get_parameter("0.weight")) == 0


def test_wide_layers_are_loaded() -> None:
    model = nn.Linear(70_000, 2)
    state = export.initial_state(model, sparsity=0.99)
    export.load_state(model, state)
    (values,) = weights(state).values()
    assert np.array_equal(model.weight.detach().numpy(), values)


@pytest.mark.parametrize("beta", [1.0, 1.25])
def test_a_served_model_has_the_effective_weights(beta: float) -> None:
    model = small_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = export.initial_state(model, beta=beta, sparsity=0.5)
    served = export.to_inference(model, state, beta=beta)
    assert not any(module.training for module in served.modules())
    for name, v in weights(state).items():
        w = served.get_parameter(name).detach().numpy().reshape(v.shape)
        np.testing.assert_allclose(w, np.sign(v) * np.abs(v) ** beta, rtol=1e-6)
    assert type(served.get_submodule("0")) is nn.Conv2d
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_served_model_computes_as_the_reference() -> None:
    model = small_model()
    state = export.initial_state(model, sparsity=0.5)
    reference = export.reference(model).eval()
    export.load_state(reference, state)
    x = torch.rand(3, 2, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(export.to_inference(model, state)(x), reference(x))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(16, 5), "tensor 0 of the state is 'weight'"),
        (
            nn.Sequential(nn.Conv2d(2, 4, 5)),
            r"'0.weight' of size \(4, 50\), the model has '0.weight'",
        ),
        (nn.Sequential(nn.Conv2d(2, 4, 3)), "the state has 2 tensors, the model 11"),
    ],
)
def test_a_state_of_another_model_is_refused_before_anything_is_written(
    other: nn.Module, message: str
) -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = export.initial_state(other)
    for use in (export.load_state, export.to_inference):
        with pytest.raises(MismatchError, match=message):
            use(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
