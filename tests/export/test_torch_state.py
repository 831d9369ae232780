"""Exports are the same whatever PyTorch's own state is where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsyfed import export


@contextmanager
def float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "float64": float64_by_default,
}


def files(artifact: export.TrainingArtifact, folder: Path) -> dict[str, bytes]:
    """Verified exports of the initial state."""
    state = export.initial_state(artifact.model, sparsity=0.5)
    export.to_onnx(artifact, folder, state)
    export.to_torchscript(artifact, folder / "model.pt", state)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", STATES)
def test_an_export_does_not_depend_on_the_state_of_pytorch(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    artifact = export.compile(model, torch.zeros(1, 2, 6, 6), loss="mse")
    wanted = files(artifact, tmp_path / "plain")
    with STATES[name]():
        assert files(artifact, tmp_path / "other") == wanted
