"""One training step of a compiled model as one graph of ATen calls: the source of every engine's export.

Loss, backward with pruned saved activations, gradients and running statistics, for any batch size. The method is
traced out of the eager reference, not written again; its parts stand in the graph as the operators of `operators`.
How many activations a layer keeps is an input. The graph is functional: nothing is changed in place.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.nn.modules.batchnorm import _BatchNorm

from sparsyfed.edge_runtime.artifact import Artifact, Parameter
from sparsyfed.edge_runtime.errors import UnsupportedOperationError
from sparsyfed.edge_runtime.format import ParameterKind
from sparsyfed.edge_runtime.graph_names import GRADIENT, NEW_STATE, STATE
from sparsyfed.export import operators
from sparsyfed.export.powerprop import method_of, reference
from sparsyfed.export.training_artifact import TrainingArtifact

_ATEN = torch.ops.aten
PruneSite = Callable[[Tensor, Tensor], Tensor]
_COPIES = {_ATEN.detach.default, _ATEN.clone.default, _ATEN.alias.default}


@dataclass(frozen=True, slots=True)
class JointGraph:
    """A traced step. Placeholder i is called `inputs[i]`, result i `outputs[i]`.

    Inputs: `state.<parameter>` for every parameter, in the order of the artifact and the shapes of the model (v for a
    prunable weight), then `x` (batch, *input shape), `y` (int64 labels or float32 targets) and, in training, `keep`:
    int64 with one count for each prunable weight, in that order. `add_sgd` appends `learning_rate` and `weight_decay`.
    """

    module: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]
    """The prunable weight behind each count of `keep`."""

    @property
    def results(self) -> tuple[Node, ...]:
        """The nodes of the outputs."""
        (output,) = (node for node in self.module.graph.nodes if node.op == "output")
        return tuple(output.args[0])

    @property
    def placeholders(self) -> dict[str, Node]:
        """The node of each input."""
        nodes = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        return dict(zip(self.inputs, nodes, strict=True))


@torch.inference_mode(False)  # whatever the caller is in: gradients are traced
def joint_graph(artifact: TrainingArtifact) -> JointGraph:
    """Return the training graph of a compiled model.

    Outputs: `loss`; `gradient.<parameter>` of every parameter but statistics, dL/dv for a prunable weight;
    `new_state.<statistic>`.

    Raises UnsupportedOperationError if the model fixes the batch size, if its trace lacks a layer's prune site, and
    for int8 inputs.
    """
    if artifact.native.quantization is not None:
        raise UnsupportedOperationError(
            "the model was compiled for int8 inputs, which the native target alone takes: "
            "compile it without a quantization for other engines"
        )
    parameters = artifact.native.parameters
    model = _traceable(artifact).train()
    layers = _layers(artifact.native)
    statistics = _named(parameters, statistic=True)
    trained = _named(parameters, statistic=False)

    def step(*inputs: Tensor) -> list[Tensor]:
        *values, x, y, keep = inputs
        state = {p.name: v.clone() for p, v in zip(parameters, values, strict=True)}
        for name in trained:
            state[name] = state[name].detach().requires_grad_()
        for place, name in enumerate(layers):
            method_of(model, name).prune = _prune_site(keep, place, name)
        loss = artifact.loss_of(torch.func.functional_call(model, state, (x,)), y)
        gradients = torch.autograd.grad(loss, [state[name] for name in trained])
        return [loss.detach(), *gradients, *(state[name] for name in statistics)]

    keep = torch.ones(len(layers), dtype=torch.int64)
    module = _trace(step, artifact, keep)
    graph = JointGraph(
        module,
        (*_state_inputs(parameters), "x", "y", "keep"),
        ("loss", *(GRADIENT + n for n in trained), *(NEW_STATE + n for n in statistics)),
        layers,
    )
    _check_sites(graph)
    return graph


def add_weight_decay(graph: JointGraph) -> JointGraph:
    """Return a graph whose gradients are dL/dp + weight_decay · p, the float32 scalar `weight_decay` being an input."""
    copied = _with_scalar(graph, "weight_decay")
    module, placeholders = copied.module, copied.placeholders
    decay = placeholders["weight_decay"]
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    results = []
    with module.graph.inserting_before(output):
        for name, result in zip(copied.outputs, copied.results, strict=True):
            if name.startswith(GRADIENT):
                value = placeholders[STATE + name.removeprefix(GRADIENT)]
                decayed = _call(module, _ATEN.mul.Tensor, value, decay)
                results.append(_call(module, _ATEN.add.Tensor, result, decayed))
            else:
                results.append(result)
    output.args = (tuple(results),)
    module.graph.lint()
    module.recompile()
    return copied


def add_sgd(graph: JointGraph) -> JointGraph:
    """Return a graph that applies the gradients: p - learning_rate · (dL/dp + weight_decay · p).

    `learning_rate` and `weight_decay` are float32 inputs with one element. Outputs: `loss` and `new_state.<parameter>`
    of every parameter, in the order of the inputs. A zero of v, whose gradient is zero, stays exactly zero.
    """
    copied = add_weight_decay(_with_scalar(graph, "learning_rate"))
    module, placeholders = copied.module, copied.placeholders
    rate = placeholders["learning_rate"]
    results = dict(zip(copied.outputs, copied.results, strict=True))
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    names = [name.removeprefix(STATE) for name in graph.inputs if name.startswith(STATE)]
    values = []
    with module.graph.inserting_before(output):
        for name in names:
            if NEW_STATE + name in results:
                values.append(results[NEW_STATE + name])
                continue
            step = _call(module, _ATEN.mul.Tensor, results[GRADIENT + name], rate)
            values.append(_call(module, _ATEN.sub.Tensor, placeholders[STATE + name], step))
    output.args = ((results["loss"], *values),)
    module.graph.lint()
    module.recompile()
    return JointGraph(
        module, copied.inputs, ("loss", *(NEW_STATE + name for name in names)), graph.layers
    )


@torch.inference_mode(False)
def evaluation_graph(artifact: TrainingArtifact) -> JointGraph:
    """Return the graph of a batch in evaluation mode; it has no input `keep`.

    Outputs: `loss` (mean over the batch) and, for cross-entropy, `correct`: int64, the number of right answers.
    """
    parameters = artifact.native.parameters
    model = _traceable(artifact).eval()

    def evaluate(*inputs: Tensor) -> list[Tensor]:
        *values, x, y = inputs
        state = {p.name: v.clone() for p, v in zip(parameters, values, strict=True)}
        for name in _layers(artifact.native):
            method_of(model, name).prune = lambda x, _: x
        with torch.no_grad():
            output = torch.func.functional_call(model, state, (x,))
            results = [artifact.loss_of(output, y)]
            if artifact.loss == "cross_entropy":
                results.append((output.argmax(1) == y).sum())
        return results

    outputs = ("loss", "correct") if artifact.loss == "cross_entropy" else ("loss",)
    module = _trace(evaluate, artifact)
    return JointGraph(module, (*_state_inputs(parameters), "x", "y"), outputs, ())


def _layers(artifact: Artifact) -> tuple[str, ...]:
    return tuple(artifact.parameters[index].name for index in artifact.prunable)


def _named(parameters: Sequence[Parameter], *, statistic: bool) -> tuple[str, ...]:
    kind = ParameterKind.STATISTIC
    return tuple(p.name for p in parameters if (p.kind is kind) == statistic)


def _state_inputs(parameters: Sequence[Parameter]) -> tuple[str, ...]:
    return tuple(STATE + parameter.name for parameter in parameters)


def _traceable(artifact: TrainingArtifact) -> nn.Module:
    """The eager reference with our operators in it, and without the batch norms' counting of steps."""
    model = reference(artifact.model, artifact.beta).cpu()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.num_batches_tracked = None
    for name in _layers(artifact.native):
        method_of(model, name).power = operators.powerprop_operator
    return model


def _prune_site(keep: Tensor, place: int, name: str) -> PruneSite:
    return lambda x, _: operators.prune(x, keep[place], name)


def _batch_norm(  # noqa: PLR0917 - the signature of the operator that it replaces
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`aten.native_batch_norm` writes the statistics behind the schema's back; this one writes them in sight."""
    if not training:
        results = _ATEN._native_batch_norm_legit_no_training.default(  # noqa: SLF001 - an operator's name
            x, weight, bias, mean, variance, momentum, epsilon
        )
        return results[0], results[1], results[2]
    results = _ATEN._native_batch_norm_legit_functional.default(  # noqa: SLF001 - an operator's name
        x, weight, bias, mean, variance, training, momentum, epsilon
    )
    mean.copy_(results[3])
    if x.shape[2:].numel() > 1:
        variance.copy_(results[4])
        return results[0], results[1], results[2]
    # A batch of one has one value for each channel. Its unbiased variance is 0/0: devices take the plain one, 0.
    # And the operator's x·a - mean·a is only near to the 0 that (x - mean)·a is.
    channels = [1, -1, *x.shape[2:]]
    count = torch.ones_like(x).sum([0, *range(2, x.dim())])  # the trace knows no size of one
    variance.copy_(torch.where(count == 1, variance * (1 - momentum), results[4]))
    shifted = x - results[1].view(channels)
    shifted = shifted if bias is None else shifted + bias.view(channels)
    output = torch.where((count == 1).view(channels), shifted, results[0])
    return output, results[1], results[2]


def _trace(
    function: Callable[..., list[Tensor]], artifact: TrainingArtifact, *more: Tensor
) -> GraphModule:
    """The functional graph of `function` of the state, x, y and `more`, for any batch size."""
    inputs = _fake_inputs(artifact, more)
    table = {_ATEN.native_batch_norm.default: _batch_norm}
    # First through autograd, which functorch would not allow inside; then without mutations.
    traced = make_fx(function, decomposition_table=table)(*inputs)
    module = make_fx(torch.func.functionalize(traced, remove="mutations"))(*inputs)
    for node in module.graph.nodes:
        if node.target in _COPIES:
            node.replace_all_uses_with(node.args[0])
        elif node.target is _ATEN.copy.default:  # what is left of writing running statistics
            node.replace_all_uses_with(node.args[1])
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    (batch,) = inputs[len(artifact.native.parameters)].shape[:1]
    if not isinstance(batch, torch.SymInt) or batch.node.maybe_as_int() is not None:
        raise UnsupportedOperationError(
            f"the training graph of the model holds for batches of {batch} only; "
            "its forward must not depend on the batch size"
        )
    return module


def _fake_inputs(artifact: TrainingArtifact, more: Sequence[Tensor]) -> list[Tensor]:
    """Tensors without data: only the batch size is open. 3 is a size that PyTorch gives no special treatment."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    native = artifact.native
    x = torch.empty(3, *artifact.input_shape, dtype=torch.float32)
    if artifact.loss == "mse":
        y = torch.empty(3, *native.tensors[native.output].shape, dtype=torch.float32)
    else:
        y = torch.empty(3, dtype=torch.int64)

    def fake(tensor: Tensor, first: DimDynamic) -> Tensor:
        sizes = [first, *[DimDynamic.STATIC] * (tensor.dim() - 1)][: tensor.dim()]
        return mode.from_tensor(
            tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes)
        )

    values = artifact.model.state_dict()
    shapes = [values[parameter.name].shape for parameter in native.parameters]
    static = [fake(torch.empty(shape, dtype=torch.float32), DimDynamic.STATIC) for shape in shapes]
    batched = [fake(tensor, DimDynamic.DYNAMIC) for tensor in (x, y)]
    return [*static, *batched, *(fake(tensor, DimDynamic.STATIC) for tensor in more)]


def _check_sites(graph: JointGraph) -> None:
    """Each layer has one prune site, with its own count, that reaches its weight gradient and nothing else."""
    keep = graph.placeholders["keep"]
    sites = [n for n in graph.module.graph.nodes if n.target is torch.ops.sparsyfed.prune.default]
    found = {
        site.args[2]
        for site in sites
        if site.args[1].args == (keep, 0, graph.layers.index(site.args[2]))
        and site.users
        and all(_is_weight_gradient(user, site) for user in site.users)
    }
    missing = [layer for layer in graph.layers if layer not in found]
    if missing or len(sites) != len(graph.layers):
        raise UnsupportedOperationError(
            f"the training graph has {len(sites)} prune sites for {len(graph.layers)} layers; without a right one: "
            f"{', '.join(missing) or 'none'}. Their weight gradients would not be those of the method"
        )


def _is_weight_gradient(node: Node, pruned: Node) -> bool:
    if node.target is _ATEN.convolution_backward.default:
        return node.args[1] is pruned
    return node.target is _ATEN.mm.default and node.args[1] is pruned


def _with_scalar(graph: JointGraph, name: str) -> JointGraph:
    """A copy of a graph with a float32 input without dimensions behind the others."""
    module = copy.deepcopy(graph.module)
    copied = JointGraph(module, graph.inputs, graph.outputs, graph.layers)
    with module.graph.inserting_after(copied.placeholders[graph.inputs[-1]]):
        value = torch.empty((), dtype=torch.float32, device="meta")
        module.graph.placeholder(name).meta["val"] = value
    return JointGraph(module, (*graph.inputs, name), graph.outputs, graph.layers)


def _call(module: GraphModule, target: Any, left: Node, right: Node) -> Node:
    node = module.graph.call_function(target, (left, right))
    node.meta["val"] = left.meta["val"]
    return node
