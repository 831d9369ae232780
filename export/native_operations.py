"""One rule for each ATen operation that an artifact can hold."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import Node

from sparsyfed.edge_runtime.format import (
    FLAG_COUNT_PADDING,
    FLAG_GELU_TANH,
    OperationKind,
    ParameterKind,
)
from sparsyfed.export.graph_builder import GraphBuilder
from sparsyfed.export.powerprop import symmetric_padding
from sparsyfed.export.unsupported import unsupported

Arguments = Mapping[str, Any]
Rule = Callable[[GraphBuilder, Node, Arguments], None]


def arguments_of(node: Node) -> dict[str, Any]:
    """Return the arguments of an ATen call by name, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr] # noqa: SLF001 - the only way to the names
    bound = {
        argument.name: argument.default_value for argument in schema if argument.has_default_value()
    }
    bound.update(zip((argument.name for argument in schema), node.args, strict=False))
    bound.update(node.kwargs)
    return bound


def writes_in_place(node: Node) -> bool:
    """Return whether a call changes its first argument."""
    first = node.target._schema.arguments[0]  # type: ignore[union-attr] # noqa: SLF001 - as above
    return first.alias_info is not None and first.alias_info.is_write


def _pair(values: Any, dimensions: int) -> tuple[int, int]:
    """Return (height, width) of a geometry argument; a 1-D one lies along the width, its height is 1."""
    listed = [values] * dimensions if isinstance(values, int) else list(values)
    if len(listed) == 1 and dimensions == 2:
        listed *= 2
    return (1, listed[0]) if dimensions == 1 else (listed[0], listed[1])


def _padding_pair(values: Any, dimensions: int) -> tuple[int, int]:
    height, width = _pair(values, dimensions)
    return (0, width) if dimensions == 1 else (height, width)


def _convolution(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    source = builder.tensor_of(node, arguments["input"])
    weight = builder.claim(node, arguments["weight"], ParameterKind.WEIGHT)
    kernel = tuple(arguments["weight"].meta["val"].shape[2:])
    dimensions = len(kernel)
    dilation = _pair(arguments["dilation"], dimensions)
    padding = arguments["padding"]
    if isinstance(padding, str):
        padding = symmetric_padding(padding, kernel, dilation[-dimensions:])
        if padding is None:
            raise unsupported(
                node,
                f"padding='same' with kernel {kernel} pads the two ends differently",
                "use an odd kernel size or explicit padding",
            )
    builder.add(
        node,
        OperationKind.CONVOLUTION,
        (source,),
        weight=weight,
        bias=builder.claim(node, arguments["bias"], ParameterKind.DENSE),
        groups=arguments["groups"],
        kernel=_pair(kernel, dimensions),
        stride=_pair(arguments["stride"], dimensions),
        padding=_padding_pair(padding, dimensions),
        dilation=dilation,
    )


def _linear(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    source = builder.tensor_of(node, arguments["input"])
    if builder.tensors[source].rank != 1:
        raise unsupported(
            node,
            f"an example of its input has shape {builder.tensors[source].shape}",
            "devices run Linear on one vector for each example: flatten before it, "
            "or use a convolution with kernel size 1 to apply it at each position",
        )
    builder.add(
        node,
        OperationKind.LINEAR,
        (source,),
        weight=builder.claim(node, arguments["weight"], ParameterKind.WEIGHT),
        bias=builder.claim(node, arguments["bias"], ParameterKind.DENSE),
    )


def _batch_norm(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    if arguments["running_mean"] is None:
        raise unsupported(
            node,
            "a batch norm without running statistics cannot evaluate single examples",
            "use track_running_stats=True, or GroupNorm",
        )
    if not arguments["training"]:
        raise unsupported(
            node,
            "this batch norm stays in evaluation mode while the model trains",
            "let it follow the model's mode, or leave it out",
        )
    builder.add(
        node,
        OperationKind.BATCH_NORM,
        (builder.tensor_of(node, arguments["input"]),),
        weight=builder.claim(node, arguments["weight"], ParameterKind.DENSE),
        bias=builder.claim(node, arguments["bias"], ParameterKind.DENSE),
        mean=builder.claim(node, arguments["running_mean"], ParameterKind.STATISTIC),
        variance=builder.claim(node, arguments["running_var"], ParameterKind.STATISTIC),
        epsilon=arguments["eps"],
        momentum=arguments["momentum"],
    )


def _group_norm(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    builder.add(
        node,
        OperationKind.GROUP_NORM,
        (builder.tensor_of(node, arguments["input"]),),
        weight=builder.claim(node, arguments["weight"], ParameterKind.DENSE),
        bias=builder.claim(node, arguments["bias"], ParameterKind.DENSE),
        groups=arguments["num_groups"],
        epsilon=arguments["eps"],
    )


def _layer_norm(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    builder.add(
        node,
        OperationKind.LAYER_NORM,
        (builder.tensor_of(node, arguments["input"]),),
        weight=builder.claim(node, arguments["weight"], ParameterKind.DENSE),
        bias=builder.claim(node, arguments["bias"], ParameterKind.DENSE),
        epsilon=arguments["eps"],
        normalized=math.prod(arguments["normalized_shape"]),
    )


def _activation(kind: OperationKind) -> Rule:
    def rule(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
        source: Node = arguments["self"]
        builder.add(
            node,
            kind,
            (builder.tensor_of(node, source),),
            overwrites=source if writes_in_place(node) else None,
            flags=FLAG_GELU_TANH if arguments.get("approximate") == "tanh" else 0,
        )

    return rule


def _hardtanh(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    limits = (arguments["min_val"], arguments["max_val"])
    if limits != (0, 6):
        raise unsupported(node, f"clamps to {limits}", "use ReLU6, which clamps to (0, 6)")
    _activation(OperationKind.RELU6)(builder, node, arguments)


def _pool(kind: OperationKind, dimensions: int) -> Rule:
    def rule(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
        if arguments["ceil_mode"]:
            raise unsupported(
                node, "ceil_mode=True", "use ceil_mode=False, with padding if the size matters"
            )
        if arguments.get("divisor_override") is not None:
            raise unsupported(node, "divisor_override", "leave divisor_override out")
        if _pair(arguments.get("dilation", 1), dimensions)[-dimensions:] != (1,) * dimensions:
            raise unsupported(node, "a dilated pool", "use dilation=1")
        builder.add(
            node,
            kind,
            (builder.tensor_of(node, arguments["self"]),),
            builder.shape(node),
            flags=FLAG_COUNT_PADDING if arguments.get("count_include_pad") else 0,
            kernel=_pair(arguments["kernel_size"], dimensions),
            stride=_pair(arguments["stride"] or arguments["kernel_size"], dimensions),
            padding=_padding_pair(arguments["padding"], dimensions),
        )

    return rule


def _adaptive_average_pool(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    source = builder.tensor_of(node, arguments["self"])
    builder.add(node, OperationKind.ADAPTIVE_AVERAGE_POOL, (source,))


def _mean(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    source = builder.tensor_of(node, arguments["self"])
    shape = builder.tensors[source].shape
    given = arguments.get("dim")
    axes = {axis % (len(shape) + 1) for axis in given or ()}
    if not axes or axes & {0, 1} or arguments.get("dtype") is not None:
        raise unsupported(
            node,
            f"averages over dimensions {given}",
            "average over spatial dimensions only (2, or 2 and 3)",
        )
    pooled = tuple(1 if axis in axes else size for axis, size in enumerate(shape, start=1))
    output = builder.add(node, OperationKind.ADAPTIVE_AVERAGE_POOL, (source,), pooled)
    if not arguments["keepdim"]:
        builder.add(node, OperationKind.RESHAPE, (output,))


def _add(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    left = builder.tensor_of(node, arguments["self"])
    right = builder.tensor_of(node, arguments["other"])
    if arguments["alpha"] != 1:
        raise unsupported(node, f"alpha={arguments['alpha']}", "add the tensors as they are")
    shapes = builder.tensors[left].shape, builder.tensors[right].shape
    if shapes[0] != shapes[1]:
        raise unsupported(
            node, f"adds examples of shapes {shapes[0]} and {shapes[1]}", "add tensors of one shape"
        )
    overwrites = arguments["self"] if writes_in_place(node) else None
    builder.add(node, OperationKind.ADD, (left, right), overwrites=overwrites)


def _reshape(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    source: Node = arguments["self"]
    tensor = builder.tensor_of(node, source)
    if builder.tensors[tensor].shape == builder.shape(node):
        builder.alias(node, source, copies=False)
    else:
        builder.add(node, OperationKind.RESHAPE, (tensor,), view_of=source)


def _dropout(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    source: Node = arguments["self"] if writes_in_place(node) else arguments["input"]
    copies = not writes_in_place(node) and arguments["train"] and arguments["p"] > 0
    builder.alias(node, source, copies=copies)


def _copy(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    builder.shape(node)
    builder.alias(node, arguments["self"], copies=True)


def _itself(builder: GraphBuilder, node: Node, arguments: Arguments) -> None:
    builder.shape(node)
    builder.alias(node, arguments["self"], copies=bool(arguments.get("copy")))


RULES: dict[str, Rule] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "relu": _activation(OperationKind.RELU),
    "relu6": _activation(OperationKind.RELU6),
    "hardtanh": _hardtanh,
    "gelu": _activation(OperationKind.GELU),
    "silu": _activation(OperationKind.SILU),
    "max_pool1d": _pool(OperationKind.MAX_POOL, 1),
    "max_pool2d": _pool(OperationKind.MAX_POOL, 2),
    "max_pool1d_with_indices": _pool(OperationKind.MAX_POOL, 1),
    "max_pool2d_with_indices": _pool(OperationKind.MAX_POOL, 2),
    "avg_pool1d": _pool(OperationKind.AVERAGE_POOL, 1),
    "avg_pool2d": _pool(OperationKind.AVERAGE_POOL, 2),
    "adaptive_avg_pool1d": _adaptive_average_pool,
    "adaptive_avg_pool2d": _adaptive_average_pool,
    "mean": _mean,
    "add": _add,
    "flatten": _reshape,
    "unflatten": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "alpha_dropout": _dropout,
    "feature_alpha_dropout": _dropout,
    "clone": _copy,
    "contiguous": _itself,
    "alias": _itself,
    "to": _itself,
}
"""By ATen name, without overload and in-place mark."""
