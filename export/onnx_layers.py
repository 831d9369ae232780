"""ONNX forms of convolutions, norms and pools, forward and backward.

The batch is the first dimension of every activation and open: a rule never needs its size but as a tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from sparsyfed.export.native_operations import arguments_of
from sparsyfed.export.onnx_graph import Lowering, elements, shape_of, spatial_shape

MANY_CHANNELS = 8
"""From here on products tap by tap take half the time of ONNX Runtime's convolution, below up to twice."""


def convolution(low: Lowering, node: Node) -> str:
    """Return Conv."""
    arguments = arguments_of(node)
    inputs = [low.name(arguments[key]) for key in ("input", "weight")]
    if arguments["bias"] is not None:
        inputs.append(low.name(arguments["bias"]))
    return low.graph.call(
        "Conv",
        *inputs,
        strides=list(arguments["stride"]),
        pads=list(arguments["padding"]) * 2,
        dilations=list(arguments["dilation"]),
        group=arguments["groups"],
    )


def convolution_backward(low: Lowering, node: Node) -> tuple[str, ...]:
    """Return the gradients of input, weight and bias; empty names where the mask leaves them out."""
    arguments = arguments_of(node)
    wanted = arguments["output_mask"]
    d_input = _convolution_d_input(low, arguments) if wanted[0] else ""
    d_weight = _convolution_d_weight(low, arguments) if wanted[1] else ""
    axes = [0, *range(2, len(shape_of(arguments["input"])))]
    d_output = low.name(arguments["grad_output"])
    d_bias = low.graph.reduce("ReduceSum", d_output, axes, keep=False) if wanted[2] else ""
    return d_input, d_weight, d_bias


def _convolution_d_input(low: Lowering, arguments: dict[str, Any]) -> str:
    stride, padding, dilation = (arguments[key] for key in ("stride", "padding", "dilation"))
    kernel = spatial_shape(arguments["weight"])
    reached = [
        (out - 1) * s - 2 * p + d * (k - 1) + 1
        for out, s, p, d, k in zip(
            spatial_shape(arguments["grad_output"]), stride, padding, dilation, kernel, strict=True
        )
    ]
    return low.graph.call(
        "ConvTranspose",
        low.name(arguments["grad_output"]),
        low.name(arguments["weight"]),
        strides=list(stride),
        pads=list(padding) * 2,
        dilations=list(dilation),
        group=arguments["groups"],
        output_padding=[
            size - end for size, end in zip(spatial_shape(arguments["input"]), reached, strict=True)
        ],
    )


def _convolution_d_weight(low: Lowering, arguments: dict[str, Any]) -> str:
    channels = shape_of(arguments["input"])[1]
    if arguments["groups"] == 1 and channels >= MANY_CHANNELS:
        return _d_weight_by_taps(low, arguments)
    return _d_weight_by_convolution(low, arguments)


def _d_weight_by_taps(low: Lowering, arguments: dict[str, Any]) -> str:
    """One matrix product for each place in the kernel: dY (out, all pixels) with x shifted (all pixels, in)."""
    g, weight = low.graph, shape_of(arguments["weight"])
    kernel, outputs = weight[2:], spatial_shape(arguments["grad_output"])
    axes = list(range(1, len(weight) - 1))  # of the pixels, once the channels are last
    geometry = zip(arguments["stride"], arguments["dilation"], outputs, strict=True)
    stride, dilation, reach = zip(*((s, d, (o - 1) * s + 1) for s, d, o in geometry), strict=True)
    x = g.transpose(low.name(arguments["input"]), [0, *range(2, len(weight)), 1])
    if any(arguments["padding"]):
        padding = [0, *arguments["padding"], 0]
        x = g.call("Pad", x, g.integers(padding * 2))
    d_output = low.name(arguments["grad_output"])
    rows = g.call("Flatten", g.transpose(d_output, [1, 0, *range(2, len(weight))]), axis=1)
    taps = []
    for place in itertools.product(*map(range, kernel)):
        start = [at * d for at, d in zip(place, dilation, strict=True)]
        end = [first + size for first, size in zip(start, reach, strict=True)]
        bounds = (g.integers(values) for values in (start, end, axes, stride))
        columns = g.call("Flatten", g.call("Slice", x, *bounds), axis=len(weight) - 1)
        taps.append(g.call("Unsqueeze", g.call("Gemm", rows, columns), g.integers([2])))
    joined = taps[0] if len(taps) == 1 else g.call("Concat", *taps, axis=2)
    return g.reshape(joined, weight)


def _d_weight_by_convolution(low: Lowering, arguments: dict[str, Any]) -> str:
    """The weight gradient is itself a convolution: of x with dY, images as channels, stride as dilation."""
    g, groups = low.graph, arguments["groups"]
    weight = shape_of(arguments["weight"])
    spatial = list(range(2, len(weight)))
    # (batch, groups, channels) -> (channels, groups, batch)
    split = g.reshape(
        low.name(arguments["input"]), [0, groups, weight[1], *spatial_shape(arguments["input"])]
    )
    images = g.transpose(split, [2, 1, 0, *(axis + 1 for axis in spatial)])
    full = g.call(
        "Conv",
        g.reshape(images, [weight[1], -1, *spatial_shape(arguments["input"])]),
        g.transpose(low.name(arguments["grad_output"]), [1, 0, *spatial]),
        strides=list(arguments["dilation"]),
        pads=list(arguments["padding"]) * 2,
        dilations=list(arguments["stride"]),
        group=groups,
    )
    kernel = weight[2:]
    # Where the stride leaves a rest of the input over, the convolution has taps that the layer has not.
    cut = g.call(
        "Slice", full, g.integers([0] * len(kernel)), g.integers(kernel), g.integers(spatial)
    )
    return g.transpose(cut, [1, 0, *spatial])


def _centred(low: Lowering, x: str, axes: Sequence[int], epsilon: float) -> tuple[str, ...]:
    """X - mean, mean, 1 / deviation and variance over axes, which stay as 1."""
    g = low.graph
    mean = g.reduce("ReduceMean", x, axes)
    centred = g.sub(x, mean)
    variance = g.reduce("ReduceMean", g.mul(centred, centred), axes)
    inverse = g.call("Reciprocal", g.call("Sqrt", g.add(variance, g.number(epsilon))))
    return centred, mean, inverse, variance


def _normalized_backward(
    low: Lowering, d_normalized: str, normalized: str, inverse: str, axes: Sequence[int]
) -> str:
    """The gradient of what was normalised over axes."""
    g = low.graph
    shift = g.reduce("ReduceMean", d_normalized, axes)
    tilt = g.reduce("ReduceMean", g.mul(d_normalized, normalized), axes)
    return g.mul(inverse, g.sub(g.sub(d_normalized, shift), g.mul(normalized, tilt)))


def _affine(low: Lowering, x: str, weight: str, bias: str) -> str:
    x = low.graph.mul(x, weight) if weight else x
    return low.graph.add(x, bias) if bias else x


def _per_channel(low: Lowering, parameter: Any, rank: int) -> str:
    """A parameter with one number for each channel, to be multiplied with (batch, channels, ...)."""
    if parameter is None:
        return ""
    return low.graph.reshape(low.name(parameter), [-1] + [1] * (rank - 2))


def batch_norm(low: Lowering, node: Node) -> tuple[str, ...]:
    """Return output, mean, 1 / deviation, new running mean and variance.

    BatchNormalization of ONNX gives no mean of the batch to go back with, and another running variance.
    """
    arguments = arguments_of(node)
    g, x = low.graph, low.name(arguments["input"])
    shape, momentum = shape_of(arguments["input"]), arguments["momentum"]
    axes = [0, *range(2, len(shape))]
    centred, mean, inverse, variance = _centred(low, x, axes, arguments["eps"])
    weight, bias = (_per_channel(low, arguments[key], len(shape)) for key in ("weight", "bias"))
    factor = g.mul(inverse, weight) if weight else inverse
    count = g.call("Div", elements(low, x), g.number(shape[1]))
    unbiased = g.mul(variance, g.call("Div", count, g.sub(count, g.number(1.0))))
    statistics = []
    for running, batch in (("running_mean", mean), ("running_var", unbiased)):
        kept = g.mul(low.name(arguments[running]), g.number(1 - momentum))
        statistics.append(g.add(kept, g.mul(g.reshape(batch, [-1]), g.number(momentum))))
    return _affine(low, centred, factor, bias), mean, inverse, *statistics


def batch_norm_backward(low: Lowering, node: Node) -> tuple[str, ...]:
    """Return the gradients of input, weight and bias of a batch norm in training."""
    arguments = arguments_of(node)
    g, d_output = low.graph, low.name(arguments["grad_out"])
    shape = shape_of(arguments["input"])
    axes = [0, *range(2, len(shape))]
    x, inverse = low.name(arguments["input"]), low.name(arguments["save_invstd"])
    normalized = g.mul(g.sub(x, low.name(arguments["save_mean"])), inverse)
    d_weight = g.reduce("ReduceSum", g.mul(d_output, normalized), axes)
    d_bias = g.reduce("ReduceSum", d_output, axes)
    count = g.call("Div", elements(low, x), g.number(shape[1]))
    weight = _per_channel(low, arguments["weight"], len(shape))
    factor = g.mul(inverse, weight) if weight else inverse
    tilted = g.mul(normalized, g.call("Div", d_weight, count))
    d_centred = g.sub(g.sub(d_output, g.call("Div", d_bias, count)), tilted)
    return g.mul(d_centred, factor), g.reshape(d_weight, [-1]), g.reshape(d_bias, [-1])


def batch_norm_evaluated(low: Lowering, node: Node) -> tuple[str, ...]:
    """Return the output of a batch norm with its running statistics."""
    arguments = arguments_of(node)
    g = low.graph
    rank = len(shape_of(arguments["input"]))
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (_per_channel(low, arguments[name], rank) for name in names)
    deviation = g.call("Sqrt", g.add(variance, g.number(arguments["eps"])))
    normalized = g.call("Div", g.sub(low.name(arguments["input"]), mean), deviation)
    return (_affine(low, normalized, weight, bias),)


def group_norm(low: Lowering, node: Node) -> tuple[str, ...]:
    """Return output, mean and 1 / deviation, the latter two (batch, groups, 1)."""
    arguments = arguments_of(node)
    g, shape, groups = low.graph, shape_of(arguments["input"]), arguments["group"]
    grouped = g.reshape(low.name(arguments["input"]), [0, groups, -1])
    centred, mean, inverse, _ = _centred(low, grouped, [2], arguments["eps"])
    weight, bias = (_per_channel(low, arguments[key], len(shape)) for key in ("weight", "bias"))
    normalized = g.reshape(g.mul(centred, inverse), [0, *shape[1:]])
    return _affine(low, normalized, weight, bias), mean, inverse


def group_norm_backward(low: Lowering, node: Node) -> tuple[str, ...]:
    """Return the gradients of input, weight and bias."""
    arguments = arguments_of(node)
    g, shape, groups = low.graph, shape_of(arguments["input"]), arguments["group"]
    grouped = g.reshape(low.name(arguments["input"]), [0, groups, -1])
    inverse = low.name(arguments["rstd"])
    normalized = g.mul(g.sub(grouped, low.name(arguments["mean"])), inverse)
    d_output = low.name(arguments["grad_out"])
    weight = _per_channel(low, arguments["weight"], len(shape))
    scaled = g.reshape(g.mul(d_output, weight) if weight else d_output, [0, groups, -1])
    axes = [0, *range(2, len(shape))]
    product = g.mul(d_output, g.reshape(normalized, [0, *shape[1:]]))
    d_input = _normalized_backward(low, scaled, normalized, inverse, [2])
    return (
        g.reshape(d_input, [0, *shape[1:]]),
        g.reduce("ReduceSum", product, axes, keep=False),
        g.reduce("ReduceSum", d_output, axes, keep=False),
    )


def layer_norm(low: Lowering, node: Node) -> tuple[str, ...]:
    """Return output, mean and 1 / deviation."""
    arguments = arguments_of(node)
    axes = list(range(-len(arguments["normalized_shape"]), 0))
    x = low.name(arguments["input"])
    centred, mean, inverse, _ = _centred(low, x, axes, arguments["eps"])
    weight, bias = low.name(arguments["weight"]), low.name(arguments["bias"])
    return _affine(low, low.graph.mul(centred, inverse), weight, bias), mean, inverse


def layer_norm_backward(low: Lowering, node: Node) -> tuple[str, ...]:
    """Return the gradients of input, weight and bias."""
    arguments = arguments_of(node)
    g, d_output = low.graph, low.name(arguments["grad_out"])
    rank, own = len(shape_of(arguments["input"])), len(arguments["normalized_shape"])
    inverse = low.name(arguments["rstd"])
    centred = g.sub(low.name(arguments["input"]), low.name(arguments["mean"]))
    normalized = g.mul(centred, inverse)
    weight = low.name(arguments["weight"])
    scaled = g.mul(d_output, weight) if weight else d_output
    outer = list(range(rank - own))
    return (
        _normalized_backward(low, scaled, normalized, inverse, list(range(-own, 0))),
        g.reduce("ReduceSum", g.mul(d_output, normalized), outer, keep=False),
        g.reduce("ReduceSum", d_output, outer, keep=False),
    )


def _pool_geometry(arguments: dict[str, Any]) -> dict[str, list[int]]:
    kernel, padding = list(arguments["kernel_size"]), list(arguments["padding"])
    stride = list(arguments["stride"]) or kernel
    double = [values * 2 if len(values) == 1 else values for values in (kernel, stride, padding)]
    return {"kernel_shape": double[0], "strides": double[1], "pads": double[2] * 2}


def max_pool(low: Lowering, node: Node) -> tuple[str, ...]:
    """Return the maxima and their places in the whole batch."""
    arguments = arguments_of(node)
    x = low.name(arguments["self"])
    return low.graph.call_many("MaxPool", 2, x, **_pool_geometry(arguments))


def max_pool_backward(low: Lowering, node: Node) -> str:
    """ONNX counts a maximum's place in the whole batch, so that one flat scatter does for all images."""
    arguments = arguments_of(node)
    g = low.graph
    flat = [g.reshape(low.name(arguments[key]), [-1]) for key in ("self", "indices", "grad_output")]
    zeros = g.call("ConstantOfShape", g.call("Shape", flat[0]))
    d_input = g.call("ScatterElements", zeros, flat[1], flat[2], axis=0, reduction="add")
    return g.reshape(d_input, shape_of(arguments["self"]))


def average_pool(low: Lowering, node: Node) -> str:
    """Return AveragePool."""
    arguments = arguments_of(node)
    return low.graph.call(
        "AveragePool",
        low.name(arguments["self"]),
        **_pool_geometry(arguments),
        count_include_pad=int(arguments["count_include_pad"]),
    )


def average_pool_backward(low: Lowering, node: Node) -> str:
    """Return each output's gradient spread evenly over its window: a transposed convolution with ones."""
    arguments = arguments_of(node)
    g, shape = low.graph, shape_of(arguments["self"])
    geometry = _pool_geometry(arguments)
    kernel, stride, pads = (geometry[key] for key in ("kernel_shape", "strides", "pads"))
    outputs = spatial_shape(arguments["grad_output"])
    ones = torch.ones(1, 1, *shape[2:], dtype=torch.float32)
    if arguments["count_include_pad"]:
        counts = torch.full((1, 1, *outputs), math.prod(kernel), dtype=torch.float32)
    else:
        filled = torch.nn.functional.avg_pool2d(ones, kernel, stride, pads[:2])
        counts = (filled * math.prod(kernel)).round()
    shares = g.mul(low.name(arguments["grad_output"]), g.constant(counts.reciprocal().numpy()))
    d_input = g.call(
        "ConvTranspose",
        g.reshape(shares, [-1, 1, *outputs]),
        g.constant(np.ones((1, 1, *kernel), np.float32)),
        strides=stride,
        pads=pads,
        output_padding=[
            size - ((out - 1) * s - 2 * p + k)
            for size, out, s, p, k in zip(shape[2:], outputs, stride, pads[:2], kernel, strict=True)
        ],
    )
    return g.reshape(d_input, shape)


def _averaging(inputs: int, outputs: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The matrix (outputs, inputs) of adaptive average pooling along one dimension."""
    matrix = np.zeros((outputs, inputs), np.float32)
    for out in range(outputs):
        start, end = out * inputs // outputs, -(-(out + 1) * inputs // outputs)
        matrix[out, start:end] = 1 / (end - start)
    return matrix


def adaptive_average_pool(low: Lowering, node: Node) -> str:
    """Return the input multiplied with one averaging matrix for each spatial dimension."""
    g, x = low.graph, low.name(node.args[0])
    height, width = (
        _averaging(size, out)
        for size, out in zip(spatial_shape(node.args[0]), spatial_shape(node), strict=True)
    )
    return g.call("MatMul", g.call("MatMul", g.constant(height), x), g.constant(width.T.copy()))


def adaptive_average_pool_backward(low: Lowering, node: Node) -> str:
    """Return the gradient of the input, by the same matrices transposed."""
    d_output, x = node.args
    g = low.graph
    height, width = (
        _averaging(size, out)
        for size, out in zip(spatial_shape(x), spatial_shape(d_output), strict=True)
    )
    rows = g.call("MatMul", g.constant(height.T.copy()), low.name(d_output))
    return g.call("MatMul", rows, g.constant(width))
