"""The wheel holds the package and nothing else, and trains alone in an empty environment."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from array import array
from pathlib import Path

import pytest

from sparsyfed.edge_runtime import Artifact, DenseTensor, Session, SparseTensor, State
from sparsyfed.edge_runtime.artifact import Operation, Parameter, Tensor
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind

ROOT = Path(__file__).parent.parent

# Run in the empty environment: one step on the files beside it, then what came of it as JSON.
TRAIN = """
import importlib.util, json, sys
from array import array
from pathlib import Path
from sparsyfed.edge_runtime import Session, State

for name in ("torch", "numpy", "scipy", "paho"):
    assert importlib.util.find_spec(name) is None, name
folder = Path(sys.argv[1])
x = array("f", (folder / "x").read_bytes())
y = array("i", (folder / "y").read_bytes())
with Session.open(folder / "m.sfd", State.load(folder / "m.sfs"), batch_size=4) as session:
    losses = [session.step(x, y, learning_rate=0.1, weight_decay=1e-3) for _ in range(2)]
    update = session.update(sparsity=0.5).encode().hex()
import sparsyfed
print(json.dumps({"losses": losses, "update": update, "place": sparsyfed.__file__}))
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
    assert "sparsyfed/py.typed" in names
    assert not [name for name in names if "csrc" in name or "__pycache__" in name]
    assert not [name for name in names if name.endswith((".c", ".h", ".sh"))]


def test_every_module_and_data_file_of_the_folders_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("edge_runtime", "coordinator", "export", "devices", "tools"):
        sources = [
            path.relative_to(ROOT)
            for suffix in ("py", "toml", "html")
            for path in (ROOT / folder).rglob(f"*.{suffix}")
        ]
        assert sources
        assert not [path for path in sources if f"sparsyfed/{path}" not in names]


def small_model() -> tuple[Artifact, State]:
    """A perceptron 6 -> 5 -> 3 with half of its weights stored."""
    weights = {"first": (5, 6), "last": (3, 5)}
    parameters: list[Parameter] = []
    tensors: list[SparseTensor | DenseTensor] = []
    for name, (rows, columns) in weights.items():
        parameters.append(
            Parameter(ParameterKind.WEIGHT, 2, (rows, columns, 1, 1), f"{name}.weight")
        )
        parameters.append(Parameter(ParameterKind.DENSE, 1, (rows, 1, 1, 1), f"{name}.bias"))
        values = array("f", [(i % 7 - 3) / 4 * (i % 2) for i in range(rows * columns)])
        tensors.append(
            SparseTensor.from_dense(f"{name}.weight", rows, columns, values, keep_zeros=False)
        )
        tensors.append(DenseTensor(f"{name}.bias", ParameterKind.DENSE, array("f", [0.1] * rows)))
    operations = (
        Operation(OperationKind.LINEAR, (0,), 1, "first", weight=0, bias=1),
        Operation(OperationKind.RELU, (1,), 2, "relu"),
        Operation(OperationKind.LINEAR, (2,), 3, "last", weight=2, bias=3),
    )
    sizes = (6, 5, 5, 3)
    artifact = Artifact(
        tuple(parameters),
        tuple(Tensor(size, 1, 1, 1) for size in sizes),
        operations,
        Loss.CROSS_ENTROPY,
        3,
        1.25,
    )
    return artifact, State(tuple(tensors))


def environment_python(folder: Path) -> Path:
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def test_the_wheel_alone_trains_without_torch_and_numpy(wheel: Path, tmp_path: Path) -> None:
    python = environment_python(tmp_path / "empty")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-index", str(wheel)], check=True)

    artifact, state = small_model()
    artifact.save(tmp_path / "m.sfd")
    state.save(tmp_path / "m.sfs")
    x = array("f", [(i * 5 % 11 - 5) / 3 for i in range(4 * 6)])
    y = array("i", [0, 1, 2, 1])
    (tmp_path / "x").write_bytes(x)
    (tmp_path / "y").write_bytes(y)

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
    with Session.open(artifact, state, batch_size=4) as session:
        losses = [session.step(x, y, learning_rate=0.1, weight_decay=1e-3) for _ in range(2)]
        update = session.update(sparsity=0.5).encode()
    assert losses[1] < losses[0]
    assert result["losses"] == losses
    assert bytes.fromhex(result["update"]) == update
