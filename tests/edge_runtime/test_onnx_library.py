"""The library of operators for ONNX Runtime as apps link and load it: its symbols."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "edge_runtime"
COMPILER, SYMBOL_LISTER = (shutil.which(name) or "" for name in ("cc", "nm"))


@pytest.mark.skipif(not (COMPILER and SYMBOL_LISTER), reason="a compiler and nm list the symbols")
def test_an_app_that_compiles_the_sources_gets_names_of_our_own(tmp_path: Path) -> None:
    sources = [str(path) for path in (ROOT / "onnxruntime").glob("*.c")]
    command = [COMPILER, "-std=c99", "-c", "-I", str(ROOT / "csrc"), *sources]
    subprocess.run(command, check=True, cwd=tmp_path)
    listed = subprocess.run(
        [SYMBOL_LISTER, "-g", "--defined-only", *(str(path) for path in tmp_path.glob("*.o"))],
        check=True,
        capture_output=True,
        text=True,
    )
    entries = [line.split() for line in listed.stdout.splitlines()]
    names = {entry[2] for entry in entries if len(entry) == 3}
    assert "RegisterCustomOps" in names
    assert all(name.startswith("sfd_ort_") for name in names - {"RegisterCustomOps"})
