"""The artifact under construction: tensors, operations and the claim of each parameter by one operation."""

from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from sparsyfed.edge_runtime.artifact import Operation, Parameter, Tensor
from sparsyfed.edge_runtime.errors import UnsupportedOperationError
from sparsyfed.edge_runtime.format import OperationKind, ParameterKind
from sparsyfed.export.capture import CapturedGraph
from sparsyfed.export.unsupported import module_path, operation_name, unsupported


class GraphBuilder:
    """Collects the records of an artifact while the captured graph is walked in order.

    Nodes are followed through identities, views and in-place operations: `tensor_of` gives the tensor that holds a
    node's value at this point of the walk.
    """

    def __init__(self, captured: CapturedGraph, parameters: tuple[Parameter, ...]) -> None:
        self.tensors: list[Tensor] = []
        self.operations: list[Operation] = []
        self._sources = captured.sources
        self._parameters = {parameter.name: i for i, parameter in enumerate(parameters)}
        self._kinds = tuple(parameter.kind for parameter in parameters)
        self._batch = captured.batch
        self._claimed: dict[int, str] = {}
        self._tensor_of: dict[Node, int] = {}
        self._storage_of: dict[Node, Node] = {}
        self._overwritten: dict[Node, str] = {}
        self._new_tensor(captured.input, self.shape(captured.input))

    def shape(self, node: Node) -> tuple[int, ...]:
        """Return the shape of one example of a node's value.

        Raises UnsupportedOperationError if the batch is not its first dimension, alone and unchanged.
        """
        value = node.meta.get("val")
        if isinstance(value, tuple):  # a pool that also returns indices
            value = value[0]
        if not isinstance(value, torch.Tensor):
            raise unsupported(node, "its result is not one tensor", "let it return one tensor")
        if value.dtype is not torch.float32:
            raise unsupported(node, f"its result is {value.dtype}", "keep everything in float32")
        batch, *example = value.shape or (1,)
        if not _same_size(batch, self._batch) or not all(isinstance(size, int) for size in example):
            raise unsupported(
                node,
                f"its result has shape {tuple(value.shape)}, not the batch of size {self._batch} alone in front",
                "keep the batch as the first dimension and out of every reshape and mean",
            )
        if not 1 <= len(example) <= 3:
            raise unsupported(
                node,
                f"an example of its result has shape {tuple(example)}",
                "keep one to three dimensions besides the batch",
            )
        return tuple(example)

    def tensor_of(self, reader: Node, source: Any) -> int:
        """Return the index of the tensor that argument `source` of call `reader` holds."""
        if isinstance(source, Node) and source in self._overwritten:
            raise unsupported(
                reader,
                f"reads {source.name} after {self._overwritten[source]} changed it in place through a view",
                "use inplace=False there",
            )
        if isinstance(source, Node) and source in self._tensor_of:
            return self._tensor_of[source]
        if isinstance(source, Node) and source.name in self._sources:
            what = f"the model's own tensor {self._sources[source.name]!r} as data"
        elif isinstance(source, Node):
            what = f"the constant that {operation_name(source)} makes"
        else:
            what = f"the constant {source!r}"
        raise unsupported(
            reader,
            f"takes {what}",
            "compute only with the input and the parameters of supported layers",
        )

    def alias(self, node: Node, source: Node, *, copies: bool) -> None:
        """Record that `node` has the value of `source`, in memory of its own if it `copies`."""
        self._tensor_of[node] = self.tensor_of(node, source)
        self._storage_of[node] = node if copies else self._storage_of[source]

    def claim(self, node: Node, source: Any, kind: ParameterKind) -> int | None:
        """Return the parameter index of a layer's tensor argument; None for an absent one.

        Raises UnsupportedOperationError if it is computed, shared, or not a parameter of that kind.
        """
        if source is None:
            return None
        name = self._sources.get(source.name) if isinstance(source, Node) else None
        if name is None:
            raise unsupported(
                node,
                "its parameters are computed by the model",
                "let the layer hold them as plain parameters",
            )
        index = self._parameters.get(name)
        if index is None or self._kinds[index] is not kind:
            raise unsupported(
                node,
                f"uses {name!r} in the place of a {kind.name.lower()} tensor of a standard layer",
                "use the layers of torch.nn (Conv1d, Conv2d, Linear, BatchNorm, GroupNorm, LayerNorm)",
            )
        if index in self._claimed:
            raise unsupported(
                node,
                f"uses {name!r} again, after {self._claimed[index]}",
                "give each use a layer of its own",
            )
        self._claimed[index] = module_path(node) or operation_name(node)
        return index

    def add(
        self,
        node: Node,
        kind: OperationKind,
        sources: tuple[int, ...],
        shape: tuple[int, ...] | None = None,
        *,
        overwrites: Node | None = None,
        view_of: Node | None = None,
        **fields: Any,
    ) -> int:
        """Append an operation whose output is the value of `node` (shape of one example: `shape`).

        Returns the output's tensor index. In PyTorch the result lies in the memory of `overwrites` or `view_of`, if
        given. `fields` are those of `Operation`.
        """
        output = self._new_tensor(node, shape or self.shape(node))
        name = self._operation_name(node)
        self.operations.append(
            Operation(kind=kind, inputs=sources, output=output, name=name, **fields)
        )
        if view_of is not None:
            self._storage_of[node] = self._storage_of[view_of]
        if overwrites is not None:
            self._overwrite(node, overwrites)
        return output

    def build(self, output: Node) -> tuple[tuple[Tensor, ...], tuple[Operation, ...]]:
        """Return the tensors and operations that the value of `output` depends on, renumbered; it is the last.

        Raises UnsupportedOperationError if there is no operation, or a parameter that they do not use.
        """
        wanted = {self.tensor_of(output, output)}
        for operation in reversed(self.operations):
            if operation.output in wanted:
                wanted.update(operation.inputs)
        kept = [operation for operation in self.operations if operation.output in wanted]
        self._check_parameters(kept)
        number = {0: 0} | {operation.output: i for i, operation in enumerate(kept, start=1)}
        operations = tuple(
            replace(
                operation,
                inputs=tuple(number[source] for source in operation.inputs),
                output=number[operation.output],
            )
            for operation in kept
        )
        return tuple(self.tensors[index] for index in number), operations

    def _check_parameters(self, operations: list[Operation]) -> None:
        used = {
            index
            for operation in operations
            for index in (operation.weight, operation.bias, operation.mean, operation.variance)
        }
        unused = [name for name, index in self._parameters.items() if index not in used]
        if unused:
            raise UnsupportedOperationError(
                f"the output does not depend on {', '.join(unused)}; remove the modules that hold them"
            )

    def _new_tensor(self, node: Node, shape: tuple[int, ...]) -> int:
        height = shape[1] if len(shape) == 3 else 1
        width = shape[-1] if len(shape) > 1 else 1
        index = len(self.tensors)
        self.tensors.append(Tensor(shape[0], height, width, len(shape)))
        self._tensor_of[node] = index
        self._storage_of[node] = node
        return index

    def _overwrite(self, node: Node, target: Node) -> None:
        """Let all names of the memory of `target` mean `node`; views in other shapes become unreadable."""
        before, storage = self._tensor_of[target], self._storage_of[target]
        for other in self._tensor_of:
            if self._storage_of[other] is not storage:
                continue
            if self._tensor_of[other] == before:
                self._tensor_of[other] = self._tensor_of[node]
            else:
                self._overwritten[other] = operation_name(node)
        self._storage_of[node] = storage

    @staticmethod
    def _operation_name(node: Node) -> str:
        path = module_path(node)
        if not path:
            return node.name
        module_type = str(list(node.meta["nn_module_stack"].values())[-1][1])
        is_layer = module_type.startswith("torch.nn.modules.") and ".container." not in module_type
        return path if is_layer else f"{path}.{node.name}"


def _same_size(left: int | torch.SymInt, right: torch.SymInt) -> bool:
    return isinstance(left, torch.SymInt) and left.node.expr == right.node.expr
