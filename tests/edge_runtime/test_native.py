"""Errors, memory and addresses of the binding, and what it says without a library."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.errors import (
    ArenaError,
    BackendError,
    DivergedError,
    FormatError,
    InputError,
    MismatchError,
    SparsyFedError,
    UnsupportedOperationError,
)

HEADER = (Path(__file__).parents[2] / "edge_runtime" / "csrc" / "sfd.h").read_text()


@pytest.mark.parametrize("code", list(_native.ErrorCode)[1:])
def test_every_error_has_an_exception_with_its_text(code: _native.ErrorCode) -> None:
    expected = {
        _native.ErrorCode.ERR_ARENA: ArenaError,
        _native.ErrorCode.ERR_MISMATCH: MismatchError,
        _native.ErrorCode.ERR_SUPPORT: MismatchError,
        _native.ErrorCode.ERR_DIVERGED: DivergedError,
        _native.ErrorCode.ERR_ARGUMENT: InputError,
        _native.ErrorCode.ERR_INPUT: InputError,
        _native.ErrorCode.ERR_LABEL: InputError,
        _native.ErrorCode.ERR_BATCH: InputError,
        _native.ErrorCode.ERR_CAPACITY: InputError,
        _native.ErrorCode.ERR_KERNELS: InputError,
        _native.ErrorCode.ERR_THREADS: InputError,
        _native.ErrorCode.ERR_OPERATION: UnsupportedOperationError,
    }.get(code, FormatError)
    texts = dict(re.findall(r'X\((\w+), -?\d+,\s*"([^"]+)"\)', HEADER.replace("\\\n", "")))
    with pytest.raises(SparsyFedError, match=re.escape(f"thing: {texts[code.name]}")) as caught:
        _native.raise_error(code, "thing")
    assert type(caught.value) is expected


def test_a_problem_of_a_file_is_told_with_its_place() -> None:
    with pytest.raises(FormatError, match=r"\(at byte 8: got 3, wanted 5\)"):
        _native.raise_error(_native.ErrorCode.ERR_INDEX, "state", _native.Problem(8, 3, 5))


def test_a_problem_of_the_arena_has_no_place() -> None:
    with pytest.raises(ArenaError, match=r"small \(got 3, wanted 5\)") as caught:
        _native.raise_error(_native.ErrorCode.ERR_ARENA, "session", _native.Problem(0, 3, 5))
    assert (caught.value.got, caught.value.wanted) == (3, 5)


def test_address_of_read_only_and_writable_buffers() -> None:
    data = b"twelve bytes"
    place = _native.address(memoryview(data)[7:])
    assert bytes(_native.memory_at(place, 5)) == b"bytes"
    assert _native.address(memoryview(bytearray(4))) != 0


def test_memory_is_aligned_zeroed_and_given_back() -> None:
    memory = _native.Memory(10_000)
    assert memory.address % 64 == 0
    assert bytes(_native.memory_at(memory.address, memory.size)) == bytes(10_000)
    memory.close()
    with pytest.raises(ArenaError, match="does not give"):
        _native.Memory(0)


@pytest.mark.parametrize("content", [None, b"no library"])
def test_missing_or_broken_library_says_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "libsfd.so"
    if content is not None:
        path.write_bytes(content)
    program = "from sparsyfed.edge_runtime import State; State.decode(b'')"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SPARSYFED_LIBRARY": str(path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert BackendError.__name__ in result.stderr
    assert "pip install ." in result.stderr
