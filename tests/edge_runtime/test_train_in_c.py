"""The example in C trains as a session in Python does; built with CMake for aarch64, as an app builds it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from model_strategies import random_model

from sparsyfed.edge_runtime import Session, SparseUpdate
from sparsyfed.edge_runtime.format import Loss

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "train_in_c"
EXAMPLES, EPOCHS, BATCH = 40, 3, 16

TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64")
CROSS = {
    "CMAKE_SYSTEM_NAME": "Linux",
    "CMAKE_SYSTEM_PROCESSOR": "aarch64",
    "CMAKE_C_COMPILER": TOOLS[0],
}
RUNNER = [TOOLS[1], "-L", "/usr/aarch64-linux-gnu"]


def build(folder: Path) -> Path:
    cmake = Path(sys.executable).with_name("cmake")
    options = [f"-D{name}={value}" for name, value in CROSS.items()]
    commands = (["-S", str(EXAMPLE), "-B", str(folder), *options], ["--build", str(folder)])
    for command in commands:
        done = subprocess.run([cmake, *command], check=False, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
    return folder / "train"


def run(program: Path, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUNNER, str(program), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {' and '.join(TOOLS)}")
def test_the_example_trains_as_a_session_does(tmp_path: Path) -> None:
    program = build(tmp_path / "build")
    model = random_model("residual", seed=3, density=0.3)
    assert model.artifact.loss is Loss.CROSS_ENTROPY
    model.artifact.save(tmp_path / "model.sfd")
    model.state.save(tmp_path / "initial.sfs")
    generator = np.random.default_rng(0)
    shape, outputs = model.artifact.tensors[0].shape, model.artifact.tensors[model.artifact.output]
    x = generator.standard_normal((EXAMPLES, *shape), dtype=np.float32)
    y = generator.integers(0, outputs.size, EXAMPLES, dtype=np.int32)
    x.tofile(tmp_path / "x.bin")
    y.tofile(tmp_path / "y.bin")
    keep = model.state.nonzeros // 2
    numbers = map(str, (EXAMPLES, EPOCHS, BATCH, keep))
    files = ["model.sfd", "initial.sfs", "x.bin", "y.bin", *numbers, "update.sfs"]
    ended = run(program, files, tmp_path)
    assert ended.returncode == 0, ended.stderr
    losses = [float(line.split()[-1]) for line in ended.stdout.splitlines() if "loss" in line]
    wanted = []
    with Session.open(model.artifact, model.state, BATCH) as session:
        for _ in range(EPOCHS):
            total = 0.0
            for start in range(0, EXAMPLES, BATCH):
                part = slice(start, start + BATCH)
                rates = {"learning_rate": 0.05, "weight_decay": 1e-3}
                total += session.step(x[part], y[part], **rates) * len(y[part])
            wanted.append(total / EXAMPLES)
        update = session.update(1 - keep / model.state.positions, round=1)
    assert losses == pytest.approx(wanted, rel=1e-4)
    written = SparseUpdate.decode((tmp_path / "update.sfs").read_bytes(), base=model.state)
    assert written.nonzeros == update.nonzeros == keep
    for name, matrix in written.csr().items():
        assert abs(matrix - update.csr()[name]).max() <= 1e-4
    x[..., :-1].tofile(tmp_path / "x.bin")  # examples of another model
    ended = run(program, files, tmp_path)
    assert ended.returncode == 1
    assert f"do not hold {EXAMPLES} examples of {x[0].size} values" in ended.stderr
