"""The library of operators for ONNX Runtime as apps link and load it: its symbols, and what it keeps."""

import _ctypes
import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from sparsyfed.edge_runtime import onnxruntime_library

ROOT = Path(__file__).parents[2] / "edge_runtime"
PLACES = {"create_status": 0, "create": 26, "add_operator": 27, "add": 28, "release": 101}
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


class Runtime:
    """Stands for ONNX Runtime: a table of functions that note their calls, at their places in OrtApi."""

    def __init__(self, *, operators: int = 1000) -> None:
        self.calls: list[str] = []
        self._operators = operators
        word, code = ctypes.c_void_p, ctypes.c_int
        create = ctypes.CFUNCTYPE(word, ctypes.c_char_p, ctypes.POINTER(word))
        add = ctypes.CFUNCTYPE(word, word, word)
        self._functions = {
            "create_status": ctypes.CFUNCTYPE(word, code, ctypes.c_char_p)(self._status),
            "create": create(self._create),
            "add_operator": add(self._add_operator),
            "add": add(lambda *_: self.calls.append("add")),
            "release": ctypes.CFUNCTYPE(None, word)(lambda _: self.calls.append("release")),
        }
        self._table = (word * 300)()
        for name, place in PLACES.items():
            self._table[place] = ctypes.cast(self._functions[name], word)
        self._api = ctypes.CFUNCTYPE(word, ctypes.c_uint32)(lambda _: ctypes.addressof(self._table))
        self.base = (word * 2)(ctypes.cast(self._api, word), None)

    def _status(self, _: int, message: bytes) -> int:
        self.calls.append(message.decode())
        return 1

    def _create(self, _: bytes, out: "ctypes._Pointer[ctypes.c_void_p]") -> None:
        out[0] = ctypes.c_void_p(0xD0)
        self.calls.append("create")

    def _add_operator(self, *_: object) -> int | None:
        self._operators -= 1
        return 2 if self._operators < 0 else None


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The library under a path of its own, so that it is not the one that sessions have loaded."""
    return Path(shutil.copy(onnxruntime_library.path(), tmp_path))


def test_sessions_share_one_domain_which_goes_with_the_library(copy: Path) -> None:
    runtime, other = Runtime(), Runtime()
    library = ctypes.CDLL(str(copy))
    for _ in range(3):
        assert library.RegisterCustomOps(None, runtime.base) == 0
    assert runtime.calls == ["create", "add", "add", "add"]
    assert library.RegisterCustomOps(None, other.base) == 1
    assert other.calls == ["another ONNX Runtime of this process has the operators of sparsyfed"]
    _ctypes.dlclose(library._handle)
    assert runtime.calls[4:] == ["release"]


def test_a_domain_that_lacks_an_operator_is_given_back(copy: Path) -> None:
    runtime = Runtime(operators=5)
    library = ctypes.CDLL(str(copy))
    assert library.RegisterCustomOps(None, runtime.base) == 2
    assert library.RegisterCustomOps(None, runtime.base) == 2
    _ctypes.dlclose(library._handle)
    assert runtime.calls == ["create", "release"] * 2
