"""The wheel holds the package and nothing else, and trains alone in an empty environment."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from model_strategies import random_model

from sparsyfed.edge_runtime import Session

ROOT = Path(__file__).parent.parent
# What operators for other engines are compiled against, on the device.
PUBLIC_HEADERS = ("sfd.h", "sfd_format.h", "sfd_operators.h")

# Run in the empty environment: one step on the files beside it, then what came of it as JSON.
TRAIN = """
import importlib.util, json, sys
from array import array
from pathlib import Path
from sparsyfed.edge_runtime import Session, SparseUpdate, State, plan

for name in ("torch", "numpy", "scipy", "paho"):
    assert importlib.util.find_spec(name) is None, name
folder = Path(sys.argv[1])
x = array("f", (folder / "x").read_bytes())
y = array("i", (folder / "y").read_bytes())
state = State.load(folder / "m.sfs")
planned = plan(folder / "m.sfd", state, batch_size=4)
with Session.open(folder / "m.sfd", state, batch_size=4) as session:
    losses = [session.step(x, y, learning_rate=0.1, weight_decay=1e-3) for _ in range(2)]
    update = session.update(sparsity=0.5).encode()
    assert session.memory.arena_peak_bytes == planned.arena_bytes
assert SparseUpdate.decode(update, base=state).encode() == update
import sparsyfed
print(json.dumps({"losses": losses, "update": update.hex(), "place": sparsyfed.__file__}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    # The build folder of the checkout belongs to the editable installation.
    build = ["--config-settings", f"build-dir={folder / 'build'}", "--wheel-dir", str(folder)]
    answer = subprocess.run(
        [*command, *options, *build, str(ROOT)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_one_wheel_serves_every_python_of_a_platform(wheel: Path) -> None:
    name, _version, python, abi, platform = wheel.stem.split("-")
    assert name == "sparsyfed_edge"
    assert (python, abi) == ("py3", "none")
    assert platform != "any"


def test_the_wheel_holds_the_package_and_its_library_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sparsyfed"}
    assert "sparsyfed/edge_runtime/libsfd.so" in names
    assert "sparsyfed/edge_runtime/libsparsyfed_onnxruntime.so" in names
    assert "sparsyfed/py.typed" in names
    assert not [name for name in names if "csrc" in name or "__pycache__" in name]
    assert not [name for name in names if name.endswith((".c", ".sh"))]
    headers = {f"sparsyfed/edge_runtime/include/{name}" for name in PUBLIC_HEADERS}
    compiled_on_demand = "sparsyfed/edge_runtime/executorch/arguments.h"
    assert {name for name in names if name.endswith(".h")} == headers | {compiled_on_demand}
    assert "sparsyfed/edge_runtime/executorch/operators.cpp" in names


def test_every_module_and_data_file_of_the_folders_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("edge_runtime", "coordinator", "export", "devices", "tools"):
        sources = [
            path.relative_to(ROOT)
            for suffix in ("py", "toml", "html")
            for path in (ROOT / folder).rglob(f"*.{suffix}")
            if path.parent != ROOT / "devices" / "boards"  # the firmware's
        ]
        assert sources
        assert not [path for path in sources if f"sparsyfed/{path}" not in names]


def environment_python(folder: Path) -> Path:
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def test_the_wheel_alone_trains_without_torch_and_numpy(wheel: Path, tmp_path: Path) -> None:
    python = environment_python(tmp_path / "empty")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-index", str(wheel)], check=True)

    model = random_model("residual", 1, 0.5)
    x, y = model.batch(np.random.default_rng(1), 4)
    model.artifact.save(tmp_path / "m.sfd")
    model.state.save(tmp_path / "m.sfs")
    (tmp_path / "x").write_bytes(x.tobytes())
    (tmp_path / "y").write_bytes(y.tobytes())

    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "SPARSYFED"))
    }
    answer = subprocess.run(
        [python, "-W", "error", "-c", TRAIN, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)

    assert Path(result["place"]).is_relative_to(tmp_path / "empty")
    with Session.open(model.artifact, model.state, batch_size=4) as session:
        losses = [session.step(x, y, learning_rate=0.1, weight_decay=1e-3) for _ in range(2)]
        update = session.update(sparsity=0.5).encode()
    assert losses[1] < losses[0]
    assert result["losses"] == losses
    assert bytes.fromhex(result["update"]) == update
