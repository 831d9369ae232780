import copy
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch
from torch.nn import functional

from sparsyfed import export
from sparsyfed.tools.bench_dense import (
    dense_forward,
    dense_step,
    fast_reference,
    memory_formats,
    reference_like,
)
from sparsyfed.tools.bench_models import BETA, BenchModel


def gradients(module: Any, x: Any, y: Any) -> dict[str, Any]:
    module.train()
    loss: Any = functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y).long())
    loss.backward()
    return {
        name.replace(".layer.", "."): parameter.grad
        for name, parameter in module.named_parameters()
    }


@pytest.mark.parametrize("name", ["watch_cnn", "resnet8", "mlp"])
def test_the_published_step_starts_as_the_method_says(name: str) -> None:
    model = BenchModel.load(name, None)
    module = copy.deepcopy(model.module)
    export.load_state(module, model.masked("random", 0.7, "global", None))
    x, y = model.batch(4)
    wanted = gradients(export.reference(module, BETA), x, y)
    got = gradients(reference_like(module, BETA), x, y)
    assert got.keys() == wanted.keys()
    for name_of_parameter, gradient in wanted.items():
        torch.testing.assert_close(got[name_of_parameter], gradient, rtol=1e-4, atol=1e-6)


def test_a_convolution_of_the_published_step_keeps_its_first_threshold() -> None:
    model = BenchModel.load("watch_cnn", None)
    module = copy.deepcopy(model.module)
    export.load_state(module, model.masked("random", 0.9, "global", None))
    changed = reference_like(module, BETA)
    x, _ = model.batch(4)
    changed(torch.from_numpy(x))
    (layer, *_) = changed.children()
    first = float(cast("torch.Tensor", layer.threshold))
    changed(torch.from_numpy(10 * x))
    assert float(cast("torch.Tensor", layer.threshold)) == first > 0


def test_an_empty_layer_does_not_stop_the_published_step() -> None:
    model = BenchModel.load("mlp", None)
    module = copy.deepcopy(model.module)
    torch.nn.init.zeros_(module.get_parameter("3.weight"))
    x, y = model.batch(2)
    assert torch.isfinite(gradients(reference_like(module, BETA), x, y)["1.weight"]).all()


def test_a_dense_step_trains_and_a_forward_does_not() -> None:
    model = BenchModel.load("resnet8", None)
    x, y = model.batch(2)
    assert memory_formats(x) == ["contiguous", "channels_last"]
    for name in memory_formats(x):
        module = copy.deepcopy(model.module)
        before = copy.deepcopy(module.state_dict())
        dense_forward(module, x, y, name)()
        assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
        dense_step(module, x, y, name)()
        assert not torch.equal(before["conv1.weight"], module.state_dict()["conv1.weight"])


def test_signals_have_one_memory_format() -> None:
    assert memory_formats(np.zeros((1, 6, 256), np.float32)) == ["contiguous"]


@pytest.mark.parametrize("name", ["watch_cnn", "resnet8", "mlp"])
def test_the_fast_reference_is_the_reference(name: str) -> None:
    model = BenchModel.load(name, None)
    module = copy.deepcopy(model.module)
    export.load_state(module, model.masked("random", 0.9, "global", None))
    x, y = model.batch(4)
    wanted = gradients(export.reference(copy.deepcopy(module), BETA), x, y)
    got = gradients(fast_reference(module, BETA), x, y)
    for name_of_parameter, gradient in wanted.items():
        torch.testing.assert_close(got[name_of_parameter], gradient, rtol=1e-4, atol=1e-6)
