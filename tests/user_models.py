"""Models as users write them, for the tests of the export."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsyfed import export
from sparsyfed.edge_runtime import Artifact

Forward = Callable[[Any, Tensor], Any]


class Model(nn.Module):
    """A user's model: any layers, any forward."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def lowered(model: nn.Module, *shape: int, loss: str = "mse") -> Artifact:
    """Return the artifact of a model for examples of a shape."""
    return export.compile(model, torch.zeros(1, *shape), loss=loss).native
