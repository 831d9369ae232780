"""The records of `format.py` are those of the tables in docs/format.md."""

import re
import struct
from pathlib import Path

import pytest

from sparsyfed.edge_runtime import format as layout
from sparsyfed.edge_runtime.errors import InputError

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()

CODES = {"u8": "B", "i16": "h", "u16": "H", "u32": "I", "f32": "f"}


def layout_on_page(title: str) -> struct.Struct:
    """Layout of the table of a section; reserved fields are padding."""
    section = PAGE.split(f" {title}\n", 1)[1].split("\n#", 1)[0]
    rows = re.findall(
        r"^\| (\d+) \| (u8|i16|u16|u32|f32|\d+ bytes)(?: × (\d+))? \| ([^|]+) \|",
        section,
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
    ("title", "record"),
    [
        ("1.1 Header (64 bytes)", layout.ARTIFACT_HEADER),
        ("1.2 Parameter record (32 bytes)", layout.PARAMETER_RECORD),
        ("1.3 Tensor record (16 bytes)", layout.TENSOR_RECORD),
        ("1.4 Operation record (56 bytes)", layout.OPERATION_RECORD),
        ("2.1 Header (40 bytes)", layout.CONTAINER_HEADER),
        ("2.2 Tensor table entry (16 bytes)", layout.TABLE_ENTRY),
    ],
)
def test_records_are_those_of_the_page(title: str, record: struct.Struct) -> None:
    expected = layout_on_page(title)
    pattern = bytes(range(1, record.size + 1))
    assert f"({record.size} bytes)" in title
    assert expected.size == record.size
    assert record.unpack(pattern) == expected.unpack(pattern)


def test_first_repeated_name() -> None:
    assert layout.first_repeated(["a", "b", "c", "b", "a"]) == "a"
    assert layout.first_repeated(["a", "b"]) is None


@pytest.mark.parametrize("name", ["line\nfeed", "\x7f", "\ud800"])
def test_names_that_no_reader_takes_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="the name"):
        layout.encode_name(name)
