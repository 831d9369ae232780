"""The joint graph as TorchScript: one file that trains in any libtorch, without our code.

The graph is written as TorchScript source, not traced: so batch size and counts stay open, nothing runs while it is
exported, and no Python of ours is called from the file.
"""

import io
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.jit._recursive import wrap_cpp_module
from torch.jit._script import RecursiveScriptModule

from sparsyfed.edge_runtime.errors import UnsupportedOperationError
from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.edge_runtime.graph_names import NEW_STATE, STATE
from sparsyfed.edge_runtime.state import State
from sparsyfed.export import gate
from sparsyfed.export.joint_graph import (
    JointGraph,
    add_sgd,
    evaluation_graph,
    joint_graph,
)
from sparsyfed.export.manifest import (
    encode,
    manifest,
    operators,
    signature,
    verification_record,
)
from sparsyfed.export.states import dense_tensors, initial_state
from sparsyfed.export.training_artifact import TrainingArtifact

METHODS = (
    """
def prune(self, x: Tensor, keep: Tensor, layer: int) -> Tensor:
    count = int(keep[layer])
    if count >= x.numel():
        return x
    if count <= 0:
        return torch.zeros_like(x)
    size = x.abs()
    threshold = torch.kthvalue(size.flatten(), x.numel() - count + 1)[0]
    if float(threshold) == 0.0:
        return x
    kept = size >= threshold
    surplus = int(kept.sum()) - count
    if surplus > 0:
        # Among equals the lower position stays.
        equal = (size == threshold).flatten()
        last = equal.cumsum(0) > int(equal.sum()) - surplus
        kept = kept.logical_and(equal.logical_and(last).logical_not().view_as(x))
    return torch.where(kept, x, torch.zeros_like(x))
""",
    """
def powerprop(self, v: Tensor, beta: float) -> Tensor:
    return v.sign() * v.abs().pow(beta)
""",
    """
def powerprop_backward(self, v: Tensor, d_weight: Tensor, beta: float) -> Tensor:
    d_v = beta * v.abs().pow(beta - 1.0) * d_weight
    return torch.where(v == 0.0, torch.zeros_like(v), d_v)
""",
)
"""What the operators of `operators` are in TorchScript."""

_BATCH = ("x", "y", "keep")
_ARITHMETIC = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
}
_OWN = {
    torch.ops.sparsyfed.powerprop.default: "self.powerprop",
    torch.ops.sparsyfed.powerprop_backward.default: "self.powerprop_backward",
}


def to_torchscript(
    artifact: TrainingArtifact,
    path: str | Path,
    state: State | None = None,
    *,
    verify: bool = True,
) -> dict[str, Any]:
    """Write the training step of `artifact` as a TorchScript file, by convention `.pt`; return its manifest.

    The file holds the values of `state` (by default `initial_state` of the model) as `state`, a dictionary from
    parameter names to float32 tensors, v for prunable weights, and the methods

    * `train_step(x, y, keep, learning_rate, weight_decay)`: applies one step of SGD to `state` in place and returns
      the loss; if the loss or a new value is not finite it changes nothing and returns NaN;
    * `gradients(x, y, keep)`: a dictionary with `loss`, `gradient.<parameter>` and `new_state.<statistic>`;
    * `evaluate(x, y)`: a dictionary with `loss` and, for cross-entropy, `correct`.

    x is float32 (batch, ...), y int64 labels or float32 targets, `keep` int64 with one count for each prunable weight,
    the rates are floats. Beside the code lie the extra files `manifest.json` and `model.sfd`.

    With `verify` the written file is read again and run through the gate, which raises VerificationError; without it a
    fault of the exporter or of this libtorch would be found by the devices. The step is the same either way, and the
    manifest says which it was. The file is written whole or not at all, and the same model gives the same bytes.
    """
    graph, evaluation = joint_graph(artifact), evaluation_graph(artifact)
    if state is None:
        state = initial_state(artifact.model, artifact.beta)
    module = _scripted(graph, evaluation, dense_tensors(artifact.model, state))
    record = manifest(artifact, "torchscript", {"torch": torch.__version__})
    record["operators"] = operators(graph)
    record["graphs"] = {
        "train_step": signature((*_BATCH, "learning_rate", "weight_decay"), ["loss"]),
        "gradients": signature(_BATCH, graph.outputs),
        "evaluate": signature(_BATCH[:2], evaluation.outputs),
    }
    if verify:
        checked = _verified(artifact, _loaded(_bytes(module, {})))
        record["verified"] = verification_record(checked)
    extra = {"manifest.json": encode(record), "model.sfd": artifact.encode()}
    write_atomic(path, _bytes(module, extra))
    return record


def _verified(artifact: TrainingArtifact, module: RecursiveScriptModule) -> gate.Verification:
    """Run both training methods through the gate; the module's state is overwritten."""
    cases = gate.Cases(artifact)

    def load(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        for name, tensor in module.state.items():
            tensor.copy_(inputs[STATE + name])
        return inputs["x"], inputs["y"], inputs["keep"]

    def gradients(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results: dict[str, Tensor] = module.gradients(*load(inputs))
        return results

    def train(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rates = (float(inputs[name]) for name in ("learning_rate", "weight_decay"))
        loss = module.train_step(*load(inputs), *rates)
        return {"loss": loss, **{NEW_STATE + n: t.clone() for n, t in module.state.items()}}

    def evaluate(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results: dict[str, Tensor] = module.evaluate(*load(inputs)[:2])
        return results

    gate.verify_evaluation(artifact, cases, evaluate, "torchscript evaluate")
    gate.verify(cases, gate.gradients_of_sgd(artifact, train), "torchscript train_step")
    return gate.verify(cases, gradients, "torchscript gradients")


def _bytes(module: RecursiveScriptModule, extra: Mapping[str, bytes]) -> bytes:
    data: bytes = module.save_to_buffer(_extra_files=extra)  # type: ignore[no-untyped-call]
    return data


def _loaded(data: bytes) -> RecursiveScriptModule:
    with _without_deprecation():
        return torch.jit.load(io.BytesIO(data))  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """TorchScript is deprecated in favour of torch.export, which has no form that libtorch can train."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.*is deprecated", DeprecationWarning)
        yield


def _empty_module(state: dict[str, Tensor]) -> RecursiveScriptModule:
    """A module with attributes and no methods.

    torch.jit.script numbers its classes by how many the process has made, and the numbers are in the file. So this
    one is made where there are no others, for which PyTorch has no public way.
    """
    library: Any = torch._C  # noqa: SLF001 - see above
    step = library.ScriptModule("__torch__.Step", library.CompilationUnit(), False)
    parameters = library.DictType(library.StringType.get(), library.TensorType.get())
    step._register_attribute("state", parameters, state)  # noqa: SLF001 - likewise
    step._register_attribute("training", library.BoolType.get(), True)  # noqa: SLF001 - for `eval`
    module: RecursiveScriptModule = wrap_cpp_module(step)  # type: ignore[no-untyped-call]
    return module


def _scripted(
    graph: JointGraph, evaluation: JointGraph, state: dict[str, Tensor]
) -> RecursiveScriptModule:
    module = _empty_module(state)
    for source in METHODS:
        module.define(source)
    module.define(_dictionary_method("gradients", "x: Tensor, y: Tensor, keep: Tensor", graph))
    module.define(_dictionary_method("evaluate", "x: Tensor, y: Tensor", evaluation))
    module.define(_training_method(add_sgd(graph)))
    return module


def _dictionary_method(name: str, arguments: str, graph: JointGraph) -> str:
    results = ", ".join(
        f"{key!r}: {node.name}" for key, node in zip(graph.outputs, graph.results, strict=True)
    )
    lines = [*_body(graph), f"return {{{results}}}"]
    return _method(f"{name}(self, {arguments}) -> Dict[str, Tensor]", lines)


def _training_method(graph: JointGraph) -> str:
    results = dict(zip(graph.outputs, graph.results, strict=True))
    loss = results.pop("loss").name
    finite = [
        f"finite = finite.logical_and({node.name}.sum().isfinite())" for node in results.values()
    ]
    updates = [
        f"self.state[{name.removeprefix(NEW_STATE)!r}].copy_({node.name})"
        for name, node in results.items()
    ]
    lines = [*_body(graph), f"finite = {loss}.isfinite()", *finite]
    lines += [
        "if not bool(finite):",
        f"    return {loss} * float('nan')",
        *updates,
        f"return {loss}",
    ]
    arguments = "x: Tensor, y: Tensor, keep: Tensor, learning_rate: float, weight_decay: float"
    return _method(f"train_step(self, {arguments}) -> Tensor", lines)


def _method(head: str, lines: Sequence[str]) -> str:
    return "\n".join([f"def {head}:", *(f"    {line}" for line in lines)]) + "\n"


def _body(graph: JointGraph) -> list[str]:
    """The graph as statements, one for each node."""
    lines = []
    for name, node in graph.placeholders.items():
        value = f"self.state[{name.removeprefix(STATE)!r}]" if name.startswith(STATE) else name
        lines.append(f"{node.name} = {value}")
    for node in graph.module.graph.nodes:
        if node.op == "call_function":
            lines.append(f"{node.name} = {_expression(graph, node)}")
        elif node.op not in {"placeholder", "output"}:
            raise UnsupportedOperationError(
                f"the training graph holds a constant tensor, {node.name}: compute it in the model's forward"
            )
    return lines


def _expression(graph: JointGraph, node: Node) -> str:
    target: Any = node.target
    if target is operator.getitem:
        return f"{_text(node.args[0])}[{node.args[1]}]"
    if target in _ARITHMETIC:
        return f"{_text(node.args[0])} {_ARITHMETIC[target]} {_text(node.args[1])}"
    if target is torch.ops.sparsyfed.prune.default:
        place = graph.layers.index(str(node.args[2]))
        return f"self.prune({_text(node.args[0])}, keep, {place})"
    if target is torch.ops.aten.sym_size.int:
        return f"{_text(node.args[0])}.size({node.args[1]})"
    arguments = [_text(argument) for argument in node.args]
    arguments += [f"{name}={_text(value)}" for name, value in node.kwargs.items()]
    function = _OWN.get(target, f"torch.ops.{target.overloadpacket}".replace("::", "."))
    return f"{function}({', '.join(arguments)})"


def _text(argument: Any) -> str:
    if isinstance(argument, Node):
        return argument.name
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(map(_text, argument))}]"
    return repr(argument)
