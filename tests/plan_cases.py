"""What tests of memory plans share."""

import itertools
from typing import Any

from model_strategies import ModelBuilder

from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.format import OperationKind
from sparsyfed.edge_runtime.plan import MemoryPlan

SMALL: dict[str, Any] = {"memory": "small"}


def residual_chain(blocks: int, *, norm: str = "batch") -> Artifact:
    """Return a convolutional net with skip connections, deep enough that memory can be saved."""
    net = ModelBuilder(Tensor(3, 8, 8, 3))

    def normal(x: int) -> int:
        return net.batch_norm(x) if norm == "batch" else net.group_norm(x, 2)

    x = net.activation(normal(net.convolution(0, 8, (3, 3), padding=(1, 1))), OperationKind.RELU)
    for _ in range(blocks):
        y = net.activation(
            normal(net.convolution(x, 8, (3, 3), padding=(1, 1))), OperationKind.RELU
        )
        y = normal(net.convolution(y, 8, (3, 3), padding=(1, 1)))
        x = net.activation(net.add(y, x), OperationKind.RELU)
    x = net.pool(x, OperationKind.MAX_POOL, (2, 2), stride=(2, 2))
    net.linear(net.reshape(x), 3)
    return net.finish()


def assert_sound(planned: MemoryPlan) -> None:
    """Buffers lie in the arena, apart while they are alive; every step follows from the one before."""
    shared = [buffer for buffer in planned.buffers if buffer.bytes]
    assert max(buffer.offset + buffer.bytes for buffer in shared) == planned.arena_bytes
    for one, other in itertools.combinations(shared, 2):
        together = one.first_step <= other.last_step and other.first_step <= one.last_step
        overlap = one.offset < other.offset + other.bytes and other.offset < one.offset + one.bytes
        assert not (together and overlap), (one, other)
    actions = [step.action for step in planned.steps]
    loss = actions.index("loss")
    assert set(actions[:loss]) == {"forward"}
    assert actions[-1] == "update"
    assert set(actions[loss + 1 : -1]) <= {"restore", "pack", "backward"}
    done = [step.operation for step in planned.steps if step.action == "backward"]
    assert done == sorted(done, key=lambda operation: -(operation or 0))
