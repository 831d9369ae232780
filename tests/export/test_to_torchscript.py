"""The TorchScript file trains as the eager reference does, without our code."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import (
    BUILDERS,
    DENSITIES,
    EagerTrainer,
    batch,
    compiled,
    follow_eager,
    state_at,
)
from torch import Tensor

from sparsyfed import export
from sparsyfed.edge_runtime.errors import VerificationError
from sparsyfed.edge_runtime.kept_inputs import kept_inputs
from sparsyfed.export.powerprop import keep_largest
from sparsyfed.export.states import dense_tensors

# By its full name, since `export.to_torchscript` is the function.
target = importlib.import_module("sparsyfed.export.to_torchscript")

STRANGER = """
import sys, torch
module = torch.jit.load(sys.argv[1])
x, y, keep = torch.load(sys.argv[2])
for _ in range(3):
    print(float(module.train_step(x, y, keep, 0.1, 1e-3)))
assert not [name for name in sys.modules if name.startswith("sparsyfed")]
"""


class ScriptTrainer:
    def __init__(self, path: Path) -> None:
        self.module = target._loaded(path.read_bytes())

    def step(self, x: Tensor, y: Tensor, keep: Tensor, rate: float, decay: float) -> float:
        return float(self.module.train_step(x, y, keep, rate, decay))

    def values(self) -> Mapping[str, Tensor]:
        values: dict[str, Tensor] = self.module.state
        return values


@pytest.mark.parametrize("name", BUILDERS)
def test_twenty_steps_follow_the_eager_reference(name: str, tmp_path: Path) -> None:
    artifact = compiled(name)
    export.to_torchscript(artifact, tmp_path / "m.pt", verify=False)
    trainer = ScriptTrainer(tmp_path / "m.pt")
    for density in DENSITIES:
        state = state_at(artifact, density)
        for key, value in dense_tensors(artifact.model, state).items():
            trainer.values()[key].copy_(value)
        follow_eager(name, density, trainer)


@pytest.mark.parametrize("name", ["odd_net", "kws_dscnn"])
def test_the_written_file_passes_the_gate(name: str, tmp_path: Path) -> None:
    record = export.to_torchscript(compiled(name), tmp_path / "m.pt")
    assert record["verified"]["median_gradient_error"] <= 1e-5
    assert record["verified"]["worst_gradient_error"] <= 1e-5


def test_a_process_without_our_code_trains(tmp_path: Path) -> None:
    artifact, state = compiled("kws_dscnn"), state_at(compiled("kws_dscnn"), 0.1)
    export.to_torchscript(artifact, tmp_path / "m.pt", state, verify=False)
    x, y = batch(artifact, 6, seed=3)
    keep = torch.tensor(kept_inputs(artifact.native, state, 6))
    torch.save((x, y, keep), tmp_path / "batch")
    command = [sys.executable, "-W", "ignore", "-c", STRANGER]
    answer = subprocess.run(
        [*command, str(tmp_path / "m.pt"), str(tmp_path / "batch")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert answer.returncode == 0, answer.stderr
    oracle = EagerTrainer(artifact, state)
    wanted = [oracle.step(x, y, keep, 0.1, 1e-3) for _ in range(3)]
    assert [float(line) for line in answer.stdout.split()] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("values", ["distinct", "equal", "few", "rectified"])
def test_pruning_in_the_file_is_that_of_the_reference(values: str, tmp_path: Path) -> None:
    export.to_torchscript(compiled("mlp"), tmp_path / "m.pt", verify=False)
    module = target._loaded((tmp_path / "m.pt").read_bytes())
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    x = {
        "distinct": x,
        "equal": torch.ones_like(x),
        "few": x.round(),
        "rectified": x.relu(),
    }[values]
    for count in (0, 1, 2, 7, 29, 30, 59, 60, 61):
        got = module.prune(x, torch.tensor([0, count]), 1)
        assert torch.equal(got, keep_largest(x, count)), count


def test_a_step_that_diverges_changes_nothing(tmp_path: Path) -> None:
    artifact = compiled("signal_net")
    export.to_torchscript(artifact, tmp_path / "m.pt", verify=False)
    trainer = ScriptTrainer(tmp_path / "m.pt")
    before = {name: value.clone() for name, value in trainer.values().items()}
    x, y = batch(artifact, 4, seed=0)
    keep = torch.tensor([1000, 1000, 1000])
    assert torch.isnan(torch.tensor(trainer.step(x * 1e30, y, keep, 0.1, 0.0)))
    assert torch.isnan(torch.tensor(trainer.step(x, y, keep, 3e38, 0.0)))
    for name, value in trainer.values().items():
        assert torch.equal(value, before[name]), name


def test_a_fault_of_the_exporter_stops_the_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    faulty = tuple(source.replace("if count >= x.numel()", "if True") for source in target.METHODS)
    monkeypatch.setattr(target, "METHODS", faulty)
    with pytest.raises(VerificationError, match=r"torchscript.* gradient\.\d\.weight has"):
        export.to_torchscript(compiled("mlp"), tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())


def test_the_same_model_gives_the_same_file(tmp_path: Path) -> None:
    artifact = compiled("signal_net")
    for name in ("one.pt", "other.pt"):
        export.to_torchscript(artifact, tmp_path / name)
        export.to_torchscript(compiled("mlp"), tmp_path / "between.pt", verify=False)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()
    module = target._loaded((tmp_path / "one.pt").read_bytes())
    assert module.training
    assert not module.eval().training


def test_the_file_describes_itself(tmp_path: Path) -> None:
    artifact = compiled("watch_cnn")
    record = export.to_torchscript(artifact, tmp_path / "m.pt", verify=False)
    extra = {"manifest.json": "", "model.sfd": ""}
    with pytest.warns(DeprecationWarning, match="torch.jit.load"):
        torch.jit.load(tmp_path / "m.pt", _extra_files=extra)  # type: ignore[no-untyped-call]
    described = json.loads(extra["manifest.json"])
    assert described == record
    assert described["artifact"] == hashlib.sha256(artifact.encode()).hexdigest()
    assert described["layers"][1] == {
        "name": "3.weight",
        "positions": 10240,
        "input_elements": 1024,
    }
    assert described["operators"]["sparsyfed.prune.default"] == 5
    arguments = ["x", "y", "keep", "learning_rate", "weight_decay"]
    assert [port["name"] for port in described["graphs"]["train_step"]["inputs"]] == arguments
    module = target._loaded((tmp_path / "m.pt").read_bytes())
    x, y = batch(artifact, 3, seed=0)
    keep = torch.ones(5, dtype=torch.int64)
    results = {"gradients": module.gradients(x, y, keep), "evaluate": module.evaluate(x, y)}
    for method, got in results.items():
        ports = described["graphs"][method]["outputs"]
        assert [port["name"] for port in ports] == list(got)
    assert described["verified"] is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_lite_interpreter_of_phones_trains_the_same(tmp_path: Path) -> None:
    from torch.jit.mobile import _load_for_lite_interpreter

    artifact = compiled("odd_net")
    state = state_at(artifact, 0.3)
    export.to_torchscript(artifact, tmp_path / "model.pt", state, verify=False)
    whole: Any = torch.jit.load(tmp_path / "model.pt")  # type: ignore[no-untyped-call]
    whole._save_for_lite_interpreter(str(tmp_path / "model.ptl"))
    lite: Any = _load_for_lite_interpreter(str(tmp_path / "model.ptl"))  # type: ignore[no-untyped-call]
    x, y = batch(artifact, 5, seed=0)
    keep = torch.tensor(kept_inputs(artifact.native, state, 5))
    for _ in range(3):
        wanted = whole.train_step(x, y, keep, 0.05, 1e-3)
        assert torch.equal(lite.run_method("train_step", x, y, keep, 0.05, 1e-3), wanted)
