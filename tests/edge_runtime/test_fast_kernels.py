"""The fast kernel sets against the portable one, layer by layer, with every set forced in turn."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "edge_runtime" / "csrc"
CASES = 400

# The flags of each set, as CMakeLists.txt has them.
X86_SETS = {
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "sse2": [],
}
NOT_THIS_PROCESSOR = 3


def build(compiler: list[str], sets: dict[str, list[str]], folder: Path) -> Path:
    """Compile the comparison with the core and these sets; returns the program."""
    common = [*compiler, "-std=c99", "-D_POSIX_C_SOURCE=200809L", "-I", str(CORE)]
    defines = [f"-DSFD_WITH_{name.upper()}" for name in sets]
    objects = [str(folder / f"{name}.o") for name in sets]
    for (name, flags), target in zip(sets.items(), objects, strict=True):
        source = str(CORE / "fast" / f"sfd_{name}.c")
        subprocess.run(
            [*common, *flags, "-ffp-contract=fast", "-c", "-o", target, source],
            check=True,
            timeout=600,
        )
    sources = [*sorted(CORE.glob("*.c")), CORE / "fast" / "fast_program.c"]
    program = folder / "compare_kernels"
    subprocess.run(
        [
            *(*common, "-ffp-contract=off", *defines, "-o", str(program)),
            *(str(ROOT / "tests" / "c" / "compare_kernels.c"), *map(str, sources)),
            *(*objects, "-lm"),
        ],
        check=True,
        timeout=600,
    )
    return program


def compare(command: list[str], name: str) -> None:
    """Run the comparison of one set; skips where this processor does not have it."""
    finished = subprocess.run(
        [*command, name, str(CASES), "1"],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if finished.returncode == NOT_THIS_PROCESSOR:
        pytest.skip(f"this processor has no {name}")
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]


@pytest.fixture(scope="module")
def sanitized_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sets of x86-64, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    sanitizers = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return build(["cc", *sanitizers], X86_SETS, tmp_path_factory.mktemp("sanitized"))


@pytest.mark.parametrize("name", X86_SETS)
def test_a_set_agrees_with_the_portable_kernels(name: str, request: pytest.FixtureRequest) -> None:
    if platform.machine() != "x86_64":
        pytest.skip(f"this is {platform.machine()}")
    compare([str(request.getfixturevalue("sanitized_program"))], name)


def test_neon_agrees_with_the_portable_kernels(tmp_path: Path) -> None:
    missing = [
        tool for tool in ("aarch64-linux-gnu-gcc", "qemu-aarch64") if shutil.which(tool) is None
    ]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    program = build(["aarch64-linux-gnu-gcc", "-O2", "-static"], {"neon": []}, tmp_path)
    compare(["qemu-aarch64", str(program)], "neon")
