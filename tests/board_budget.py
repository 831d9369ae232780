"""The numbers of `devices/boards/sizes.toml`: compared, or written anew where SPARSYFED_UPDATE_SIZES is set."""

import os
import re
import tomllib

from board_firmware import FIRMWARE

TOLERANCE = 0.02
FILE = FIRMWARE / "sizes.toml"


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
