"""Models of odd geometry, for what must hold whatever an artifact says."""

import numpy as np
from model_strategies import ModelBuilder, Pair

from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.format import Loss
from sparsyfed.edge_runtime.format import OperationKind as Kind


def every_operation() -> Artifact:
    """Return an image classifier with every operation, groups, dilation and a residual addition."""
    net = ModelBuilder(Tensor(2, 9, 8, 3))
    x = net.convolution(0, 4, (3, 3), padding=(1, 1), bias=True)
    shortcut = net.activation(net.batch_norm(x), Kind.RELU)
    x = net.convolution(shortcut, 4, (3, 3), padding=(2, 1), dilation=(2, 1), groups=2, bias=True)
    x = net.add(net.group_norm(x, 2), shortcut)
    x = net.activation(x, Kind.GELU, tanh=True)
    x = net.pool(x, Kind.MAX_POOL, (3, 2), stride=(2, 2), padding=(1, 0))
    x = net.activation(x, Kind.RELU6)
    x = net.pool(x, Kind.AVERAGE_POOL, (3, 3), stride=(1, 1), padding=(1, 1), count_padding=True)
    x = net.adaptive_pool(net.activation(x, Kind.SILU), 2, 3)
    net.linear(net.layer_norm(net.reshape(x), 24), 5)
    return net.finish()


def short_signal() -> Artifact:
    """Return a regression over a 1-D signal: convolution, GELU, max pool, linear."""
    net = ModelBuilder(Tensor(3, 1, 16, 2))
    x = net.convolution(0, 4, (1, 3), stride=(1, 2), padding=(0, 1), bias=True)
    x = net.pool(net.activation(x, Kind.GELU), Kind.MAX_POOL, (1, 2), stride=(1, 2))
    net.linear(x, 2)
    return net.finish(Loss.MEAN_SQUARED_ERROR, beta=2.0)


def odd_model(seed: int) -> Artifact:
    """Draw up to 8 operations over a signal or an image, and a loss over whatever comes out."""
    rng = np.random.default_rng(seed)
    channels, height, width = (int(size) for size in rng.integers([1, 1, 1], [5, 9, 9]))
    net = ModelBuilder(
        Tensor(channels, height, width, 3) if seed % 2 else Tensor(channels, 1, width, 2)
    )
    for _ in range(rng.integers(1, 9)):
        _append(net, rng)
    loss = Loss(int(rng.integers(1, 3)))
    if loss is Loss.CROSS_ENTROPY or not any(o.weight is not None for o in net.operations):
        net.linear(len(net.tensors) - 1, int(rng.integers(1, 5)), bias=bool(rng.random() < 0.5))
    return net.finish(loss, beta=float(rng.choice([1.0, 1.25, 2.0, 16.0])))


def _append(net: ModelBuilder, rng: np.random.Generator) -> None:
    """Append a random operation that reads the last tensor; none where a window does not fit."""
    last = len(net.tensors) - 1
    x = net.tensors[last]
    kinds = [kind for kind in Kind if kind is not Kind.LINEAR]
    kind = kinds[rng.integers(len(kinds))]
    groups = int(rng.choice([g for g in range(1, x.channels + 1) if x.channels % g == 0]))
    match kind:
        case Kind.CONVOLUTION:
            window = _window(x, rng, pool=False)
            if window is not None:
                outputs = groups * int(rng.integers(1, 4))
                net.convolution(last, outputs, **window, groups=groups, bias=True)
        case Kind.MAX_POOL | Kind.AVERAGE_POOL:
            window = _window(x, rng, pool=True)
            if window is not None:
                counts = kind is Kind.AVERAGE_POOL and bool(rng.random() < 0.5)
                net.pool(last, kind, **window, count_padding=counts)
        case Kind.ADAPTIVE_AVERAGE_POOL:
            height = int(rng.integers(1, x.height + 3)) if x.rank == 3 else 1
            net.adaptive_pool(last, height, int(rng.integers(1, x.width + 3)))
        case Kind.BATCH_NORM:
            net.batch_norm(last, tracked=bool(rng.random() < 0.8))
        case Kind.GROUP_NORM:
            net.group_norm(last, groups)
        case Kind.LAYER_NORM:
            net.layer_norm(last, int(rng.choice([x.width, x.size])))
        case Kind.ADD:
            net.add(last, int(rng.choice([i for i, t in enumerate(net.tensors) if t == x])))
        case Kind.RESHAPE:
            net.reshape(last, Tensor(x.channels * x.height, 1, x.width, x.rank))
        case _:
            net.activation(last, kind, tanh=kind is Kind.GELU and bool(rng.random() < 0.5))


def _window(x: Tensor, rng: np.random.Generator, *, pool: bool) -> dict[str, Pair] | None:
    """Draw a window: steps over inputs, wider than its input, deep in the padding; dilated."""

    def pair(values: list[int]) -> Pair:
        return int(rng.choice(values)), int(rng.choice(values))

    kernel, stride = pair([1, 2, 3, 4]), pair([1, 1, 2, 3, 5])
    dilation = (1, 1) if pool else pair([1, 1, 2, 3])
    most = (kernel[0] // 2, kernel[1] // 2) if pool else kernel
    padding = int(rng.integers(most[0] + 1)), int(rng.integers(most[1] + 1))
    if x.rank == 2:
        kernel, stride, dilation = (1, kernel[1]), (1, stride[1]), (1, dilation[1])
        padding = (0, padding[1])
    for axis, extent in enumerate((x.height, x.width)):
        if extent + 2 * padding[axis] <= dilation[axis] * (kernel[axis] - 1):
            return None
    window = {"kernel": kernel, "stride": stride, "padding": padding}
    return window if pool else {**window, "dilation": dilation}
