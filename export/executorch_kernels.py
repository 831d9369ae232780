"""The operators of a joint graph by the core's kernels, where it has them.

Three passes over the graph. Layers: each convolution and linear layer becomes one operator in the forward and one in
the backward, which take v itself: there is no dense w, and no pruned copy of an input. Order: activations stay in the
core's order of memory from one such operator to the next, and are converted before and after one without a rule. Then
each operator is replaced by its rule.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from sparsyfed.edge_runtime.format import FLAG_COUNT_PADDING, FLAG_GELU_TANH, OperationKind
from sparsyfed.export import executorch_operators  # noqa: F401 - declares torch.ops.sparsyfed
from sparsyfed.export.joint_graph import JointGraph
from sparsyfed.export.native_operations import arguments_of

_ATEN = torch.ops.aten
_OWN = torch.ops.sparsyfed
_LINEAR = [1] * 5 + [0, 0, 1, 1]
"""The geometry of a linear layer: groups, kernel, stride, padding, dilation."""
_MOST_PLACES = 65536


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
            if node.target in _LAYERS or (rule is not None and rule[0](node)):
                self._convert(node, blocks=True)
                self._in_blocks.add(node)
                if rule is not None:
                    node.target = rule[1]
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


def _batch_norm(  # noqa: PLR0917 - the signature of the operator that it replaces
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, ...]:
    """Both of what PyTorch saves for the backward are our moments."""
    del training
    y, moments, *statistics = _OWN.batch_norm.default(
        *(x, weight, bias, mean, variance, momentum, epsilon)
    )
    return y, moments, moments, *statistics


def _batch_norm_evaluated(  # noqa: PLR0917 - likewise
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, ...]:
    del momentum
    return (_OWN.batch_norm_evaluated.default(x, weight, bias, mean, variance, epsilon),)


def _batch_norm_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    moments: Tensor,
    also_moments: Tensor,
    training: bool,
    epsilon: float,
    wanted: Sequence[bool],
) -> Any:
    del mean, variance, also_moments, training, wanted
    return _OWN.batch_norm_backward.default(d_y, x, weight, moments, epsilon)


def _group_shape(channels: int, pixels: int, groups: int) -> list[int]:
    return [groups, channels // groups * pixels, pixels, channels // groups]


def _group_norm(  # noqa: PLR0917 - likewise
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    epsilon: float,
) -> tuple[Tensor, ...]:
    del batch
    shape = _group_shape(channels, pixels, groups)
    y, moments = _OWN.norm.default(x, weight, bias, shape, epsilon)
    return y, moments, moments


def _group_norm_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    moments: Tensor,
    also_moments: Tensor,
    weight: Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    wanted: Sequence[bool],
) -> Any:
    del also_moments, batch
    shape = _group_shape(channels, pixels, groups)
    coefficients = channels if wanted[1] else 0
    return _OWN.norm_backward.default(d_y, x, weight, moments, shape, coefficients)


def _layer_shape(x: Tensor, normalized: Sequence[int]) -> list[int]:
    size = torch.Size(x.shape[1:]).numel()
    elements = torch.Size(normalized).numel()
    return [size // elements, elements, 1, 0]


def _layer_norm(
    x: Tensor,
    normalized: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, ...]:
    y, moments = _OWN.norm.default(x, weight, bias, _layer_shape(x, normalized), epsilon)
    return y, moments, moments


def _layer_norm_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    normalized: Sequence[int],
    moments: Tensor,
    also_moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    del also_moments, bias
    coefficients = torch.Size(normalized).numel() if wanted[1] else 0
    shape = _layer_shape(x, normalized)
    d_x, d_weight, d_bias = _OWN.norm_backward.default(d_y, x, weight, moments, shape, coefficients)
    if not wanted[1]:
        return d_x, d_weight, d_bias
    return d_x, d_weight.reshape(normalized), d_bias.reshape(normalized)


def _relu(x: Tensor) -> Any:
    return _OWN.rectifier.default(x, float("inf"))


def _relu_backward(d_y: Tensor, y: Tensor, threshold: float) -> Any:
    del threshold
    return _OWN.rectifier_backward.default(d_y, y, float("inf"))


def _hardtanh(x: Tensor, low: float, high: float) -> Any:
    del low
    return _OWN.rectifier.default(x, high)


def _hardtanh_backward(d_y: Tensor, x: Tensor, low: float, high: float) -> Any:
    del low
    return _OWN.rectifier_backward.default(d_y, x, high)


def _gelu_flags(approximate: str) -> int:
    return FLAG_GELU_TANH if approximate == "tanh" else 0


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    return _OWN.smooth.default(x, int(OperationKind.GELU), _gelu_flags(approximate))


def _gelu_backward(d_y: Tensor, x: Tensor, *, approximate: str = "none") -> Any:
    flags = _gelu_flags(approximate)
    return _OWN.smooth_backward.default(d_y, x, int(OperationKind.GELU), flags)


def _silu(x: Tensor) -> Any:
    return _OWN.smooth.default(x, int(OperationKind.SILU), 0)


def _silu_backward(d_y: Tensor, x: Tensor) -> Any:
    return _OWN.smooth_backward.default(d_y, x, int(OperationKind.SILU), 0)


def _window(
    kind: OperationKind,
    flags: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> list[int]:
    return [int(kind), flags, *kernel, *(stride or kernel), *padding]


def _pooled(x: Tensor, geometry: Sequence[int]) -> list[int]:
    kernel, stride, padding = (geometry[i : i + 2] for i in (2, 4, 6))
    return [(x.shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2)]


def _max_pool(  # noqa: PLR0917 - likewise
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Any:
    del dilation, ceil_mode
    geometry = _window(OperationKind.MAX_POOL, 0, kernel, stride, padding)
    return _OWN.pool.default(x, geometry, _pooled(x, geometry))


def _max_pool_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    winners: Tensor,
) -> Any:
    del dilation, ceil_mode
    geometry = _window(OperationKind.MAX_POOL, 0, kernel, stride, padding)
    return _OWN.pool_backward.default(d_y, winners, geometry, list(x.shape[2:]))


def _average_pool(  # noqa: PLR0917 - likewise
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_padding: bool = True,
    divisor: None = None,
) -> Any:
    del ceil_mode, divisor
    flags = FLAG_COUNT_PADDING if count_padding else 0
    geometry = _window(OperationKind.AVERAGE_POOL, flags, kernel, stride, padding)
    return _OWN.pool.default(x, geometry, _pooled(x, geometry))[0]


def _average_pool_backward(  # noqa: PLR0917 - likewise
    d_y: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_padding: bool,
    divisor: None,
) -> Any:
    del ceil_mode, divisor
    flags = FLAG_COUNT_PADDING if count_padding else 0
    geometry = _window(OperationKind.AVERAGE_POOL, flags, kernel, stride, padding)
    return _OWN.pool_backward.default(d_y, d_y, geometry, list(x.shape[2:]))


_ADAPTIVE = [int(OperationKind.ADAPTIVE_AVERAGE_POOL), 0, 1, 1, 1, 1, 0, 0]


def _adaptive_average_pool(x: Tensor, size: Sequence[int]) -> Any:
    return _OWN.pool.default(x, _ADAPTIVE, list(size))[0]


def _adaptive_average_pool_backward(d_y: Tensor, x: Tensor) -> Any:
    return _OWN.pool_backward.default(d_y, d_y, _ADAPTIVE, list(x.shape[2:]))


def _always(_: Node) -> bool:
    return True


def _from_zero(node: Node) -> bool:
    arguments = arguments_of(node)
    return arguments.get("threshold", arguments.get("min_val")) == 0


def _plain_window(node: Node) -> bool:
    """Windows without gaps, of the usual number of outputs, with the usual divisor; winners have 16 bits."""
    arguments = arguments_of(node)
    return (
        not arguments["ceil_mode"]
        and list(arguments.get("dilation", [1])) in ([1], [1, 1])
        and arguments.get("divisor_override") is None
        and torch.Size(arguments["kernel_size"]).numel() <= _MOST_PLACES
        and len(arguments["kernel_size"]) == 2
        and len(_shape(node.all_input_nodes[0])) == 4
    )


RULES: dict[Any, tuple[Callable[[Node], bool], Callable[..., Any]]] = {
    _ATEN._native_batch_norm_legit_functional.default: (_always, _batch_norm),  # noqa: SLF001 - an operator's name
    _ATEN._native_batch_norm_legit_no_training.default: (_always, _batch_norm_evaluated),  # noqa: SLF001 - likewise
    _ATEN.native_batch_norm_backward.default: (_always, _batch_norm_backward),
    _ATEN.native_group_norm.default: (_always, _group_norm),
    _ATEN.native_group_norm_backward.default: (_always, _group_norm_backward),
    _ATEN.native_layer_norm.default: (_always, _layer_norm),
    _ATEN.native_layer_norm_backward.default: (_always, _layer_norm_backward),
    _ATEN.relu.default: (_always, _relu),
    _ATEN.threshold_backward.default: (_from_zero, _relu_backward),
    _ATEN.hardtanh.default: (_from_zero, _hardtanh),
    _ATEN.hardtanh_backward.default: (_from_zero, _hardtanh_backward),
    _ATEN.gelu.default: (_always, _gelu),
    _ATEN.gelu_backward.default: (_always, _gelu_backward),
    _ATEN.silu.default: (_always, _silu),
    _ATEN.silu_backward.default: (_always, _silu_backward),
    _ATEN.max_pool2d_with_indices.default: (_plain_window, _max_pool),
    _ATEN.max_pool2d_with_indices_backward.default: (_plain_window, _max_pool_backward),
    _ATEN.avg_pool2d.default: (_plain_window, _average_pool),
    _ATEN.avg_pool2d_backward.default: (_plain_window, _average_pool_backward),
    _ATEN._adaptive_avg_pool2d.default: (_always, _adaptive_average_pool),  # noqa: SLF001 - likewise
    _ATEN._adaptive_avg_pool2d_backward.default: (_always, _adaptive_average_pool_backward),  # noqa: SLF001 - likewise
}
"""By operator and overload: whether the core computes a call, and the core's operator in its place."""
