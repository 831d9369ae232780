"""The batch norm of the reference, also where PyTorch has none."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsyfed.export import reference
from sparsyfed.export.batch_norm import DeviceBatchNorm


def layers() -> dict[str, tuple[_BatchNorm, tuple[int, ...]]]:
    return {
        "signals": (nn.BatchNorm1d(5, momentum=0.3), (3, 5, 4)),
        "vectors": (nn.BatchNorm1d(5, affine=False), (3, 5)),
        "images": (nn.BatchNorm2d(5, eps=0.01), (1, 5, 4, 2)),
    }


@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("training", [True, False])
def test_of_several_values_it_is_that_of_pytorch(name: str, training: bool) -> None:
    layer, shape = layers()[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    other = DeviceBatchNorm(copy.deepcopy(layer)).train(training)
    assert torch.equal(layer.train(training)(x), other(x))
    assert layer.state_dict().keys() == other.state_dict().keys()
    for key, value in layer.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)])
def test_one_value_is_normalised_to_zero_and_has_no_variance(shape: tuple[int, ...]) -> None:
    layer = nn.BatchNorm1d(3, momentum=0.25) if len(shape) < 4 else nn.BatchNorm2d(3, momentum=0.25)
    nn.init.constant_(layer.bias, 2.0)
    model = reference(nn.Sequential(layer)).train()
    x = torch.tensor([4.0, -8.0, 0.5]).reshape(shape).requires_grad_()
    y = model(x)
    assert torch.equal(y, torch.full(shape, 2.0))
    torch.autograd.backward(y.sum())
    assert x.grad is not None
    assert not x.grad.any()
    state = model.state_dict()
    assert state["0.running_mean"].tolist() == [1.0, -2.0, 0.125]
    assert state["0.running_var"].tolist() == [0.75, 0.75, 0.75]
