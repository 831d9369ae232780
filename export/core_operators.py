"""The core's operators as PyTorch knows them: schemas and shapes.

They run in ExecuTorch and ONNX Runtime, by `edge_runtime/executorch` and `edge_runtime/onnxruntime`. Activations are in
the core's order of memory (`to_blocks`), which their shapes do not show.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.library import Library

from sparsyfed.edge_runtime.format import OperationKind

_LIBRARY = Library("sparsyfed", "FRAGMENT")  # type: ignore[no-untyped-call]


def _define(arguments: str, results: int = 1) -> Callable[[Callable[..., object]], None]:
    """Declare an operator with `results` tensors, and the variant that writes to tensors given to it."""

    def declare(shapes: Callable[..., object]) -> None:
        name = shapes.__name__.removeprefix("_")
        places = [f"Tensor({letter}!)" for letter in "abcdef"[:results]]
        outs = ", ".join(f"{place} out{i}" for i, place in enumerate(places))
        plain, given = ("Tensor", places[0])
        if results > 1:
            plain, given = f"({', '.join(['Tensor'] * results)})", f"({', '.join(places)})"
        _LIBRARY.define(f"{name}({arguments}) -> {plain}")  # type: ignore[no-untyped-call]
        _LIBRARY.define(f"{name}.out({arguments}, *, {outs}) -> {given}")  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, shapes, "Meta")  # type: ignore[no-untyped-call]

    return declare


@_define("Tensor x")
def _to_blocks(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@_define("Tensor x")
def _to_rows(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@_define("Tensor x, Tensor v, Tensor? bias, int[] geometry, float beta")
def _layer(
    x: Tensor, v: Tensor, bias: Tensor | None, geometry: Sequence[int], beta: float
) -> Tensor:
    """`geometry`: groups, then kernel, stride, padding and dilation as height and width."""
    del bias, beta
    axes = [-2, -1][4 - x.dim() :]
    return x.new_empty([x.shape[0], v.shape[0], *(_outputs(x, geometry, axis) for axis in axes)])


def _outputs(x: Tensor, geometry: Sequence[int], axis: int) -> int:
    kernel, stride, padding, dilation = (geometry[i + 2 + axis] for i in (1, 3, 5, 7))
    return (x.shape[axis] + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@_define(
    "Tensor dy, Tensor x, Tensor v, Tensor keep, int place, int[] geometry, float beta, bool wants_dx, bool wants_bias",
    3,
)
def _layer_backward(  # noqa: PLR0917 - the schema
    dy: Tensor,
    x: Tensor,
    v: Tensor,
    keep: Tensor,
    place: int,
    geometry: Sequence[int],
    beta: float,
    wants_dx: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dx, dL/dv at the nonzeros of v with the `keep[place]` largest |x|, dL/dbias; what is not wanted is empty."""
    del dy, keep, place, geometry, beta
    d_x = torch.empty_like(x) if wants_dx else x.new_empty([0])
    return d_x, torch.empty_like(v), v.new_empty([v.shape[0] if wants_bias else 0])


@_define(
    "Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, float momentum, float epsilon",
    4,
)
def _batch_norm(  # noqa: PLR0917 - the schema
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In training: the output, mean and variance of the batch in one tensor, the new statistics."""
    del weight, bias, momentum, epsilon
    moments = x.new_empty([2 * x.shape[1]])
    return torch.empty_like(x), moments, torch.empty_like(mean), torch.empty_like(variance)


@_define("Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, float epsilon")
def _batch_norm_evaluated(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


@_define("Tensor dy, Tensor x, Tensor? weight, Tensor moments, float epsilon", 3)
def _batch_norm_backward(_: Tensor, x: Tensor, *__: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty([x.shape[1]]), x.new_empty([x.shape[1]])


@_define("Tensor x, Tensor? weight, Tensor? bias, int[] shape, float epsilon", 2)
def _norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int], epsilon: float
) -> tuple[Tensor, Tensor]:
    """Group or layer norm and its moments; `shape` is sets, elements, span and affine step of `struct sfd_norm`."""
    del weight, bias, epsilon
    return torch.empty_like(x), x.new_empty([x.shape[0], 2 * shape[0]])


@_define(
    "Tensor dy, Tensor x, Tensor? weight, Tensor moments, int[] shape, int coefficients",
    3,
)
def _norm_backward(  # noqa: PLR0917 - the schema
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    moments: Tensor,
    shape: Sequence[int],
    coefficients: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`coefficients`: how many weights there are, 0 where their gradients are not wanted."""
    del dy, weight, moments, shape
    return torch.empty_like(x), x.new_empty([coefficients]), x.new_empty([coefficients])


@_define("Tensor x, float ceiling")
def _rectifier(x: Tensor, _: float) -> Tensor:
    return torch.empty_like(x)


@_define("Tensor dy, Tensor x, float ceiling")
def _rectifier_backward(dy: Tensor, *_: object) -> Tensor:
    return torch.empty_like(dy)


@_define("Tensor x, int kind, int flags")
def _smooth(x: Tensor, *_: int) -> Tensor:
    return torch.empty_like(x)


@_define("Tensor dy, Tensor x, int kind, int flags")
def _smooth_backward(dy: Tensor, *_: object) -> Tensor:
    return torch.empty_like(dy)


@_define("Tensor x, int[] geometry, int[] size", 2)
def _pool(x: Tensor, geometry: Sequence[int], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The output of `size`, and the winners of a max pool; `geometry`: kind, flags, kernel, stride, padding."""
    shape = [x.shape[0], x.shape[1], *size]
    winners = shape if geometry[0] == OperationKind.MAX_POOL else [0]
    return x.new_empty(shape), x.new_empty(winners, dtype=torch.int16)


@_define("Tensor dy, Tensor winners, int[] geometry, int[] size")
def _pool_backward(dy: Tensor, _: Tensor, __: Sequence[int], size: Sequence[int]) -> Tensor:
    return dy.new_empty([dy.shape[0], dy.shape[1], *size])


@_define("Tensor p, Tensor gradient, Tensor rate, Tensor decay")
def _descend(p: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(p)
