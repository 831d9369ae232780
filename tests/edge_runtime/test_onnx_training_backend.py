"""Sessions on onnxruntime-training do what native ones do, in the environment that the engine has for itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_cases import batch, compiled, state_at

from sparsyfed import export
from sparsyfed.edge_runtime import _native

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def exported(training_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exports, states and batches, and with two exports that are refused."""
    assert training_python.exists()
    folder = tmp_path_factory.mktemp("exports")
    for name in ("odd_net", "resnet8", "signal_net", "mlp"):
        artifact, state = compiled(name), state_at(compiled(name), 0.1)
        export.to_onnx(artifact, folder / name, state, training=True, verify=False)
        state.save(folder / f"{name}.sfs")
        arrays: dict[str, Any] = {}
        for turn, examples in enumerate((3, 4, 5, 6, 14)):
            x, y = batch(artifact, examples, seed=turn)
            arrays |= {f"x{turn}": x.numpy(), f"y{turn}": y.numpy()}
        np.savez(folder / f"{name}.npz", **arrays)
    export.to_onnx(compiled("mlp"), folder / "plain", verify=False)
    shutil.copytree(folder / "mlp", folder / "changed")
    with (folder / "changed" / "checkpoint").open("ab") as file:
        file.write(b"\0")
    return folder


@pytest.mark.parametrize(
    "part",
    [
        "training_agrees_with_the_native_core",
        "an_update_is_that_of_the_native_core_to_the_bit",
        "a_layer_without_a_nonzero_trains_and_stays_empty",
        "a_step_that_diverges_leaves_the_model",
        "what_is_wrong_is_refused",
    ],
)
def test_the_contract_of_a_session(part: str, exported: Path, training_python: Path) -> None:
    # The checkout's sources and library serve the other environment as well.
    places = {"PYTHONPATH": str(ROOT / "src"), "SPARSYFED_LIBRARY": _native.library()._name}
    answer = subprocess.run(
        [training_python, Path(__file__).with_name("training_contract.py"), exported, part],
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
