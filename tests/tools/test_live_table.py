import io

from sparsyfed.tools.live_table import HEADING, LiveTable, PlainTable, RoundRow, round_table

ROW = RoundRow(3, 0.7315, 0.0523, 316_000, 248_000, 8, 1.26)


def test_a_pipe_gets_one_line_a_round_below_one_heading() -> None:
    output = io.StringIO()
    with round_table(output) as table:
        table.add(ROW)
        table.add(ROW)
    lines = output.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].split() == [word for name in HEADING for word in name.split()]
    assert lines[1].split() == ["3", "73.2%", "5.23%", "316", "kB", "248", "kB", "8", "1.3", "s"]


def test_columns_of_the_plain_table_line_up() -> None:
    lines: list[str] = []
    table = PlainTable(lines.append)
    table.add(ROW)
    assert len(lines[0]) == len(lines[1])


def test_the_live_table_shows_rows_and_status() -> None:
    from rich.console import Console

    table = LiveTable()
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    table._live.console = console
    with table:
        table.status("waiting for devices")
        table.add(ROW)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "73.2%" in text
    assert "held-out accuracy" in text
