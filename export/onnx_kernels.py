"""The core's operators in ONNX: what `edge_runtime/onnxruntime` adds to ONNX Runtime, one rule each.

All of them have three attributes: `integers` and `numbers`, in the order in which the operator reads them, and `shape`,
that of the first result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from sparsyfed.export.core_kernels import with_kernels
from sparsyfed.export.joint_graph import JointGraph
from sparsyfed.export.native_operations import arguments_of
from sparsyfed.export.onnx_graph import CORE, Lowering, Value

_OWN = torch.ops.sparsyfed


def with_operators(graph: JointGraph) -> JointGraph:
    """Return `with_kernels` of the graph as calls of operators alone: its rules are traced."""
    kernels = with_kernels(graph)
    values = [node.meta["val"] for node in kernels.placeholders.values()]
    (mode,) = {value.fake_mode for value in values if isinstance(value, FakeTensor)}
    inputs = [v if isinstance(v, FakeTensor) else mode.from_tensor(_on_cpu(v)) for v in values]
    module = make_fx(kernels.module)(*inputs)
    module.graph.eliminate_dead_code()
    module.recompile()
    return JointGraph(module, graph.inputs, graph.outputs, graph.layers)


def _on_cpu(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype)


def _write(
    low: Lowering,
    node: Node,
    tensors: Sequence[Any],
    integers: Sequence[int] = (),
    numbers: Sequence[float] = (),
    *,
    results: int = 1,
    absent: Collection[int] = (),
) -> tuple[str, ...]:
    """Append the call of a node. An empty list has no type in ONNX: [0] stands for it."""
    value = node.meta["val"]
    first = value if isinstance(value, Tensor) else value[0]
    shape = [size if isinstance(size, int) else -1 for size in first.shape]
    return low.graph.call_many(
        node.target._schema.name.removeprefix(f"{CORE}::"),  # type: ignore[union-attr] # noqa: SLF001 - no public name
        results,
        *(low.name(tensor) for tensor in tensors),
        absent=absent,
        domain=CORE,
        integers=list(integers) or [0],
        numbers=list(numbers) or [0.0],
        shape=shape or [0],
    )


def _plain(
    tensors: str, integers: str = "", numbers: str = "", results: int = 1
) -> Callable[[Lowering, Node], Value]:
    """The rule of an operator whose arguments go over as they are, by their names in the schema."""

    def rule(low: Lowering, node: Node) -> Value:
        arguments = arguments_of(node)
        whole: list[int] = []
        for name in integers.split():
            value = arguments[name]
            whole += value if isinstance(value, list | tuple) else [value]
        written = _write(
            low,
            node,
            [arguments[name] for name in tensors.split()],
            whole,
            [arguments[name] for name in numbers.split()],
            results=results,
        )
        return written if results > 1 else written[0]

    return rule


def _layer_backward(low: Lowering, node: Node) -> Value:
    arguments = arguments_of(node)
    wanted = {0: arguments["wants_dx"], 2: arguments["wants_bias"]}
    return _write(
        low,
        node,
        [arguments[name] for name in ("dy", "x", "v", "keep")],
        [*arguments["geometry"], arguments["place"]],
        [arguments["beta"]],
        results=3,
        absent=[place for place, is_wanted in wanted.items() if not is_wanted],
    )


def _pool_backward(low: Lowering, node: Node) -> Value:
    """For averages, which have no winners, the graph has dy in their place."""
    d_y, winners, geometry, _ = node.args
    places = None if winners is d_y else winners
    return _write(low, node, [d_y, places], geometry)[0]  # type: ignore[arg-type]


def _slice(low: Lowering, node: Node) -> Value:
    """The mean of a batch out of its moments."""
    x, axis, start, end = node.args
    g = low.graph
    bounds = (g.integers([bound]) for bound in (start, end, axis))  # type: ignore[list-item]
    return g.call("Slice", low.name(x), *bounds)


_NORM = "x weight bias mean variance"

RULES: dict[Any, Callable[[Lowering, Node], Value]] = {
    _OWN.to_blocks.default: _plain("x"),
    _OWN.to_rows.default: _plain("x"),
    _OWN.layer.default: _plain("x v bias", "geometry", "beta"),
    _OWN.layer_backward.default: _layer_backward,
    _OWN.batch_norm.default: _plain(_NORM, "", "epsilon momentum", 4),
    _OWN.batch_norm_evaluated.default: _plain(_NORM, "", "epsilon"),
    _OWN.batch_norm_backward.default: _plain("dy x weight moments", "", "epsilon", 3),
    _OWN.norm.default: _plain("x weight bias", "shape", "epsilon", 2),
    _OWN.norm_backward.default: _plain("dy x weight moments", "shape coefficients", "", 3),
    _OWN.rectifier.default: _plain("x", "", "ceiling"),
    _OWN.rectifier_backward.default: _plain("dy x", "", "ceiling"),
    _OWN.smooth.default: _plain("x", "kind flags"),
    _OWN.smooth_backward.default: _plain("dy x", "kind flags"),
    _OWN.pool.default: _plain("x", "geometry", "", 2),
    _OWN.pool_backward.default: _pool_backward,
    _OWN.descend.default: _plain("p gradient rate decay"),
    torch.ops.aten.slice.Tensor: _slice,
}
"""By operator; `slice` stands in graphs with these kernels alone."""
