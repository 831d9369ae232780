"""What an artifact cannot hold, said with the operation, its place in the model and what to use instead."""

import re
from pathlib import Path

import torch
from torch.fx import Node

from sparsyfed.edge_runtime.errors import UnsupportedOperationError

_TORCH_FOLDER = str(Path(torch.__file__).parent)
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')

_MERGE = "merge branches by adding tensors of the same shape"
_LAYOUT = "keep the batch first and the channels second, and let flatten or reshape keep the element order"
_ACTIVATION = "use ReLU, ReLU6, GELU or SiLU"
_CONVOLUTION = "use Conv1d or Conv2d"
_SOFTMAX = (
    "remove it: the cross-entropy loss applies the softmax itself, so the model must return logits"
)
_PADDING = "give the convolution or pool its own `padding`"

INSTEAD = {
    "instance_norm": "use GroupNorm with num_groups equal to the number of channels",
    "local_response_norm": "use GroupNorm",
    "rms_norm": "use LayerNorm",
    "softmax": _SOFTMAX,
    "log_softmax": _SOFTMAX,
    "cat": _MERGE,
    "concat": _MERGE,
    "stack": _MERGE,
    "mul": _MERGE,
    "sub": _MERGE,
    "transpose": _LAYOUT,
    "permute": _LAYOUT,
    "movedim": _LAYOUT,
    "conv_transpose1d": "down-sample only, with Conv1d",
    "conv_transpose2d": "down-sample only, with Conv2d",
    "conv3d": _CONVOLUTION,
    "max_pool3d": "use MaxPool1d or MaxPool2d",
    "avg_pool3d": "use AvgPool1d or AvgPool2d",
    "adaptive_max_pool1d": "use AdaptiveAvgPool1d, or MaxPool1d with a fixed kernel",
    "adaptive_max_pool2d": "use AdaptiveAvgPool2d, or MaxPool2d with a fixed kernel",
    "pad": _PADDING,
    "constant_pad_nd": _PADDING,
    "leaky_relu": _ACTIVATION,
    "elu": _ACTIVATION,
    "prelu": _ACTIVATION,
    "sigmoid": _ACTIVATION,
    "tanh": _ACTIVATION,
    "hardswish": _ACTIVATION,
    "mish": _ACTIVATION,
    "softplus": _ACTIVATION,
    "clamp": "use ReLU or ReLU6",
    "clamp_min": "use ReLU",
    "matmul": "use Linear",
    "bmm": "use Linear",
    "einsum": "use Linear",
    "wrap_with_set_grad_enabled": "devices train the whole model: remove torch.no_grad",
    "detach": "devices train the whole model: remove it",
    "embedding": "use inputs that are already float vectors",
    "bilinear": "use Linear",
}
_OTHERWISE = (
    "supported are Conv1d/2d, Linear, BatchNorm1d/2d, GroupNorm, LayerNorm, ReLU, ReLU6, GELU, SiLU, "
    "MaxPool, AvgPool, AdaptiveAvgPool, mean over the spatial dimensions, residual add, reshape and dropout"
)


def operation_name(node: Node) -> str:
    """Return the ATen name of a call without overload and in-place mark: "conv2d", "add"."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - torch.ops has no public name for its class
        return str(target.overloadpacket.__name__).rstrip("_")
    return getattr(target, "__name__", str(target))


def module_path(node: Node) -> str:
    """Return the path of the innermost module that the call was made in; "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def place(node: Node) -> str:
    """Return where in the user's model a call stands: module path and source line, as far as known."""
    path = module_path(node)
    parts = [f"in module {path!r}" if path else "in the model's forward"]
    frames = [
        frame
        for frame in _FRAME.finditer(node.meta.get("stack_trace") or "")
        if not frame["file"].startswith(_TORCH_FOLDER)
    ]
    if frames:
        parts.append(f"at {frames[-1]['file']}:{frames[-1]['line']}")
    return " ".join(parts)


def unsupported(node: Node, reason: str, instead: str) -> UnsupportedOperationError:
    """Return the error for a call that no artifact can hold, with what to do about it."""
    return UnsupportedOperationError(f"{operation_name(node)} {place(node)}: {reason}; {instead}")


def unknown_operation(node: Node) -> UnsupportedOperationError:
    """Return the error for an operation that has no lowering at all."""
    instead = INSTEAD.get(operation_name(node), _OTHERWISE)
    return unsupported(node, "no target runs this operation", instead)
