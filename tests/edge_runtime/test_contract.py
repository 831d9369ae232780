"""What a compiler makes of the C headers is what the Python side and docs/format.md say."""

from __future__ import annotations

import ctypes
import enum
import re
import subprocess
from pathlib import Path

import pytest

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime import format as layout

ROOT = Path(__file__).parents[2]
CORE = ROOT / "edge_runtime" / "csrc"
C_TESTS = ROOT / "tests" / "c"
DOCUMENT = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")


def compiled(name: str, folder: Path, *flags: str) -> str:
    """Path of the program of tests/c/`name`.c, linked with the core."""
    program = folder / name
    sources = [C_TESTS / f"{name}.c", *sorted(CORE.glob("*.c"))]
    command = ["cc", "-std=c99", *flags, f"-I{CORE}", *map(str, sources), "-lm"]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=300)
    return str(program)


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What the C side says: group -> name -> number."""
    program = compiled("print_contract", tmp_path_factory.mktemp("contract"))
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    groups: dict[str, dict[str, int]] = {}
    for line in output.splitlines():
        group, name, number = line.split()
        groups.setdefault(group, {})[name] = int(number)
    return groups


def test_the_byte_level_unit_tests_pass(tmp_path: Path) -> None:
    sanitizers = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = compiled("test_parse", tmp_path, *sanitizers)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "enumeration",
    [
        layout.ParameterKind,
        layout.OperationKind,
        layout.Loss,
        layout.InputType,
        layout.Content,
        layout.Codec,
        layout.ValueType,
        _native.ErrorCode,
        _native.BufferKind,
        _native.Action,
        _native.MemoryChoice,
        _native.KernelSet,
        _native.Target,
    ],
)
def test_enumerations_agree(
    contract: dict[str, dict[str, int]], enumeration: type[enum.IntEnum]
) -> None:
    assert {member.name: member.value for member in enumeration} == contract[enumeration.__name__]


RECORDS = {
    "ARTIFACT_HEADER": layout.ARTIFACT_HEADER,
    "PARAMETER_RECORD": layout.PARAMETER_RECORD,
    "TENSOR_RECORD": layout.TENSOR_RECORD,
    "OPERATION_RECORD": layout.OPERATION_RECORD,
    "CONTAINER_HEADER": layout.CONTAINER_HEADER,
    "TABLE_ENTRY": layout.TABLE_ENTRY,
}


def test_constants_agree(contract: dict[str, dict[str, int]]) -> None:
    in_header = re.findall(
        r"^#define SFD_(\w+) (?:0x|\d)", (CORE / "sfd_format.h").read_text(), re.MULTILINE
    )
    assert set(contract["define"]) == set(in_header), "print_contract.c leaves a constant out"
    sizes = {f"{name}_BYTES": record.size for name, record in RECORDS.items()}
    for name, value in contract["define"].items():
        mine = sizes[name] if name in sizes else getattr(layout, name)
        wanted = int.from_bytes(mine, "little") if isinstance(mine, bytes) else mine
        assert value == wanted, name


STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "problem": _native.Problem,
    "buffer": _native.Buffer,
    "options": _native.Options,
    "planned_step": _native.PlannedStep,
    "multiply_adds": _native.MultiplyAdds,
    "plan": _native.Plan,
    "counters": _native.Counters,
    "parameter_view": _native.ParameterView,
}


def test_structures_agree(contract: dict[str, dict[str, int]]) -> None:
    assert contract["size"] == {name: ctypes.sizeof(type_) for name, type_ in STRUCTURES.items()}
    assert contract["field"] == {
        f"{name}.{field[0]}": getattr(type_, field[0]).offset
        for name, type_ in STRUCTURES.items()
        for field in type_._fields_
    }


def test_every_function_of_the_header_is_bound_with_as_many_arguments() -> None:
    text = re.sub(r"/\*.*?\*/", "", (CORE / "sfd.h").read_text(), flags=re.DOTALL)
    declared = dict(re.findall(r"SFD_API [^;(]*?(sfd_\w+)\(([^;]*)\);", text))
    counts = {name: len(arguments.split(",")) for name, arguments in declared.items()}
    assert counts == {name: len(types) for name, (_, types) in _native._SIGNATURES.items()}


def section(heading: str) -> str:
    """Text of the document from a heading to the next one."""
    start = DOCUMENT.index(heading)
    return DOCUMENT[start : (DOCUMENT + "\n##").index("\n##", start)]


def rows(text: str) -> list[list[str]]:
    """Cells of the body rows of the tables in a text."""
    lines = [line for line in text.splitlines() if re.match(r"\| *\d", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        (
            "## 1. Training artifact",
            ["ARTIFACT_HEADER", "PARAMETER_RECORD", "TENSOR_RECORD", "OPERATION_RECORD"],
        ),
        ("## 2. State and update", ["CONTAINER_HEADER", "TABLE_ENTRY"]),
    ],
)
def test_the_section_tables_give_the_record_sizes(heading: str, names: list[str]) -> None:
    documented = re.findall(r"^\| .* \| (\d+)", section(heading), re.MULTILINE)
    assert list(map(int, documented)) == [RECORDS[name].size for name in names]


def test_the_core_reads_operations_where_the_document_says(
    contract: dict[str, dict[str, int]],
) -> None:
    fields = [row for row in rows(section("### 1.4 Operation record")) if len(row) == 4]
    by_name = {name.split()[0].upper(): int(offset) for offset, _, name, _ in fields}
    by_name["NAME"] = by_name.pop("NAME_OFFSET")
    del by_name["KIND"], by_name["NAME_BYTES"]
    assert contract["offset"] == by_name


def test_operation_kinds_are_as_documented() -> None:
    pairs = [row for row in rows(section("### 1.4 Operation record")) if len(row) == 2]
    documented = {int(code): text.upper().replace(" ", "_") for code, text in pairs}
    assert set(documented) == set(layout.OperationKind)
    for kind in layout.OperationKind:
        assert re.match(rf"{kind.name}(\W|_\(|$)", documented[kind]), kind.name


@pytest.mark.parametrize(
    ("heading", "magic"),
    [
        ("### 1.1 Header", layout.ARTIFACT_MAGIC),
        ("### 2.1 Header", layout.CONTAINER_MAGIC),
    ],
)
def test_magics_are_as_documented(heading: str, magic: bytes) -> None:
    row = rows(section(heading))[0]
    documented = re.search(r"`([0-9A-F ]+)` \(\"(\w+)\"\)", row[3])
    assert documented is not None
    assert bytes.fromhex(documented[1]) == documented[2].encode() == magic
