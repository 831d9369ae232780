"""Places where a number in the core is at its limit."""

from array import array

import numpy as np
import pytest
import torch
from torch import nn

from sparsyfed import export
from sparsyfed.edge_runtime import Session
from sparsyfed.edge_runtime.errors import SparsyFedError


def pooled(window: int) -> nn.Module:
    """A network with one max pool over its whole image."""
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(window), nn.Flatten(), nn.Linear(1, 2))


def test_the_last_cell_of_the_widest_window_of_a_max_pool_gets_its_gradient() -> None:
    model = pooled(256)
    x = np.zeros((2, 1, 256, 256), np.float32)
    x[:, :, -1, -1] = 3.0
    y = np.array([0, 1], np.int32)
    state = export.initial_state(model)
    oracle = export.reference(model, beta=1.25)
    export.load_state(oracle, state)
    loss = nn.functional.cross_entropy(oracle(torch.from_numpy(x)), torch.from_numpy(y).long())
    loss.backward()  # type: ignore[no-untyped-call]
    artifact = export.compile(model, torch.from_numpy(x)).native
    with Session.open(artifact, state, batch_size=2) as session:
        _, gradients = session.gradients(x, y)
    for name, parameter in oracle.named_parameters():
        assert parameter.grad is not None
        wanted = parameter.grad.numpy().ravel()
        assert np.linalg.norm(np.asarray(gradients[name]) - wanted) <= 1e-5 * np.linalg.norm(wanted)


def test_a_wider_window_is_refused() -> None:
    with pytest.raises(SparsyFedError):
        export.compile(pooled(257), torch.zeros(1, 1, 257, 257))


def test_a_batch_norm_over_equal_values_has_no_variance() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 90, 2)
    )
    state = export.initial_state(model)
    biases = array("f", [0.1, -0.7, 1e3 + 0.1])
    state = state.with_values(
        [biases if tensor.name == "0.bias" else tensor.value for tensor in state.tensors]
    )
    x = np.zeros((16, 1, 9, 10), np.float32)  # so the channels are constant: the biases
    artifact = export.compile(model, torch.from_numpy(x)).native
    with Session.open(artifact, state, batch_size=16) as session:
        session.step(x, np.zeros(16, np.int32), learning_rate=0.0)
        trained = {tensor.name: np.array(tensor.value) for tensor in session.state().tensors}
    np.testing.assert_allclose(trained["1.running_mean"], 0.1 * np.asarray(biases), rtol=1e-6)
    np.testing.assert_array_equal(trained["1.running_var"], np.full(3, 0.9, np.float32))
