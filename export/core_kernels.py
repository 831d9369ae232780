"""The operators of a joint graph by the core's kernels, where it has them.

Three passes over the graph. Layers: each convolution and linear layer becomes one operator in the forward and one in
the backward, which take v itself: there is no dense w, and no pruned copy of an input. Order: activations stay in the
core's order of memory from one such operator to the next, and are converted before and after one without a rule. Then
each operator is replaced by its rule.
"""

import copy
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from sparsyfed.export.core_rules import RULES
from sparsyfed.export.joint_graph import JointGraph
from sparsyfed.export.native_operations import arguments_of

KERNELS = ("sparsyfed", "stock")
"""The core's, or the engine's own alone."""
_ATEN = torch.ops.aten
_OWN = torch.ops.sparsyfed
_LINEAR = [1] * 5 + [0, 0, 1, 1]
"""The geometry of a linear layer: groups, kernel, stride, padding, dilation."""


def with_kernels(graph: JointGraph) -> JointGraph:
    """Return the graph with layers, updates and all else that the core computes as its operators."""
    module = copy.deepcopy(graph.module)
    result = JointGraph(module, graph.inputs, graph.outputs, graph.layers)
    for node in list(module.graph.nodes):
        if node.target is _OWN.powerprop.default:
            _fuse_layer(result, node)
    for node in list(module.graph.nodes):
        if node.target is _ATEN.sub.Tensor:
            _fuse_update(module.graph, node)
    module.graph.eliminate_dead_code()
    _Order(module.graph).run()
    module.graph.lint()
    module.recompile()
    return result


def _planar(arguments: dict[str, Any]) -> list[int]:
    """The geometry of a convolution; that of a signal lies along the width."""
    geometry = [arguments["groups"]]
    kernel = list(arguments["weight"].meta["val"].shape[2:])
    pairs = (kernel, arguments["stride"], arguments["padding"], arguments["dilation"])
    for pair, across in zip(pairs, (1, 1, 0, 1), strict=True):
        geometry += [across, *pair] if len(kernel) == 1 else list(pair)
    return geometry


def _fuse_layer(graph: JointGraph, weight: Node) -> None:
    """Replace all that stands around one w."""
    users = list(weight.users)
    transposed = [user for node in users if node.target is _ATEN.t.default for user in node.users]
    for node in users + transposed:
        if node.target is _ATEN.convolution.default:
            arguments = arguments_of(node)
            _fuse_forward(graph, node, weight, arguments["input"], arguments["bias"])
        elif node in transposed and node.target is _ATEN.addmm.default:
            _fuse_forward(graph, node, weight, node.args[1], node.args[0])
        elif node in transposed and node.target is _ATEN.mm.default:
            _fuse_forward(graph, node, weight, node.args[0], None)
    gradients = [n for n in weight.args[0].users if n.target is _OWN.powerprop_backward.default]  # type: ignore[union-attr]
    for gradient in gradients:
        _fuse_backward(graph, weight, gradient)


def _fuse_forward(graph: JointGraph, node: Node, weight: Node, x: Any, bias: Any) -> None:
    geometry = _LINEAR
    if node.target is _ATEN.convolution.default:
        geometry = _planar(arguments_of(node))
    v, beta = weight.args
    with graph.module.graph.inserting_before(node):
        call = graph.module.graph.call_function(_OWN.layer.default, (x, v, bias, geometry, beta))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)


def _fuse_backward(graph: JointGraph, weight: Node, gradient: Node) -> None:
    """One operator for the gradients of input, v and, for convolutions, bias."""
    source: Any = gradient.args[1]
    if source.target is operator.getitem:
        source = source.args[0]
        arguments = arguments_of(source)
        d_y, pruned, geometry = arguments["grad_output"], arguments["input"], _planar(arguments)
        items = [user for user in source.users if user.target is operator.getitem]
        results = {i: [item for item in items if item.args[1] == i] for i in (0, 2)}
    else:
        d_y, pruned, geometry = source.args[0].args[0], source.args[1], _LINEAR
        products = [n for n in weight.users if n.target is _ATEN.mm.default and n.args[0] is d_y]
        results = {0: products, 2: []}
    x, _, layer = pruned.args
    v, beta = weight.args
    first = min([source, *results[0]], key=list(graph.module.graph.nodes).index)
    place = graph.layers.index(layer)
    wanted = [bool(nodes and nodes[0].users) for nodes in results.values()]
    with graph.module.graph.inserting_before(first):
        call = graph.module.graph.call_function(
            _OWN.layer_backward.default,
            (d_y, x, v, graph.placeholders["keep"], place, geometry, beta, *wanted),
        )
        for index, nodes in {**results, 1: [gradient]}.items():
            item = graph.module.graph.call_function(operator.getitem, (call, index))
            for node in nodes:
                item.meta = dict(node.meta)
                node.replace_all_uses_with(item)


def _fuse_update(graph: Graph, node: Node) -> None:
    """One operator for p - (gradient + p · decay) · rate, the gradient is ready: its memory is free from there on."""
    p, scaled = node.args
    if not isinstance(scaled, Node) or scaled.target is not _ATEN.mul.Tensor:
        return
    decayed, rate = scaled.args
    if not isinstance(decayed, Node) or decayed.target is not _ATEN.add.Tensor:
        return
    gradient, decay = decayed.args
    if (
        not isinstance(decay, Node)
        or decay.target is not _ATEN.mul.Tensor
        or decay.args[0] is not p
    ):
        return
    assert isinstance(gradient, Node)
    with graph.inserting_after(gradient):
        call = graph.call_function(_OWN.descend.default, (p, gradient, rate, decay.args[1]))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)


class _Order:
    """Which activations lie in the core's order, and the conversions between."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._in_blocks: set[Node] = set()
        self._converted: dict[tuple[Node, bool], Node] = {}

    def run(self) -> None:
        """Insert conversions; calls of the core's operators in the place of what has a rule."""
        for node in list(self._graph.nodes):
            if node.op == "output":
                self._convert(node, blocks=False)
            if node.op != "call_function":
                continue
            rule = RULES.get(node.target)
            if node.target in _LAYERS or rule is not None:
                self._convert(node, blocks=True)
                self._in_blocks.add(node)
                node.target = rule or node.target
            elif node.target is operator.getitem or _keeps_order(node):
                if any(source in self._in_blocks for source in node.all_input_nodes):
                    self._convert(node, blocks=True)
                    self._in_blocks.add(node)
            else:
                self._convert(node, blocks=False)

    def _convert(self, node: Node, *, blocks: bool) -> None:
        """Give `node` all activations in one order."""
        for source in node.all_input_nodes:
            if _batch_of(source) is None or (source in self._in_blocks) == blocks:
                continue
            if (source, blocks) not in self._converted:
                conversion = _OWN.to_blocks.default if blocks else _OWN.to_rows.default
                with self._graph.inserting_before(node):
                    call = self._graph.call_function(conversion, (source,))
                call.meta = dict(source.meta)
                self._converted[source, blocks] = call
            node.replace_input_with(source, self._converted[source, blocks])


def _shape(node: Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _batch_of(node: Node) -> str | None:
    """The first dimension of an activation; None where it is no open one."""
    shape = _shape(node)
    return str(shape[0]) if len(shape) > 1 and isinstance(shape[0], torch.SymInt) else None


_RESHAPES = {
    _ATEN.view.default,
    _ATEN._unsafe_view.default,  # noqa: SLF001 - an operator's name
    _ATEN.reshape.default,
    _ATEN.squeeze.dim,
    _ATEN.squeeze.dims,
    _ATEN.unsqueeze.default,
}
_ELEMENTWISE = {_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Scalar}
_LAYERS = {_OWN.layer.default, _OWN.layer_backward.default}


def _keeps_order(node: Node) -> bool:
    """Whether a call does the same in both orders: single images reshaped, or numbers at the same places combined."""
    sources = [source for source in node.all_input_nodes if _shape(source)]
    if _batch_of(node) is None:
        return False
    if node.target in _RESHAPES:
        return _batch_of(sources[0]) == _batch_of(node)
    same = all(str(_shape(source)) == str(_shape(node)) for source in sources)
    return node.target in _ELEMENTWISE and same
