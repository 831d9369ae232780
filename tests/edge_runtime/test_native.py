"""The binding against the C header, and what it does without a library."""

import ctypes
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
)

HEADER = (Path(__file__).parents[2] / "edge_runtime" / "csrc" / "sfd.h").read_text()

C_TYPES: dict[str, object] = {
    "uint16_t": ctypes.c_uint16,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "struct sfd_multiply_adds": _native.MultiplyAdds,
}


def listed(name: str) -> dict[str, int]:
    """Names and codes of an X-macro of the header."""
    found = re.search(rf"#define SFD_{name}\(X\)((?:.*\\\n)*.*)", HEADER)
    assert found, name
    return {entry: int(code) for entry, code in re.findall(r"X\((\w+), (-?\d+)", found[1])}


def fields(name: str) -> list[tuple[str, object]]:
    """Members of a struct of the header, with their ctypes."""
    found = re.search(rf"struct {name} \{{(.*?)\n\}};", HEADER, re.DOTALL)
    assert found, name
    members: list[tuple[str, object]] = []
    body = re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL)
    for declaration in filter(str.strip, body.split(";")):
        kind, names = re.findall(
            r"^\s*((?:const )?(?:struct )?\w+)\s+(.*)", declaration, re.DOTALL
        )[0]
        for member in names.split(","):
            pointer = "*" in member
            members.append((member.strip(" *"), ctypes.c_void_p if pointer else C_TYPES[kind]))
    return members


def test_error_codes_are_those_of_the_header() -> None:
    assert listed("ERRORS") == {code.name: code.value for code in _native.ErrorCode}


def test_buffer_kinds_are_those_of_the_header() -> None:
    assert listed("BUFFER_KINDS") == {kind.name: kind.value for kind in _native.BufferKind}


def test_targets_are_those_of_the_header() -> None:
    codes = dict(re.findall(r"SFD_TARGET_(\w+) = (\d)", HEADER))
    assert codes == {target.name: str(target.value) for target in _native.Target}


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("sfd_problem", _native.Problem),
        ("sfd_buffer", _native.Buffer),
        ("sfd_multiply_adds", _native.MultiplyAdds),
        ("sfd_plan", _native.Plan),
        ("sfd_counters", _native.Counters),
        ("sfd_parameter_view", _native.ParameterView),
    ],
)
def test_structures_are_those_of_the_header(name: str, structure: type[ctypes.Structure]) -> None:
    assert fields(name) == [tuple(field) for field in structure._fields_]


def test_every_function_is_bound_with_as_many_arguments() -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
    declared = dict(re.findall(r"SFD_API [^;(]*?(sfd_\w+)\(([^;]*)\);", text))
    assert declared.keys() == _native._SIGNATURES.keys()
    for name, arguments in declared.items():
        assert len(arguments.split(",")) == len(_native._SIGNATURES[name][1]), name


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
    }.get(code, FormatError)
    texts = dict(re.findall(r'X\((\w+), -?\d+,\s*"([^"]+)"\)', HEADER.replace("\\\n", "")))
    with pytest.raises(SparsyFedError, match=re.escape(f"thing: {texts[code.name]}")) as caught:
        _native.raise_error(code, "thing")
    assert type(caught.value) is expected


def test_problem_is_told() -> None:
    problem = _native.Problem(8, 3, 5)
    with pytest.raises(ArenaError, match=r"at byte 8: got 3, wanted 5") as caught:
        _native.raise_error(_native.ErrorCode.ERR_ARENA, "arena", problem)
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
