"""A bundle of a small model for every engine that is here, and data for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsyfed.edge_runtime import State
from sparsyfed.export.targets import TARGETS
from sparsyfed.tools.bundle import Bundle, BundleSettings, write_bundle

SHAPE, CLASSES = (2, 12, 10), 4


class Net(nn.Module):
    """A stem, a residual block with batch norm and max-pool, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(2)
        self.block = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12 * 6 * 5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head((x + self.block(x)).flatten(1))
        return logits


def available() -> list[str]:
    """The targets that can be written and run here."""
    return [target.name for target in TARGETS.values() if not target.missing()]


def write(
    folder: Path,
    *,
    targets: list[str],
    kernels: str | None = None,
    verify: bool = False,
    batch_size: int = 16,
) -> Bundle:
    settings = BundleSettings(
        model=f"{__name__}:Net",
        folder=folder,
        targets=targets,
        batch_size=batch_size,
        kernels=kernels,
        verify=verify,
        input_shape=SHAPE,
        sparsity=0.5,
        budget="erk",
    )
    return write_bundle(settings, lambda _: None)


def opened(folder: Path, name: str) -> Path:
    """What a session on the engine of a target opens."""
    target = TARGETS[name]
    return target.path(folder if name == "native" else folder / name)


def save_data(folder: Path, examples: int, seed: int = 0) -> Path:
    """Noise with a hint of its class."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, CLASSES, examples)
    x = generator.normal(size=(examples, *SHAPE)) + y[:, None, None, None] / 2
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "x.npy", x.astype(np.float32))
    np.save(folder / "y.npy", y)
    return folder


def initial(folder: Path) -> State:
    return State.load(folder / "initial.sfs")
