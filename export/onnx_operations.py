"""One rule for each operator of the joint graph: how it is written in ONNX.

The batch is the first dimension of every activation and open: a rule never needs its size but as a tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from torch.fx import Node

from sparsyfed.edge_runtime.errors import UnsupportedOperationError
from sparsyfed.export import onnx_kernels, onnx_layers
from sparsyfed.export.native_operations import arguments_of
from sparsyfed.export.onnx_graph import Lowering, OnnxGraph, Value, elements, shape_of

_ATEN = torch.ops.aten
_OWN = torch.ops.sparsyfed
Rule = Callable[[Lowering, Node], Value]


def _item(low: Lowering, node: Node) -> str:
    source, index = node.args
    names = low.names[source]  # type: ignore[index]
    return names[index]  # type: ignore[index]


def _count(low: Lowering, node: Node) -> str:
    source, axis, index = node.args
    assert axis == 0
    return low.graph.call("Gather", low.name(source), low.graph.integers([index]), axis=0)  # type: ignore[list-item]


def _prune(low: Lowering, node: Node) -> str:
    """Keep the k largest |x|; all of them, without a search, where k is not less than their number."""
    g, x, count = low.graph, low.name(node.args[0]), low.name(node.args[1])
    size = g.reshape(g.call("Size", x), [1])
    whole = g.reshape(g.call("GreaterOrEqual", count, size), [])
    return g.choose(
        whole, lambda: g.call("Identity", x), lambda: _largest(g, x, count, shape_of(node))
    )


def _largest(g: OnnxGraph, x: str, count: str, shape: list[int]) -> str:
    """Of equal ones TopK takes the lower index first, as the method does."""
    flat = g.reshape(x, [-1])
    _, places = g.call_many("TopK", 2, g.call("Abs", flat), count, axis=0, largest=1, sorted=0)
    zeros = g.call("ConstantOfShape", g.call("Shape", flat))
    kept = g.call("Gather", flat, places, axis=0)
    return g.reshape(g.call("ScatterElements", zeros, places, kept, axis=0), shape)


def _raised(low: Lowering, size: str, exponent: float) -> str:
    """|v| to a power. Roots of roots are exact to the last bits and many times faster than Pow."""
    g = low.graph
    power, factors, root = exponent, [], size
    whole, power = divmod(power, 1.0)
    factors += [size] * int(whole)
    for _ in range(4):
        root = g.call("Sqrt", root)
        bit, power = divmod(2 * power, 1.0)
        if bit:
            factors.append(root)
    if power or len(factors) > 4:
        return g.call("Pow", size, g.number(exponent))
    result = factors[0] if factors else ""
    for factor in factors[1:]:
        result = g.mul(result, factor)
    return result


def _powerprop(low: Lowering, node: Node) -> str:
    v, beta = low.name(node.args[0]), float(node.args[1])  # type: ignore[arg-type]
    factor = _raised(low, low.graph.call("Abs", v), beta - 1)
    return low.graph.mul(v, factor) if factor else low.graph.call("Identity", v)


def _powerprop_backward(low: Lowering, node: Node) -> str:
    g, v, d_weight = low.graph, low.name(node.args[0]), low.name(node.args[1])
    beta = float(node.args[2])  # type: ignore[arg-type]
    factor = _raised(low, g.call("Abs", v), beta - 1)
    slope = g.mul(factor, g.number(beta)) if factor else g.number(beta)
    zero = g.number(0.0)
    return g.call("Where", g.call("Equal", v, zero), zero, g.mul(slope, d_weight))


def _product(low: Lowering, left: Any, right: Any, bias: str | None = None) -> str:
    """Left · right (+ bias) of matrices, transposed ones as they lie."""
    swapped = [node.target is _ATEN.t.default for node in (left, right)]
    names = [
        low.name(node.args[0] if swap else node)
        for node, swap in zip((left, right), swapped, strict=True)
    ]
    more = [] if bias is None else [bias]
    return low.graph.call("Gemm", *names, *more, transA=int(swapped[0]), transB=int(swapped[1]))


def _linear(low: Lowering, node: Node) -> str:
    bias, x, weight = node.args[:3]
    return _product(low, x, weight, low.name(bias))


def _relu_backward(low: Lowering, node: Node) -> str:
    g = low.graph
    d_output, output, threshold = node.args
    passed = g.call("Greater", low.name(output), g.number(threshold))  # type: ignore[arg-type]
    return g.call("Where", passed, low.name(d_output), g.number(0.0))


def _hardtanh(low: Lowering, node: Node) -> str:
    x, low_end, high_end = node.args
    g = low.graph
    return g.call("Clip", low.name(x), g.number(low_end), g.number(high_end))  # type: ignore[arg-type]


def _hardtanh_backward(low: Lowering, node: Node) -> str:
    g = low.graph
    d_output, x, low_end, high_end = node.args
    above = g.call("Greater", low.name(x), g.number(low_end))  # type: ignore[arg-type]
    below = g.call("Less", low.name(x), g.number(high_end))  # type: ignore[arg-type]
    return g.call("Where", g.call("And", above, below), low.name(d_output), g.number(0.0))


def _gelu(low: Lowering, node: Node) -> str:
    arguments = arguments_of(node)
    return low.graph.call("Gelu", low.name(arguments["self"]), approximate=arguments["approximate"])


def _gelu_backward(low: Lowering, node: Node) -> str:
    arguments = arguments_of(node)
    g, x = low.graph, low.name(arguments["self"])
    half, one = g.number(0.5), g.number(1.0)
    square = g.mul(x, x)
    if arguments["approximate"] == "tanh":
        scale = math.sqrt(2 / math.pi)
        cubic = g.add(one, g.mul(square, g.number(0.044715)))
        bent = g.call("Tanh", g.mul(g.mul(x, g.number(scale)), cubic))
        inner = g.mul(g.number(scale), g.add(one, g.mul(square, g.number(3 * 0.044715))))
        density = g.mul(g.mul(half, g.sub(one, g.mul(bent, bent))), inner)
    else:
        bent = g.call("Erf", g.mul(x, g.number(math.sqrt(0.5))))
        gauss = g.call("Exp", g.mul(square, g.number(-0.5)))
        density = g.mul(gauss, g.number(1 / math.sqrt(2 * math.pi)))
    slope = g.add(g.mul(half, g.add(one, bent)), g.mul(x, density))
    return g.mul(low.name(arguments["grad_output"]), slope)


def _silu(low: Lowering, node: Node) -> str:
    x = low.name(node.args[0])
    return low.graph.mul(x, low.graph.call("Sigmoid", x))


def _silu_backward(low: Lowering, node: Node) -> str:
    g, x = low.graph, low.name(node.args[1])
    gate, one = g.call("Sigmoid", x), g.number(1.0)
    slope = g.mul(gate, g.add(one, g.mul(x, g.sub(one, gate))))
    return g.mul(low.name(node.args[0]), slope)


def _mean(low: Lowering, node: Node) -> str:
    arguments = arguments_of(node)
    return low.graph.reduce(
        "ReduceMean", low.name(arguments["self"]), arguments["dim"], keep=arguments["keepdim"]
    )


def _sum(low: Lowering, node: Node) -> str:
    arguments = arguments_of(node)
    return low.graph.reduce(
        "ReduceSum", low.name(arguments["self"]), arguments["dim"], keep=arguments["keepdim"]
    )


def _count_true(low: Lowering, node: Node) -> str:
    numbers = low.graph.call("Cast", low.name(node.args[0]), to=7)
    return low.graph.call("ReduceSum", numbers, keepdims=0)


def _reshape(low: Lowering, node: Node) -> str:
    shape = shape_of(node)
    if shape.count(-1) > 1:
        raise UnsupportedOperationError(f"{node.name} has more than one open dimension: {shape}")
    return low.graph.reshape(low.name(node.args[0]), shape)


def _expand(low: Lowering, node: Node) -> str:
    shape = [1 if size == -1 else size for size in shape_of(node)]  # 1 leaves the source's own size
    return low.graph.call("Expand", low.name(node.args[0]), low.graph.integers(shape))


def _binary(operator_name: str) -> Rule:
    def rule(low: Lowering, node: Node) -> str:
        left, right = (
            low.name(part) if isinstance(part, Node) else low.graph.number(part)  # type: ignore[arg-type]
            for part in node.args[:2]
        )
        return low.graph.call(operator_name, left, right)

    return rule


def _transposed(low: Lowering, node: Node) -> str:
    return low.graph.transpose(low.name(node.args[0]), [1, 0])


def _ones(low: Lowering, node: Node) -> str:
    shape = shape_of(node)
    if -1 not in shape:
        return low.graph.constant(np.ones(shape, np.float32))
    one = numpy_helper.from_array(np.ones(1, np.float32))
    return low.graph.call(
        "ConstantOfShape", low.graph.call("Shape", low.name(node.args[0])), value=one
    )


def _where(low: Lowering, node: Node) -> str:
    return low.graph.call("Where", *map(low.name, node.args))


def _log_softmax(low: Lowering, node: Node) -> str:
    return low.graph.call("LogSoftmax", low.name(node.args[0]), axis=node.args[1])


def _log_softmax_backward(low: Lowering, node: Node) -> str:
    g = low.graph
    d_output, output, axis = node.args[:3]
    total = g.reduce("ReduceSum", low.name(d_output), [axis])  # type: ignore[list-item]
    return g.sub(low.name(d_output), g.mul(g.call("Exp", low.name(output)), total))


def _negative_log_likelihood(low: Lowering, node: Node) -> tuple[str, ...]:
    g = low.graph
    column = g.call("Unsqueeze", low.name(node.args[1]), g.integers([1]))
    chosen = g.call("GatherElements", low.name(node.args[0]), column, axis=1)
    return g.call("Neg", g.reduce("ReduceMean", chosen, [0, 1], keep=False)), ""


def _negative_log_likelihood_backward(low: Lowering, node: Node) -> str:
    g = low.graph
    d_loss, output, labels = node.args[:3]
    depth, values = g.integers([shape_of(output)[1]]), g.constant(np.array([0, -1], np.float32))
    chosen = g.call("OneHot", low.name(labels), depth, values)
    share = g.call("Div", low.name(d_loss), elements(low, low.name(labels)))
    return g.mul(chosen, share)


def _squared_error(low: Lowering, node: Node) -> str:
    g = low.graph
    difference = g.sub(low.name(node.args[0]), low.name(node.args[1]))
    axes = list(range(len(shape_of(node.args[0]))))
    return g.reduce("ReduceMean", g.mul(difference, difference), axes, keep=False)


def _squared_error_backward(low: Lowering, node: Node) -> str:
    g = low.graph
    d_loss, output, y = (low.name(part) for part in node.args[:3])
    factor = g.call("Div", g.mul(d_loss, g.number(2.0)), elements(low, output))
    return g.mul(g.sub(output, y), factor)


def _arg_max(low: Lowering, node: Node) -> str:
    return low.graph.call("ArgMax", low.name(node.args[0]), axis=node.args[1], keepdims=0)


RULES: dict[Any, Rule] = {
    operator.getitem: _item,
    _OWN.prune.default: _prune,
    _OWN.powerprop.default: _powerprop,
    _OWN.powerprop_backward.default: _powerprop_backward,
    _ATEN.select.int: _count,
    _ATEN.convolution.default: onnx_layers.convolution,
    _ATEN.convolution_backward.default: onnx_layers.convolution_backward,
    _ATEN.addmm.default: _linear,
    _ATEN.mm.default: lambda low, node: _product(low, node.args[0], node.args[1]),
    _ATEN._native_batch_norm_legit_functional.default: onnx_layers.batch_norm,  # noqa: SLF001 - an operator's name
    _ATEN._native_batch_norm_legit_no_training.default: onnx_layers.batch_norm_evaluated,  # noqa: SLF001 - likewise
    _ATEN.native_batch_norm_backward.default: onnx_layers.batch_norm_backward,
    _ATEN.native_group_norm.default: onnx_layers.group_norm,
    _ATEN.native_group_norm_backward.default: onnx_layers.group_norm_backward,
    _ATEN.native_layer_norm.default: onnx_layers.layer_norm,
    _ATEN.native_layer_norm_backward.default: onnx_layers.layer_norm_backward,
    _ATEN.relu.default: lambda low, node: low.graph.call("Relu", low.name(node.args[0])),
    _ATEN.threshold_backward.default: _relu_backward,
    _ATEN.hardtanh.default: _hardtanh,
    _ATEN.hardtanh_backward.default: _hardtanh_backward,
    _ATEN.gelu.default: _gelu,
    _ATEN.gelu_backward.default: _gelu_backward,
    _ATEN.silu.default: _silu,
    _ATEN.silu_backward.default: _silu_backward,
    _ATEN.max_pool2d_with_indices.default: onnx_layers.max_pool,
    _ATEN.max_pool2d_with_indices_backward.default: onnx_layers.max_pool_backward,
    _ATEN.avg_pool2d.default: onnx_layers.average_pool,
    _ATEN.avg_pool2d_backward.default: onnx_layers.average_pool_backward,
    _ATEN._adaptive_avg_pool2d.default: onnx_layers.adaptive_average_pool,  # noqa: SLF001 - an operator's name
    _ATEN._adaptive_avg_pool2d_backward.default: onnx_layers.adaptive_average_pool_backward,  # noqa: SLF001 - likewise
    _ATEN.mean.dim: _mean,
    _ATEN.sum.dim_IntList: _sum,
    _ATEN.sum.default: _count_true,
    _ATEN.view.default: _reshape,
    _ATEN._unsafe_view.default: _reshape,  # noqa: SLF001 - an operator's name
    _ATEN.reshape.default: _reshape,
    _ATEN.squeeze.dim: _reshape,
    _ATEN.squeeze.dims: _reshape,
    _ATEN.unsqueeze.default: _reshape,
    _ATEN.expand.default: _expand,
    _ATEN.t.default: _transposed,
    _ATEN.ones_like.default: _ones,
    _ATEN.add.Tensor: _binary("Add"),
    _ATEN.sub.Tensor: _binary("Sub"),
    _ATEN.mul.Tensor: _binary("Mul"),
    _ATEN.div.Scalar: _binary("Div"),
    _ATEN.eq.Tensor: _binary("Equal"),
    _ATEN.eq.Scalar: _binary("Equal"),
    _ATEN.where.self: _where,
    _ATEN._log_softmax.default: _log_softmax,  # noqa: SLF001 - an operator's name
    _ATEN._log_softmax_backward_data.default: _log_softmax_backward,  # noqa: SLF001 - likewise
    _ATEN.nll_loss_forward.default: _negative_log_likelihood,
    _ATEN.nll_loss_backward.default: _negative_log_likelihood_backward,
    _ATEN.mse_loss.default: _squared_error,
    _ATEN.mse_loss_backward.default: _squared_error_backward,
    _ATEN.argmax.default: _arg_max,
    **onnx_kernels.RULES,
}
"""By operator and overload."""
