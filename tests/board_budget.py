"""The numbers of `devices/boards/sizes.toml`: compared, or written anew where SPARSYFED_UPDATE_SIZES is set.

So is the table of boards in README.md.
"""

import os
import re
import tomllib

from board_firmware import FIRMWARE, ROOT

TOLERANCE = 0.02
FILE = FIRMWARE / "sizes.toml"
README = ROOT / "README.md"


def budget() -> dict[str, dict[str, int]]:
    """The numbers of all boards, by name."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def require_budget(board: str, measured: dict[str, int]) -> None:
    """Fail where a number is not what was measured, within TOLERANCE, or is not there."""
    if os.environ.get("SPARSYFED_UPDATE_SIZES"):
        _write(board, measured)
    written = budget()[board]
    wrong = {
        name: f"measured {value}, sizes.toml has {written.get(name)}: `make sizes` writes it anew"
        for name, value in measured.items()
        if abs(value - written.get(name, 0)) > TOLERANCE * value
    }
    assert not wrong, f"{board}: {wrong}"


def _write(board: str, measured: dict[str, int]) -> None:
    head, *tables = re.split(r"^(?=\[)", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for place, before in enumerate(tables):
        table = before
        if not table.startswith(f"[{board}]\n"):
            continue
        for name, value in measured.items():
            line = f"{name} = {value:_}"
            table, found = re.subn(rf"^{name} = .*$", line, table, flags=re.MULTILINE)
            if not found:
                table = f"{table.rstrip()}\n{line}\n" + "\n" * (place + 1 < len(tables))
        tables[place] = table
    FILE.write_text(head + "".join(tables), encoding="utf-8")


def require_table() -> None:
    """Fail where the table of boards in README.md has other numbers, or other boards."""
    boards = budget()
    names = "|".join(map(re.escape, boards))
    line = re.compile(rf"^\| `(?P<board>{names})` \| (?P<processor>[^|]+) \|.*$", re.MULTILINE)
    text = README.read_text(encoding="utf-8")
    wanted = line.sub(lambda row: _row(row["board"], row["processor"], boards[row["board"]]), text)
    if os.environ.get("SPARSYFED_UPDATE_SIZES"):
        README.write_text(wanted, encoding="utf-8")
        text = wanted
    assert {row["board"] for row in line.finditer(text)} == set(boards)
    assert text == wanted, "README.md has other numbers: `make sizes` writes them anew"


def _row(board: str, processor: str, sizes: dict[str, int]) -> str:
    data, step = "", "built, never run"
    if "stack_bytes" in sizes:
        data, step = _kilobytes(sizes["static_bytes"] + sizes["stack_bytes"]), ""
    if "small_classifier_instructions" in sizes:
        step = (
            f"on 12x12 pixels, 5 % of the largest layer: {sizes['small_classifier_instructions'] / 1000:.0f} "
            f"thousand instructions, arena {_kilobytes(sizes['small_classifier_arena_bytes'])}"
        )
    cells = (f"`{board}`", processor, _kilobytes(sizes["text_bytes"]), data, step)
    return f"| {' | '.join(cells)} |"


def _kilobytes(count: int) -> str:
    return f"{count / 1000:.1f} KB"
