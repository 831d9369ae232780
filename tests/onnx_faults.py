"""Faults that exports to ONNX have had, as rules for an operator, and how the gate tells them."""

from __future__ import annotations

from typing import Any

import torch
from engine_cases import gate_cases

from sparsyfed.export import onnx_operations
from sparsyfed.export.onnx_graph import Lowering

BATCH_NORM = torch.ops.aten._native_batch_norm_legit_functional.default
POWERPROP = torch.ops.sparsyfed.powerprop.default
right_batch_norm = onnx_operations.RULES[BATCH_NORM]
right_powerprop = onnx_operations.RULES[POWERPROP]


def unpruned(low: Lowering, node: Any) -> str:
    return low.name(node.args[0])


def folded(low: Lowering, node: Any) -> Any:
    """A weight of odd_net that has become a constant, right for one of the gate's batches."""
    if low.name(node.args[0]) != "state.stem.weight":
        return right_powerprop(low, node)
    v = gate_cases("odd_net").case(0, 0).inputs["state.stem.weight"]
    return low.graph.constant((v.sign() * v.abs() ** node.args[1]).numpy())


def evaluated(low: Lowering, node: Any) -> tuple[str, ...]:
    """A batch norm that uses the running statistics."""
    g, results = low.graph, right_batch_norm(low, node)
    x, _, _, mean, variance = (low.name(source) for source in node.args[:5])
    mean, variance = (g.reshape(name, [-1, 1, 1]) for name in (mean, variance))
    deviation = g.call("Sqrt", g.add(variance, g.number(1e-5)))
    return g.call("Div", g.sub(x, mean), deviation), *results[1:]


def naive(low: Lowering, node: Any) -> str:
    """β·|v|^β/|v|: 0/0 at v = 0."""
    g, v, d_weight = low.graph, low.name(node.args[0]), low.name(node.args[1])
    size = g.call("Abs", v)
    slope = g.call("Div", g.call("Pow", size, g.number(node.args[2])), size)
    return g.mul(g.mul(slope, g.number(node.args[2])), d_weight)


FAULTS = [
    (torch.ops.sparsyfed.prune.default, unpruned, "weight has a relative error"),
    (POWERPROP, folded, "relative error"),
    (BATCH_NORM, evaluated, "relative error"),
    (torch.ops.sparsyfed.powerprop_backward.default, naive, "not finite"),
]
"""Operator, wrong rule, and words of the gate."""
