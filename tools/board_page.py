"""Steps of a model on a board, as one HTML page: `sparsyfed profile --board --html`."""

from collections.abc import Callable
from html import escape

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from sparsyfed.tools.board_report import (
    PARTS,
    BoardReport,
    MeasuredStep,
    memory_rows,
    other_rows,
    part_rows,
    work_rows,
)
from sparsyfed.tools.drawing import DENSE, FOURTH, SPARSE, THIRD, Plot, draw_plot
from sparsyfed.tools.page import figures, numbers, page, table
from sparsyfed.tools.quantities import byte_text, count_text

COLORS = (SPARSE, THIRD, FOURTH, DENSE)


def render(report: BoardReport) -> str:
    """The page. Same report, same bytes."""
    measured = {name: step for name, step in report.steps.items() if isinstance(step, MeasuredStep)}
    reasons = "".join(
        f"<p>The {escape(name)} model {escape(step)}.</p>\n"
        for name, step in report.steps.items()
        if isinstance(step, str)
    )
    plots = figures([_parts_plot(report, measured), _memory_plot(report, measured)])
    steps = (
        f"<h2>A step</h2>\n{plots}\n<h2>In numbers</h2>\n{_steps(report, measured)}"
        if measured
        else ""
    )
    return page(
        f"Training on {report.board.name}",
        f"<h1>Training steps on {escape(report.board.name)}</h1>\n"
        f'<p class="muted">Model <code>{escape(report.artifact)}</code>, batch size {report.batch_size}, measured on '
        f"the board; {escape(report.counts)} are counted.</p>\n"
        f"{numbers(_numbers(report, measured))}\n{reasons}{steps}<h2>Firmware</h2>\n"
        f"{table(['bytes', ''], [[name, f'{size:,}'] for name, size in report.firmware()])}",
    )


def _numbers(report: BoardReport, measured: dict[str, MeasuredStep]) -> list[tuple[str, str, str]]:
    entries = []
    for name, step in measured.items():
        entries += [
            (
                count_text(step.step_ticks),
                f"{report.counts} a step, {name}",
                f"{step.density:.2%} of the weights stored",
            ),
            (
                byte_text(step.planned_arena_bytes),
                f"arena, {name}",
                f"{step.touched_arena_bytes:,} bytes touched, {byte_text(step.ram_left_bytes)} of RAM left",
            ),
        ]
    if report.flash_left_bytes is not None:
        entries.append(
            (
                byte_text(report.board.text_bytes),
                "code and constants",
                f"{byte_text(report.flash_left_bytes)} of flash left",
            )
        )
    return entries


def _stacked(axes: Axes, bars: dict[str, list[tuple[str, int]]]) -> None:
    """One bar a row, of named pieces in the same order each."""
    for row, (name, pieces) in enumerate(bars.items()):
        left = 0
        for (label, value), color in zip(pieces, COLORS, strict=True):
            axes.barh(name, value, left=left, color=color, label=label if row == 0 else None)
            left += value
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize=10)


def _parts_plot(report: BoardReport, measured: dict[str, MeasuredStep]) -> Plot:
    def draw(axes: Axes) -> None:
        bars = {
            name: [(PARTS[part], ticks) for part, ticks in step.step_parts.items()]
            for name, step in measured.items()
        }
        _stacked(axes, bars)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))

    return draw_plot("A step by part", f"In {report.counts}.", draw, size=(6.2, 2.9))


def _memory_plot(report: BoardReport, measured: dict[str, MeasuredStep]) -> Plot:
    facts = report.board

    def draw(axes: Axes) -> None:
        bars = {
            name: [
                ("arena", step.planned_arena_bytes),
                ("examples of a batch", step.example_bytes),
                ("artifact", step.artifact_bytes),
                (
                    "firmware's data and stack",
                    facts.data_bytes + facts.bss_bytes + facts.stack_bytes,
                ),
            ]
            for name, step in measured.items()
        }
        _stacked(axes, bars)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_text(value)))

    return draw_plot("RAM by use", "What training takes of the board.", draw, size=(6.2, 2.9))


def _table(
    heading: str,
    measured: dict[str, MeasuredStep],
    rows: Callable[[MeasuredStep], list[tuple[str, int]]],
) -> str:
    """A column for each step: all have the same rows."""
    columns = [rows(step) for step in measured.values()]
    lines = [
        [line[0][0], *(f"{value:,}" for _, value in line)] for line in zip(*columns, strict=True)
    ]
    return table([heading, *measured], lines)


def _steps(report: BoardReport, measured: dict[str, MeasuredStep]) -> str:
    hosts = [
        [
            f"{host.kernels}, {name}",
            f"{1e6 * host.cpu_seconds:,.0f} µs",
            f"{host.multiply_adds:,}",
            f"{host.arena_bytes:,}",
        ]
        for name, step in measured.items()
        for host in step.hosts.values()
    ]
    bits = "are" if all(step.same_bits_as_host for step in measured.values()) else "are NOT"
    return (
        f"{_table(f'{report.counts} of a step', measured, part_rows)}"
        f"{_table(f'{report.counts} besides', measured, other_rows)}"
        f"{_table('multiply-adds of a step', measured, work_rows)}"
        f"{_table('bytes', measured, memory_rows)}"
        f"<p>The bits of the updates {bits} those of the portable kernels on the machine that made this page, where "
        "the same step takes:</p>\n"
        f"{table(['kernels, one thread', 'CPU time', 'multiply-adds', 'arena bytes'], hosts)}"
    )
