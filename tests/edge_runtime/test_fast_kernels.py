"""The fast kernel sets against the portable one and the C library, every set forced in turn."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
CORE = ROOT / "edge_runtime" / "csrc"
CASES = 600

# The flags of each set, as CMakeLists.txt has them.
X86_SETS = {
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "sse2": [],
}
NOT_THIS_PROCESSOR = 3


LAYERS, FUNCTIONS = "compare_kernels", "compare_functions"


def build(compiler: list[str], sets: dict[str, list[str]], folder: Path) -> Path:
    """Compile the comparisons with the core and these sets into programs in the folder; returns it."""
    common = [*compiler, "-std=c99", "-D_XOPEN_SOURCE=700", "-I", str(CORE)]

    def run(*arguments: str) -> None:
        subprocess.run([*common, *arguments], check=True, timeout=900, cwd=folder)

    for name, flags in sets.items():
        run(*flags, "-ffp-contract=fast", "-c", str(CORE / "fast" / f"sfd_{name}.c"))
    defines = [f"-DSFD_WITH_{name.upper()}" for name in sets]
    sources = [*sorted(CORE.glob("*.c")), *sorted((CORE / "fast").glob("fast_*.c"))]
    run("-ffp-contract=off", *defines, "-c", *map(str, sources))
    objects = sorted(map(str, folder.glob("*.o")))
    for program in (LAYERS, FUNCTIONS):
        source = str(ROOT / "tests" / "c" / f"{program}.c")
        run("-ffp-contract=off", *defines, "-o", program, source, *objects, "-lm")
    return folder


def compare(command: list[str], name: str) -> None:
    """Run a comparison of one set; skips where this processor does not have it."""
    finished = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if finished.returncode == NOT_THIS_PROCESSOR:
        pytest.skip(f"this processor has no {name}")
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs with all sets of x86-64, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    if platform.machine() != "x86_64":
        pytest.skip(f"this is {platform.machine()}")
    sanitizers = ["-g1", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return build(["cc", *sanitizers], X86_SETS, tmp_path_factory.mktemp("sanitized"))


@pytest.fixture(scope="module")
def cross_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs with NEON, for qemu-user."""
    missing = [
        tool for tool in ("aarch64-linux-gnu-gcc", "qemu-aarch64") if shutil.which(tool) is None
    ]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    compiler = ["aarch64-linux-gnu-gcc", "-O2", "-static"]
    return build(compiler, {"neon": []}, tmp_path_factory.mktemp("cross"))


@pytest.mark.parametrize("name", X86_SETS)
def test_a_set_agrees_with_the_portable_kernels(name: str, sanitized: Path) -> None:
    compare([str(sanitized / LAYERS), name, str(CASES), "1"], name)


def test_neon_agrees_with_the_portable_kernels(cross_built: Path) -> None:
    compare(["qemu-aarch64", str(cross_built / LAYERS), "neon", str(CASES), "1"], "neon")


@pytest.mark.parametrize("name", ["portable", *X86_SETS])
def test_functions_are_within_their_bounds(name: str, sanitized: Path) -> None:
    compare([str(sanitized / FUNCTIONS), name], name)


def test_functions_of_neon_are_within_their_bounds(cross_built: Path) -> None:
    compare(["qemu-aarch64", str(cross_built / FUNCTIONS), "neon"], "neon")
