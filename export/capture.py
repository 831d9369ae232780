"""Capture of an ordinary nn.Module as a flat graph of ATen calls, with its batch size left open."""

import copy
import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, Node
from torch.nn.modules.batchnorm import _BatchNorm

from sparsyfed.edge_runtime.errors import InputError, UnsupportedOperationError


@dataclass(frozen=True)
class CapturedGraph:
    """The training graph of a model.

    `sources` maps the graph's placeholders to names in the state dict, for parameters and buffers.
    """

    graph: Graph
    sources: dict[str, str]
    input: Node
    output: Node
    input_shape: tuple[int, ...]

    @property
    def batch(self) -> torch.SymInt:
        """The batch size: first dimension of every activation."""
        size = self.input.meta["val"].shape[0]
        assert isinstance(size, torch.SymInt)
        return size


def capture(model: nn.Module, example_input: Tensor) -> CapturedGraph:
    """Return the graph of `model` in training mode, for any batch size of at least 2.

    `example_input` is a float32 batch of at least one example; only its shape matters. The model, its mode and its
    buffers, and PyTorch's random state stay as they are.

    Raises InputError if the model does not run on the example, and UnsupportedOperationError if it takes or returns
    anything but one tensor, or cannot be captured (Python control flow that depends on data or batch size).
    """
    _check_example(example_input)
    _check_forward(model)
    _check_modules(model)
    training_copy = copy.deepcopy(model).cpu().train()
    example = example_input[:1].detach().cpu()
    batch = example.expand(2, *example.shape[1:]).clone()
    with torch.random.fork_rng(devices=[]):
        _check_run(training_copy, batch)
        program = _export(training_copy, batch)
    return _captured(program, tuple(example.shape[1:]))


def _check_example(example: Tensor) -> None:
    if not isinstance(example, Tensor):
        raise InputError(
            f"example_input is a {type(example).__name__}; it must be one tensor: a batch of examples"
        )
    if example.dtype is not torch.float32:
        raise InputError(f"example_input is {example.dtype}; it must be torch.float32")
    if not 2 <= example.dim() <= 4 or 0 in example.shape:
        raise InputError(
            f"example_input has shape {tuple(example.shape)}; it must be a batch of at least one example: "
            "(batch, features), (batch, channels, length) or (batch, channels, height, width)"
        )


def _check_forward(model: nn.Module) -> None:
    required = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(required) > 1:
        raise UnsupportedOperationError(
            f"the model's forward takes {len(required)} inputs ({', '.join(required)}); "
            "devices feed one tensor: join the inputs into one, or wrap the model"
        )


def _check_modules(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, (nn.RNNBase, nn.MultiheadAttention, nn.Transformer)):
            raise UnsupportedOperationError(
                f"{path or 'the model'} is {type(module).__name__}, which no target runs; "
                "use convolutions over time (Conv1d)"
            )
        if isinstance(module, _BatchNorm) and module.momentum is None:
            raise UnsupportedOperationError(
                f"{path or 'the model'}: a batch norm with momentum=None averages over all steps, "
                "which devices do not count; give it a momentum such as 0.1"
            )


def _check_run(model: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        try:
            output = model(batch)
        except Exception as error:
            raise InputError(
                f"the model fails on a training batch of shape {tuple(batch.shape)}, "
                f"made from example_input: {error}"
            ) from error
    if not isinstance(output, Tensor):
        raise UnsupportedOperationError(
            f"the model returns a {type(output).__name__}; it must return one tensor"
        )


def _export(model: nn.Module, batch: Tensor) -> ExportedProgram:
    shapes = ({0: Dim("batch", min=2)},)
    try:
        # Not strict: the graph is only read, and Dynamo refuses more of the user's Python.
        return torch.export.export(model, (batch,), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise UnsupportedOperationError(
            "the model cannot be captured as one graph for every batch size; its forward must not branch on "
            "values or on the batch size, nor contain a fixed batch size (say x.size(0), not len(x)). "
            f"torch.export says: {error}"
        ) from error


def _captured(program: ExportedProgram, input_shape: tuple[int, ...]) -> CapturedGraph:
    signature = program.graph_signature
    sources = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    nodes = {node.name: node for node in program.graph.nodes}
    (input_name,) = signature.user_inputs
    (output_name,) = signature.user_outputs
    return CapturedGraph(
        program.graph, dict(sources), nodes[str(input_name)], nodes[str(output_name)], input_shape
    )
