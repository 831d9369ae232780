"""From a captured graph to the native training artifact."""

import operator
from typing import Any

import torch
from torch.fx import Node

from sparsyfed.edge_runtime.artifact import Artifact, Parameter
from sparsyfed.edge_runtime.errors import UnsupportedOperationError
from sparsyfed.edge_runtime.format import Loss
from sparsyfed.export.capture import CapturedGraph
from sparsyfed.export.graph_builder import GraphBuilder
from sparsyfed.export.native_operations import RULES, arguments_of
from sparsyfed.export.unsupported import operation_name, unknown_operation, unsupported


def to_native(
    captured: CapturedGraph, parameters: tuple[Parameter, ...], beta: float, loss: Loss
) -> Artifact:
    """Return the artifact of a captured model with these parameters, in this order.

    Raises UnsupportedOperationError for whatever the format cannot hold (docs/format.md, section 1).
    """
    builder = GraphBuilder(captured, parameters)
    for node in captured.graph.nodes:
        if node.op == "call_function":
            _lower(builder, node, captured.sources)
    tensors, operations = builder.build(captured.output)
    output = tensors[-1]
    if loss is Loss.CROSS_ENTROPY and (output.rank != 1 or output.size < 2):
        raise UnsupportedOperationError(
            f"one example of the model's output has shape {output.shape}; cross-entropy needs one logit for each "
            "of at least two classes: flatten or average the other dimensions away, or use loss='mse'"
        )
    return Artifact(
        parameters=parameters,
        tensors=tensors,
        operations=operations,
        loss=loss,
        output=len(tensors) - 1,
        beta=beta,
    )


def _lower(builder: GraphBuilder, node: Node, sources: dict[str, str]) -> None:
    if node.target is operator.getitem:
        _take_item(builder, node)
    elif _counts_batches(node, sources) or _computes_sizes(node):
        return  # devices need neither: momentum is fixed, and shapes are known
    else:
        rule = RULES.get(operation_name(node))
        if rule is None or not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - has no public name
            raise unknown_operation(node)
        rule(builder, node, arguments_of(node))


def _take_item(builder: GraphBuilder, node: Node) -> None:
    source, index = node.args
    assert isinstance(source, Node)
    if index != 0 and node.users:
        raise unsupported(
            node, f"uses result {index} of {source.name}", "use only the pooled values"
        )
    if index == 0:
        builder.alias(node, source, copies=False)


def _counts_batches(node: Node, sources: dict[str, str]) -> bool:
    target: Any = node
    while isinstance(target, Node) and operation_name(target) == "add":
        target = target.args[0]
    return isinstance(target, Node) and sources.get(target.name, "").endswith("num_batches_tracked")


def _computes_sizes(node: Node) -> bool:
    if operation_name(node).startswith("_assert"):
        return True
    value: Any = node.meta.get("val")
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))
