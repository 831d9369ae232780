"""The core's operators for the ExecuTorch of this environment: compiled once, against its headers, and kept.

The library lies in the user's cache folder, under a name that follows from all that it is made of.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from executorch.extension.pybindings import _portable_lib

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.errors import BackendError

_SOURCE = Path(__file__).parent.parent / "executorch" / "operators.cpp"
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 300
# The runtime's own configuration; its logging functions are not exported by the package.
_OPTIONS = (
    *("-O2", "-fPIC", "-shared", "-std=c++20", "-fvisibility=hidden"),
    *("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_LOG_ENABLED=0"),
)


@functools.cache
def load_operators() -> None:
    """Register the operators with the runtime of this process; compile them first where that was not done yet.

    Raises BackendError if there is no C++20 compiler, or if it fails.
    """
    core = Path(_native.library()._name)  # noqa: SLF001 - where ctypes found it
    compiler = _compiler()
    command = _command(compiler, core)
    library = _cache_folder() / f"operators-{_key(command, core)}.so"
    if not library.exists():
        _compile(command, library)
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise BackendError(f"{library} does not load: {error}; delete it") from error


def _compiler() -> list[str]:
    asked = os.environ.get("CXX")
    found = (
        [*shlex.split(asked)] if asked else [name for name in _COMPILERS if shutil.which(name)][:1]
    )
    if not found or not shutil.which(found[0]):
        raise BackendError(
            f"the operators for ExecuTorch are compiled once, and there is no C++20 compiler: got CXX={asked!r}, "
            f"looked for {', '.join(_COMPILERS)}; install g++ 10 or newer, or export with kernels='stock'"
        )
    return found


def _command(compiler: list[str], core: Path) -> list[str]:
    runtime = Path(_portable_lib.__file__)
    headers = runtime.parents[2] / "include"
    return [
        *(*compiler, *_OPTIONS, f"-I{core.parent / 'include'}", f"-isystem{headers}"),
        f"-isystem{headers / 'executorch/runtime/core/portable_type/c10'}",
        *(str(_SOURCE), str(runtime), str(core)),
    ]


def _key(command: list[str], core: Path) -> str:
    """What the library is made of. It finds the core by its name: the process has loaded it already."""
    digest = hashlib.sha256(version("executorch").encode())
    digest.update("\0".join(command).encode())
    answer = _run([command[0], "--version"])
    digest.update(answer.stdout.encode())
    headers = (*_SOURCE.parent.glob("*.h"), *(core.parent / "include").glob("*.h"))
    for path in (_SOURCE, *sorted(headers)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "sparsyfed"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"cannot keep the operators for ExecuTorch: {error}; set XDG_CACHE_HOME to a folder to write to"
        ) from error
    return folder


def _compile(command: list[str], library: Path) -> None:
    """Write the library; whoever else does so at the same time writes the same one."""
    print(
        f"compiling the operators for ExecuTorch {version('executorch')}, once: {library}",
        file=sys.stderr,
    )
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        answer = _run([*command, "-o", str(made)])
        if answer.returncode != 0:
            raise BackendError(
                f"the operators for ExecuTorch do not compile; a C++20 compiler is needed (set CXX): "
                f"{shlex.join(command)}\n{answer.stderr.strip()[-2000:]}"
            )
        made.replace(library)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendError(f"{command[0]} does not run: {error}") from error
