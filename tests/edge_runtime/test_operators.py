"""Single operations of the core, for other engines: results, and scratch of the size that they ask for."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsyfed.edge_runtime import _native
from sparsyfed.export.powerprop import keep_largest

BETA = 1.25
GUARD = 4096
FIELDS = (
    *("in_channels", "in_height", "in_width", "out_channels", "out_height", "out_width"),
    *("groups", "kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w"),
    *("dilation_h", "dilation_w"),
)


class Geometry(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in FIELDS]


LAYERS = {
    "padded": (Geometry(5, 9, 8, 7, 9, 8, 1, 3, 3, 1, 1, 1, 1, 1, 1), 1),
    "strided groups": (Geometry(6, 11, 9, 4, 5, 9, 2, 3, 1, 2, 1, 0, 0, 1, 1), 2),
    "depthwise, dilated": (Geometry(8, 7, 7, 8, 7, 7, 8, 3, 3, 1, 1, 2, 2, 2, 2), 8),
    "linear": (Geometry(300, 1, 1, 20, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1), 1),
    "wide columns": (Geometry(66000, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1), 1),
}


def pointer(array: NDArray[Any] | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


class Scratch:
    """Memory of exactly the size asked for, with bytes behind it that nobody may touch."""

    def __init__(self, size: int) -> None:
        self._memory = np.full(size + GUARD + 64, 0xA5, np.uint8)
        start = -self._memory.ctypes.data % 64
        self.place = ctypes.c_void_p(self._memory.ctypes.data + start)
        self._end = start + size

    def check(self) -> None:
        assert (self._memory[self._end : self._end + GUARD] == 0xA5).all()


def core() -> ctypes.CDLL:
    library = _native.library()
    for name in ("sfd_layer_forward_bytes", "sfd_layer_backward_bytes"):
        getattr(library, name).restype = ctypes.c_uint64
    return library


def blocks(x: Tensor) -> NDArray[np.float32]:
    y = np.empty(x.numel(), np.float32)
    source = np.ascontiguousarray(x.numpy())
    core().sfd_to_blocks(pointer(source), x[0].numel(), len(x), pointer(y))
    return y


def rows(y: NDArray[np.float32], shape: torch.Size) -> Tensor:
    x = np.empty(shape, np.float32)
    core().sfd_to_rows(pointer(y), shape[1:].numel(), shape[0], pointer(x))
    return torch.from_numpy(x)


def eager(geometry: Geometry, x: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    g = geometry
    weight = v.sign() * v.abs() ** BETA
    return torch.nn.functional.conv2d(
        *(x, weight, bias, (g.stride_h, g.stride_w), (g.padding_h, g.padding_w)),
        *((g.dilation_h, g.dilation_w), g.groups),
    )


def close(got: Tensor, wanted: Tensor) -> bool:
    return bool((got.double() - wanted).norm() <= 1e-5 * wanted.norm())


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("examples", [1, 19])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_those_of_pytorch(name: str, examples: int, density: float) -> None:
    g, groups = LAYERS[name]
    generator = torch.Generator().manual_seed(examples)
    x = torch.randn(examples, g.in_channels, g.in_height, g.in_width, generator=generator)
    v = torch.randn(g.out_channels, g.in_channels // groups, g.kernel_h, g.kernel_w)
    v *= torch.rand(v.shape, generator=generator) < density
    bias = torch.randn(g.out_channels, generator=generator)
    wanted = eager(g, x.double(), v.double(), bias.double())

    y = np.empty(wanted.numel(), np.float32)
    flat_v, flat_bias, in_blocks = v.numpy(), bias.numpy(), blocks(x)
    size = core().sfd_layer_forward_bytes(ctypes.byref(g), pointer(flat_v), examples)
    scratch = Scratch(size)
    core().sfd_layer_forward(
        *(ctypes.byref(g), pointer(flat_v), ctypes.c_float(BETA), pointer(flat_bias)),
        *(pointer(in_blocks), examples, pointer(y), scratch.place),
    )
    scratch.check()
    assert close(rows(y, wanted.shape), wanted)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("examples", [1, 19])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_pruned_input(name: str, examples: int, share: float) -> None:
    g, groups = LAYERS[name]
    generator = torch.Generator().manual_seed(examples)
    x = torch.randn(examples, g.in_channels, g.in_height, g.in_width, generator=generator)
    x = x.mul(4).round()  # values that tie
    v = torch.randn(
        g.out_channels, g.in_channels // groups, g.kernel_h, g.kernel_w, generator=generator
    )
    v *= torch.rand(v.shape, generator=generator) < 0.3
    d_y = torch.randn(examples, g.out_channels, g.out_height, g.out_width, generator=generator)
    keep = round(share * x.numel())
    x_double = x.double().requires_grad_()
    eager(g, x_double, v.double(), None).backward(d_y.double())  # type: ignore[no-untyped-call]
    pruned = keep_largest(x, keep).double()
    v_double = v.double().requires_grad_()
    size_of_v = v_double.abs().clamp(min=1e-30)  # no 0/0 at zeros, whose gradient is 0
    weight = v_double * size_of_v ** (BETA - 1)
    torch.nn.functional.conv2d(
        *(pruned, weight, None, (g.stride_h, g.stride_w), (g.padding_h, g.padding_w)),
        *((g.dilation_h, g.dilation_w), g.groups),
    ).backward(d_y.double())  # type: ignore[no-untyped-call]
    assert x_double.grad is not None
    assert v_double.grad is not None
    wanted_v = torch.where(v == 0, 0.0, v_double.grad)

    d_x, d_v = np.empty(x.numel(), np.float32), np.empty(v.shape, np.float32)
    d_bias = np.empty(g.out_channels, np.float32)
    flat_v, in_blocks, d_out = v.numpy(), blocks(x), blocks(d_y)
    count = ctypes.c_uint32(keep)
    size = core().sfd_layer_backward_bytes(ctypes.byref(g), pointer(flat_v), examples, count)
    scratch = Scratch(size)
    core().sfd_layer_backward(
        *(ctypes.byref(g), pointer(flat_v), ctypes.c_float(BETA), pointer(in_blocks)),
        *(pointer(d_out), examples, count, pointer(d_x), pointer(d_v), pointer(d_bias)),
        scratch.place,
    )
    scratch.check()
    assert close(rows(d_x, x.shape), x_double.grad)
    assert close(torch.from_numpy(d_v), wanted_v)
    assert (d_v[flat_v == 0] == 0).all()
    assert close(torch.from_numpy(d_bias), d_y.double().sum((0, 2, 3)))
