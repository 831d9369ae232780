"""Sessions on engines that are not installed."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from engine_cases import compiled, state_at

from sparsyfed.edge_runtime import Session
from sparsyfed.edge_runtime.errors import BackendError


@pytest.mark.parametrize(
    ("backend", "package"),
    [
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime-training", "onnxruntime"),
        ("torchscript", "torch"),
        ("executorch", "executorch.extension.pybindings"),
    ],
)
def test_an_engine_that_is_not_installed_is_named(
    backend: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if "edge_runtime.backends." in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendError, match=rf"install sparsyfed-edge\[{backend}\]"):
        Session.open(tmp_path, state_at(compiled("mlp"), 0.5), backend=backend)


def test_onnx_runtime_does_not_pass_for_its_training_package(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"there is onnxruntime 1.* one environment can't hold"):
        Session.open(tmp_path, state_at(compiled("mlp"), 0.5), backend="onnxruntime-training")
