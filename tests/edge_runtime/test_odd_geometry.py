"""Layers out of all proportion: every kernel set takes them like the portable one, in as little time."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from clear_cases import states_of
from model_strategies import ModelBuilder

from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.format import Loss
from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.session import Session

SECONDS = 5.0


def convolution(entry: tuple[int, int, int], out: int, kernel: Any, **options: Any) -> Artifact:
    net = ModelBuilder(Tensor(*entry, 3))
    pixels = net.adaptive_pool(net.convolution(0, out, kernel, **options), 1, 1)
    net.linear(net.reshape(pixels), 3)
    return net.finish(Loss.CROSS_ENTROPY)


# What each would overflow or repeat without end in kernels that trust its numbers.
CASES: dict[str, tuple[int, float, Callable[[], Artifact]]] = {
    "padding and dilation beyond 32 bits": (
        1,
        1.0,
        lambda: convolution((1, 1, 64), 1, (2, 3), padding=(32768, 65472), dilation=(65535, 65470)),
    ),
    "a row of the image times the padding": (
        16,
        1.0,
        lambda: convolution((1, 1, 131071), 1, (1, 3), padding=(65535, 0), dilation=(1, 65535)),
    ),
    "a pixel in nothing but padding": (
        16,
        1.0,
        lambda: convolution((2, 1, 1), 3, (1, 1), stride=(3, 3), padding=(1, 1), bias=True),
    ),
    "as many phases as pixels": (
        1,
        1.0,
        lambda: convolution((1, 2, 70000), 1, (1, 65535), stride=(1, 65535), padding=(64, 64)),
    ),
    "a kernel of 160,000 taps": (1, 1e-4, lambda: convolution((1, 500, 500), 1, (400, 400))),
    "a kernel of a million taps, most of them in the padding": (
        16,
        0.5,
        lambda: convolution((1, 16, 16), 1, (1001, 1001), padding=(500, 500)),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernels", [name for name in available_kernels() if name != "portable"])
def test_a_layer_out_of_all_proportion(case: str, kernels: str) -> None:
    examples, density, build = CASES[case]
    model = states_of(build(), density)(0)
    x, y = model.batch(np.random.default_rng(0), examples)
    losses = []
    for name in ("portable", kernels):
        wanted = plan(model.artifact, model.state, examples, kernels=name).arena_bytes
        with Session.open(
            model.artifact, model.state, examples, kernels=name, arena_bytes=wanted
        ) as session:
            start = time.process_time()
            losses.append([session.step(x, y, learning_rate=0.01) for _ in range(2)])
            assert time.process_time() - start < SECONDS
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
