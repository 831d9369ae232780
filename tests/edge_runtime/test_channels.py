"""Batch norms whose input is computed again channel by channel: the same bits, in less memory."""

from typing import Any

import numpy as np
import pytest
from clear_cases import states_of
from model_strategies import Model, ModelBuilder
from plan_cases import assert_sound, residual_chain

from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.format import OperationKind
from sparsyfed.edge_runtime.plan import MemoryPlan, PlannedBuffer, plan
from sparsyfed.edge_runtime.session import Session

RATES: dict[str, Any] = {"learning_rate": 0.05, "weight_decay": 1e-3}


def narrowing_net() -> Artifact:
    """Convolutions with strides, biases and padding, a skip connection, and linear layers, all normalised."""
    net = ModelBuilder(Tensor(2, 13, 9, 3))
    x = net.activation(net.batch_norm(net.convolution(0, 12, (3, 3))), OperationKind.RELU6)
    for stride in (2, 1):
        y = net.convolution(x, 12, (3, 2), stride=(stride, 1), padding=(1, 1), bias=True)
        y = net.activation(net.batch_norm(y), OperationKind.RELU)
        shortcut = net.batch_norm(
            net.convolution(x, 12, (1, 1), stride=(stride, 1), padding=(0, 0))
        )
        y = net.batch_norm(net.convolution(y, 12, (3, 2), padding=(1, 0)))
        x = net.activation(net.add(y, shortcut), OperationKind.RELU)
    y = net.batch_norm(net.linear(net.reshape(x), 40))
    net.linear(net.batch_norm(net.linear(net.activation(y, OperationKind.RELU), 30)), 3)
    return net.finish()


MODELS = {"residual": residual_chain(3), "narrowing": narrowing_net()}


def channels_restored(planned: MemoryPlan) -> list[PlannedBuffer]:
    """List the scratch of steps that leave an output to the backward of the batch norm after them."""
    return [
        buffer
        for buffer in planned.buffers
        if buffer.kind == "scratch" and buffer.last_step > buffer.first_step
    ]


def trained(model: Model, batch_size: int, **options: Any) -> tuple[Any, ...]:
    """Losses and state after steps with full batches, whose arena is touched to its end."""
    random = np.random.default_rng(0)
    batches = [model.batch(random, batch_size) for _ in range(3)]
    with Session.open(
        model.artifact, model.state, batch_size, kernels="portable", **options
    ) as session:
        losses = [session.step(*batch, **RATES) for batch in batches]
        assert session.memory.arena_peak_bytes == session.memory.arena_bytes
        return losses, session.state()


@pytest.mark.parametrize("batch_size", [1, 5, 16, 18])
@pytest.mark.parametrize("density", [1.0, 0.1])
@pytest.mark.parametrize("name", MODELS)
def test_the_bits_are_those_of_a_plan_that_keeps_everything(
    name: str, density: float, batch_size: int
) -> None:
    model = states_of(MODELS[name], density)(0)
    wanted = trained(model, batch_size, arena_bytes=1 << 32)
    for memory in ("small", "layerwise"):
        assert trained(model, batch_size, memory=memory) == wanted


@pytest.mark.parametrize("memory", ["small", "layerwise"])
@pytest.mark.parametrize("batch_size", [16, 18])
def test_a_low_plan_has_room_for_one_channel_of_what_a_norm_wants(
    batch_size: int, memory: str
) -> None:
    model = states_of(MODELS["narrowing"], 0.1)(0)
    planned = plan(model.artifact, model.state, batch_size, kernels="portable", memory=memory)
    assert_sound(planned)
    rooms = channels_restored(planned)
    assert rooms
    for room in rooms:
        before, after = (planned.steps[step] for step in (room.first_step, room.last_step))
        assert (before.action, after.action) == ("restore", "backward")
        assert before.operation == room.owner
        assert after.operation == (room.owner or 0) + 1
        output = model.artifact.tensors[after.operation or 0]
        assert room.bytes <= output.size // output.channels * batch_size * 4
    assert planned.macs.recomputed > 0


def test_a_fast_plan_restores_whole_tensors() -> None:
    for artifact in MODELS.values():
        model = states_of(artifact, 0.1)(0)
        for kernels in ("portable", None):
            assert not channels_restored(plan(model.artifact, model.state, 5, kernels=kernels))
