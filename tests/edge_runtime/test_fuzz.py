"""The C core under sanitizers: random models of odd geometry, and mutations of their files."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_strategies import random_state
from odd_models import every_operation, odd_model, short_signal

from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.quantization import Quantization
from sparsyfed.edge_runtime.update import SparseUpdate

ROOT = Path(__file__).parents[2]
CORE = ROOT / "edge_runtime" / "csrc"
HARNESS = [ROOT / "tests" / "c" / name for name in ("fuzz_mutations.c", "mutate.c")]
SANITIZED = (
    "-std=c99 -O1 -g1 -ffp-contract=off -fno-omit-frame-pointer "
    "-fsanitize=address,undefined -fno-sanitize-recover=all"
)
MUTATIONS = 3400
"""Of each of the three files of a model."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fuzz harness with the sources of the core, under sanitizers."""
    program = tmp_path_factory.mktemp("fuzz") / "fuzz_mutations"
    sources = [*HARNESS, *sorted(CORE.glob("*.c"))]
    command = ["cc", *SANITIZED.split(), f"-I{CORE}", *map(str, sources), "-lm"]
    command += ["-o", str(program)]
    subprocess.run(command, check=True, timeout=300)
    return program


def run_harness(
    program: Path, folder: Path, artifact: Artifact, *, density: float, seed: int, count: int
) -> dict[str, str]:
    """The harness's line for each file, once it ran without a complaint."""
    state = random_state(artifact, np.random.default_rng(seed), density)
    contents = {
        "model.sfd": artifact.encode(),
        "state.sfs": state.encode(),
        "update.sfs": SparseUpdate(state.tensors, state.round, state.support_id).encode(),
    }
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    command = [str(program), *(str(folder / file) for file in contents), str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = {line.split(":")[0]: line for line in done.stdout.splitlines()}
    assert set(lines) == {"artifact", "state", "update"}
    return lines


def number(line: str, word: str) -> int:
    found = re.search(rf"(\d+) {word}", line)
    assert found is not None
    return int(found[1])


def int8_signal() -> Artifact:
    """A model with int8 inputs."""
    return replace(short_signal(), quantization=Quantization(0.03, -5))


@pytest.mark.parametrize("build", [every_operation, short_signal, int8_signal])
def test_mutated_files_neither_crash_nor_break_a_promise(
    harness: Path, tmp_path: Path, build: Callable[[], Artifact]
) -> None:
    lines = run_harness(harness, tmp_path, build(), density=0.6, seed=20250, count=MUTATIONS)
    for line in lines.values():
        assert number(line, "accepted") + number(line, "refused") == MUTATIONS
        assert number(line, "accepted") > 50
    for file in ("artifact", "state"):
        assert number(lines[file], "trained") > 50
    codes = {file: set(map(int, re.findall(r"(-\d+)=", line))) for file, line in lines.items()}
    length, magic, version, crc, structure, limit, index, value, support, codec = (
        *(-2, -3, -4, -5, -6, -7, -10, -11, -16, -17),
    )
    assert codes["artifact"] >= {length, magic, version, crc, structure}
    assert codes["state"] >= {length, magic, version, crc, structure, index, value, codec}
    assert codes["update"] >= {length, magic, version, crc, structure, index, support}
    assert limit in codes["artifact"] | codes["state"] | codes["update"]


@pytest.mark.parametrize("seed", range(40))
def test_odd_models_train_in_bounds(harness: Path, tmp_path: Path, seed: int) -> None:
    density = (1.0, 0.5, 0.1, 0.0)[seed % 4]
    run_harness(harness, tmp_path, odd_model(seed), density=density, seed=seed, count=20)


def test_the_same_seed_makes_the_same_mutations(harness: Path, tmp_path: Path) -> None:
    first, second, other = (
        run_harness(harness, tmp_path, short_signal(), density=0.6, seed=seed, count=300)
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other
