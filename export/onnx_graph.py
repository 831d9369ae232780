"""An ONNX graph under construction: nodes in order, constants stored once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.fx import Node

OPSET = 20
CORE = "sparsyfed"
"""The domain of the core's operators."""
OPSETS = {"": OPSET, CORE: 1}
IR_VERSION = 10
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


class OnnxGraph:
    """Collects nodes; tensors are known by their names."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._made = 0

    def call(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a call with one output and return its name; an empty input name is an absent one."""
        return self.call_many(operator, 1, *inputs, **attributes)[0]

    def call_many(
        self,
        operator: str,
        count: int,
        *inputs: str,
        absent: Collection[int] = (),
        **attributes: Any,
    ) -> tuple[str, ...]:
        """Append a call with `count` outputs and return their names, empty for those that are not wanted."""
        outputs = tuple(
            "" if place in absent else self._new_name(operator.lower()) for place in range(count)
        )
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    def choose(self, condition: str, yes: Callable[[], str], no: Callable[[], str]) -> str:
        """Append an If and return its output: what `yes` writes where the condition holds, else what `no` writes."""
        branches = {}
        for name, write in (("then_branch", yes), ("else_branch", no)):
            outside, self._nodes = self._nodes, []
            output = helper.make_empty_tensor_value_info(write())
            branches[name] = helper.make_graph(self._nodes, name, [], [output])
            self._nodes = outside
        return self.call("If", condition, **branches)

    def rename(self, source: str, name: str) -> None:
        """Give a tensor another name as well, for an output of the graph."""
        self._nodes.append(helper.make_node("Identity", [source], [name]))

    def constant(self, values: NDArray[Any]) -> str:
        """Return the name of a constant tensor."""
        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._constants:
            name = self._constants[key] = self._new_name("constant")
            self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return self._constants[key]

    def number(self, value: float) -> str:
        """Return the name of a float32 constant without dimensions."""
        return self.constant(np.array(value, np.float32))

    def integers(self, values: Sequence[int]) -> str:
        """Return the name of a 1-D int64 constant."""
        return self.constant(np.array(values, np.int64))

    def add(self, left: str, right: str) -> str:
        """Return left + right."""
        return self.call("Add", left, right)

    def sub(self, left: str, right: str) -> str:
        """Return left - right."""
        return self.call("Sub", left, right)

    def mul(self, left: str, right: str) -> str:
        """Return left · right, elementwise."""
        return self.call("Mul", left, right)

    def reshape(self, source: str, shape: Sequence[int]) -> str:
        """Return `source` in another shape; -1 is whatever fits, 0 the source's own size there."""
        return self.call("Reshape", source, self.integers(shape))

    def transpose(self, source: str, order: Sequence[int]) -> str:
        """Return `source` with its dimensions in another order."""
        return self.call("Transpose", source, perm=list(order))

    def reduce(self, operator: str, source: str, axes: Sequence[int], keep: bool = True) -> str:
        """Return ReduceSum, ReduceMean and the like over axes, with their dimensions kept as 1."""
        return self.call(operator, source, self.integers(axes), keepdims=int(keep))

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Return the checked model of the nodes that the outputs need."""
        nodes = self._needed({output.name for output in outputs})
        used = {name for node in nodes for name in _read(node)}
        constants = [tensor for tensor in self._initializers if tensor.name in used]
        graph = helper.make_graph(nodes, self.name, inputs, outputs, constants)
        domains = sorted({"", *(node.domain for node in nodes)})
        model = helper.make_model(
            graph,
            producer_name="sparsyfed",
            opset_imports=[helper.make_opsetid(name, OPSETS[name]) for name in domains],
            ir_version=IR_VERSION,
        )
        onnx.checker.check_model(model)
        return model

    def _needed(self, wanted: set[str]) -> list[onnx.NodeProto]:
        needed = []
        for node in reversed(self._nodes):
            if wanted.intersection(node.output):
                wanted.update(_read(node))
                needed.append(node)
        return needed[::-1]

    def _new_name(self, prefix: str) -> str:
        self._made += 1
        return f"{prefix}_{self._made}"


def _read(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, also inside the branches of an If."""
    inner = [attribute.g.node for attribute in node.attribute if attribute.HasField("g")]
    return set(node.input).union(*(_read(child) for branch in inner for child in branch))


Value = str | tuple[str, ...]
"""The ONNX name of a node's tensor, or the names of several."""


class Lowering:
    """A joint graph on its way into an ONNX graph; `names` holds the tensors of the nodes so far."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.names: dict[Node, Value] = {}
        self.layer = ""
        """The prunable weight that was met last, for messages."""

    def name(self, node: Any) -> str:
        """Return the name of a node's tensor; empty for None."""
        if node is None:
            return ""
        value = self.names[node]
        assert isinstance(value, str)
        return value


def shape_of(node: Any) -> list[int]:
    """Return the sizes of a node's tensor, -1 for the batch."""
    value = node.meta["val"]
    return [size if isinstance(size, int) else -1 for size in value.shape]


def spatial_shape(node: Any) -> list[int]:
    """Return the sizes behind batch and channels."""
    return shape_of(node)[2:]


def elements(low: Lowering, source: str) -> str:
    """Return the number of elements of a tensor, as float32."""
    return low.graph.call("Cast", low.graph.call("Size", source), to=1)


def value_info(name: str, kind: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """Return the declaration of an input or output; a dimension in words is open."""
    return helper.make_tensor_value_info(name, TYPES[kind], list(shape))
