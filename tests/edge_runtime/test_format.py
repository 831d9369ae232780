"""The format's constants stand in three places; these tests read the text and the C header."""

import enum
import re
import struct
from pathlib import Path

import pytest

from sparsyfed.edge_runtime import format as layout

ROOT = Path(__file__).parents[2]
HEADER = (ROOT / "edge_runtime" / "csrc" / "sfd_format.h").read_text()
PAGE = (ROOT / "docs" / "format.md").read_text()

CODES = {"u8": "B", "u16": "H", "u32": "I", "f32": "f"}


def defined(name: str) -> int:
    """Value of a plain `#define` of the header."""
    found = re.search(rf"#define SFD_{name} (\w+?)u?\b", HEADER)
    assert found, name
    return int(found[1], 0)


def listed(name: str) -> dict[str, int]:
    """Names and codes of an X-macro of the header."""
    found = re.search(rf"#define SFD_{name}\(X\)((?:.*\\\n)*.*)", HEADER)
    assert found, name
    return {entry: int(code) for entry, code in re.findall(r"X\((\w+), (\d+)\)", found[1])}


def section(title: str) -> str:
    """Text of a section of the page."""
    return PAGE.split(f" {title}\n", 1)[1].split("\n#", 1)[0]


def layout_on_page(title: str) -> struct.Struct:
    """Layout of the table of a section; reserved fields are padding."""
    rows = re.findall(
        r"^\| (\d+) \| (u8|u16|u32|f32|\d+ bytes)(?: × (\d+))? \| ([^|]+) \|",
        section(title),
        re.MULTILINE,
    )
    codes = "<"
    for offset, kind, count, field in rows:
        assert struct.calcsize(codes) == int(offset), field
        raw = re.match(r"\d+", kind)
        size = int(raw[0]) if raw else struct.calcsize(f"<{CODES[kind]}")
        code = f"{size}s" if raw else CODES[kind]
        codes += f"{size}x" if field == "reserved" else code * int(count or 1)
    return struct.Struct(codes)


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("PARAMETER_KINDS", layout.ParameterKind),
        ("OPERATION_KINDS", layout.OperationKind),
        ("LOSSES", layout.Loss),
        ("CONTENTS", layout.Content),
        ("CODECS", layout.Codec),
        ("VALUE_TYPES", layout.ValueType),
    ],
)
def test_codes_are_those_of_the_header(name: str, members: type[enum.IntEnum]) -> None:
    assert listed(name) == {member.name: member.value for member in members}


@pytest.mark.parametrize(
    "name",
    [
        "ARTIFACT_MAJOR",
        "ARTIFACT_MINOR",
        "CONTAINER_VERSION",
        "CONTENT_MASK",
        "CODEC_SHIFT",
        "CODEC_MASK",
        "FLAG_NAMES",
        "NONE",
        "MAX_RECORDS",
        "FLAG_COUNT_PADDING",
        "FLAG_GELU_TANH",
    ],
)
def test_numbers_are_those_of_the_header(name: str) -> None:
    assert getattr(layout, name) == defined(name)


def test_magics_are_those_of_the_header_and_the_page() -> None:
    assert struct.pack("<I", defined("ARTIFACT_MAGIC")) == layout.ARTIFACT_MAGIC
    assert struct.pack("<I", defined("CONTAINER_MAGIC")) == layout.CONTAINER_MAGIC
    for magic in (layout.ARTIFACT_MAGIC, layout.CONTAINER_MAGIC):
        assert f'`{magic.hex(" ")}` ("{magic.decode()}")' in PAGE


@pytest.mark.parametrize(
    ("title", "name", "record"),
    [
        ("Header (64 bytes)", "ARTIFACT_HEADER_BYTES", layout.ARTIFACT_HEADER),
        ("Parameter record (32 bytes)", "PARAMETER_RECORD_BYTES", layout.PARAMETER_RECORD),
        ("Tensor record (16 bytes)", "TENSOR_RECORD_BYTES", layout.TENSOR_RECORD),
        ("Operation record (56 bytes)", "OPERATION_RECORD_BYTES", layout.OPERATION_RECORD),
        ("Header (40 bytes)", "CONTAINER_HEADER_BYTES", layout.CONTAINER_HEADER),
        ("Tensor table entry (16 bytes)", "TABLE_ENTRY_BYTES", layout.TABLE_ENTRY),
    ],
)
def test_records_are_those_of_the_page_and_the_header(
    title: str, name: str, record: struct.Struct
) -> None:
    numbered = next(line for line in PAGE.splitlines() if line.endswith(f" {title}"))
    expected = layout_on_page(numbered.split(" ", 1)[1])
    pattern = bytes(range(1, record.size + 1))
    assert expected.size == record.size == defined(name)
    assert record.unpack(pattern) == expected.unpack(pattern)


def test_page_lists_every_operation() -> None:
    codes = [
        int(code)
        for code in re.findall(
            r"^\| (\d+) \| [a-zA-Z0-9]",
            section("1.4 Operation record (56 bytes)").split("| kind | operation |")[1],
            re.MULTILINE,
        )
    ]
    assert codes == [member.value for member in layout.OperationKind]


def test_first_repeated_name() -> None:
    assert layout.first_repeated(["a", "b", "c", "b", "a"]) == "a"
    assert layout.first_repeated(["a", "b"]) is None
