"""The arrows of CONTRIBUTING.md hold, in what is written and in what is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("edge_runtime", "coordinator", "export", "devices", "tools")

LIST_LOADED = """
import importlib, sys
name, *candidates = sys.argv[1:]
importlib.import_module(name)
print(*(module for module in candidates if module in sys.modules))
"""


def loaded_by(name: str, *candidates: str) -> list[str]:
    """Those of the candidates that a new interpreter has loaded after importing a module."""
    answer = subprocess.run(
        [sys.executable, "-c", LIST_LOADED, name, *candidates],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.split()


def test_the_check_sees_what_an_import_loads() -> None:
    assert loaded_by("sparsyfed.edge_runtime.reference", "torch", "numpy") == ["numpy"]


@pytest.mark.parametrize(
    "module", ["edge_runtime", "edge_runtime.session", "edge_runtime.messages"]
)
def test_the_runtime_loads_neither_torch_nor_numpy(module: str) -> None:
    assert loaded_by(f"sparsyfed.{module}", "torch", "numpy", "scipy", "paho") == []


@pytest.mark.parametrize("module", ["devices", "devices.profiles", "coordinator", "tools.cli"])
def test_devices_coordinator_and_command_line_load_no_torch(module: str) -> None:
    assert loaded_by(f"sparsyfed.{module}", "torch", "onnx") == []


def test_the_written_imports_keep_the_arrows() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_linked_into_the_package(folder: str) -> None:
    link = ROOT / "src" / "sparsyfed" / folder
    assert link.is_symlink(), f"{link} is no symbolic link: see CONTRIBUTING.md, The links"
    assert link.resolve() == ROOT / folder
