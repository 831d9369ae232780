"""The core with its portable kernels gives the same bits on every machine, compiler and level of optimisation."""

import shutil
import subprocess
from pathlib import Path

import pytest
from model_strategies import ARCHITECTURES, random_model

from sparsyfed.edge_runtime._native import Target
from sparsyfed.edge_runtime.format import Loss

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "edge_runtime" / "csrc").glob("*.c"))
FLAGS = [
    "-std=c99",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-I",
    str(ROOT / "edge_runtime" / "csrc"),
]

# Name, compiler and its own flags, and what runs the program.
TARGETS = {
    "plain": (["cc", "-O0"], []),
    "native vectors": (["cc", "-O3", "-march=native"], []),
    "clang": (["clang", "-O2"], []),
    "aarch64": (["aarch64-linux-gnu-gcc", "-O3", "-static"], ["qemu-aarch64"]),
    "armhf": (["arm-linux-gnueabihf-gcc", "-O2", "-static"], ["qemu-arm"]),
}


def build(compiler: list[str], program: Path) -> Path:
    """Compile the training program and return it."""
    source = ROOT / "tests" / "c" / "train_steps.c"
    subprocess.run(
        [*compiler, *FLAGS, "-o", str(program), str(source), *map(str, SOURCES), "-lm"],
        check=True,
        timeout=300,
    )
    return program


@pytest.fixture(scope="module")
def host_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program as the wheel's library is built."""
    return build(["cc", "-O3"], tmp_path_factory.mktemp("host") / "train_steps")


@pytest.mark.parametrize("target", TARGETS)
def test_twenty_steps_give_the_same_update(target: str, host_program: Path, tmp_path: Path) -> None:
    compiler, runner = TARGETS[target]
    missing = [tool for tool in (compiler[0], *runner) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    program = build(compiler, tmp_path / "train_steps")
    for number, architecture in enumerate(ARCHITECTURES):
        model = random_model(architecture, seed=number, density=0.2)
        model.artifact.save(tmp_path / "model.sfd")
        model.state.save(tmp_path / "model.sfs")
        size = model.artifact.tensors[0].size
        outputs = model.artifact.tensors[model.artifact.output].size
        wanted = Target.INT32 if model.artifact.loss is Loss.CROSS_ENTROPY else Target.FLOAT32
        numbers = (size, outputs, 5, 20, model.state.nonzeros // 2, int(wanted), 1)
        arguments = ["model.sfd", "model.sfs", *map(str, numbers)]
        results = [
            subprocess.run(
                [*prefix, *arguments],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=True,
                timeout=300,
            ).stdout
            for prefix in ([str(host_program)], [*runner, str(program)])
        ]
        assert results[0] == results[1], architecture
