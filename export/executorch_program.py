"""From joint graphs to one ExecuTorch program. Needs the executorch package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from sparsyfed.edge_runtime.backends.executorch_quiet import quiet
from sparsyfed.edge_runtime.errors import UnsupportedOperationError
from sparsyfed.edge_runtime.graph_names import STATE
from sparsyfed.export.joint_graph import JointGraph

with quiet():
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        ExecutorchProgramManager,
        to_edge,
    )
    from executorch.exir.passes import MemoryPlanningPass


_CONFIG = EdgeCompileConfig(_check_ir_validity=False)  # which knows no operators of our own


class _Step(nn.Module):
    """A graph with its results as a tuple, which is what torch.export takes."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(*inputs))


def written(
    graph: JointGraph, rules: Mapping[Any, Callable[..., Any]], plain: frozenset[Any]
) -> JointGraph:
    """Return the graph with `rules` called in the place of the operators that they are for.

    Raises UnsupportedOperationError for an operator that has no rule and is not in `plain`.
    """
    module = copy.deepcopy(graph.module)
    copied = JointGraph(module, graph.inputs, graph.outputs, graph.layers)
    placeholders = copied.placeholders
    names = {
        placeholders[name]: name.removeprefix(STATE)
        for name in graph.inputs
        if name.startswith(STATE)
    }
    layer = ""
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        for source in node.all_input_nodes:
            layer = names.get(source, layer)
        if _is_theirs(node.target) and node.target not in rules and node.target not in plain:
            raise UnsupportedOperationError(
                f"{node.target} near layer {layer!r} has no rule for ExecuTorch; targets that run it: native, "
                "torchscript"
            )
        node.target = rules.get(node.target, node.target)
    module.recompile()
    return copied


def _is_theirs(target: Any) -> bool:
    """Whether a call is of PyTorch's operators; rules and the core's operators stand in a graph as well."""
    return isinstance(target, torch._ops.OpOverload) and target.namespace != "sparsyfed"  # noqa: SLF001 - no public name


def exported(graph: JointGraph, batch_size: int) -> ExportedProgram:
    """Return a graph as torch.export has it, for batches of 1 to `batch_size`."""
    batch = Dim("batch", min=1, max=batch_size)
    shapes = tuple({0: batch} if name in {"x", "y"} else None for name in graph.inputs)
    inputs = tuple(_example(node.meta["val"]) for node in graph.placeholders.values())
    with quiet():
        return torch.export.export(_Step(graph.module), inputs, dynamic_shapes=(shapes,))


def _example(value: Tensor) -> Tensor:
    sizes: list[Any] = list(value.shape)
    sizes = [size if isinstance(size, int) else 3 for size in sizes]
    return torch.zeros(sizes, dtype=value.dtype)


class Program:
    """Methods as ExecuTorch runs them, their memory planned but for inputs and outputs, which lie at the caller's."""

    def __init__(self, methods: Mapping[str, ExportedProgram]) -> None:
        planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
        self._settings = ExecutorchBackendConfig(memory_planning_pass=planning)
        with quiet():
            edge = to_edge(dict(methods), compile_config=_CONFIG)
            planned = edge.to_executorch(self._settings)
        self._methods = {name: planned.exported_program(name) for name in methods}
        plans = planned.executorch_program.execution_plan
        self.memory = {plan.name: sum(plan.non_const_buffer_sizes) for plan in plans}
        """Bytes that each method takes once it is loaded; scratch of single operators comes to that."""

    def encode(self, constants: Mapping[str, Any]) -> bytes:
        """Return the bytes of the program, with methods without inputs that return `constants`."""
        with quiet():
            whole = ExecutorchProgramManager(self._methods, dict(constants), self._settings)
        return bytes(whole.buffer)
