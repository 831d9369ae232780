"""A table of rounds that grows while they run."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from sparsyfed.tools.quantities import byte_text


@dataclass(frozen=True, slots=True)
class RoundRow:
    """What the table shows of a round. Bytes are of all its devices together."""

    round: int
    accuracy: float
    density: float
    bytes_down: int
    bytes_up: int
    devices: int
    seconds: float


HEADING = ("round", "held-out accuracy", "density", "down", "up", "devices", "time")


class RoundTable(Protocol):
    """Shows rows as they come, and below them what is going on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def add(self, row: RoundRow) -> None:
        """Shows one more round."""

    def status(self, text: str) -> None:
        """Says what is going on."""

    def progress(self, text: str) -> None:
        """Says how far it has come, where that can be shown in place."""


def round_table(output: TextIO | None = None) -> RoundTable:
    """A table for this output: redrawn in place on a terminal that `rich` can drive, else lines."""
    stream = sys.stdout if output is None else output
    if stream.isatty() and importlib.util.find_spec("rich") is not None:
        return LiveTable()
    return PlainTable(lambda line: print(line, file=stream, flush=True))


def cells(row: RoundRow) -> tuple[str, ...]:
    """The texts of a row, in the order of HEADING."""
    return (
        str(row.round),
        f"{row.accuracy:.1%}",
        f"{row.density:.2%}",
        byte_text(row.bytes_down),
        byte_text(row.bytes_up),
        str(row.devices),
        f"{row.seconds:.1f} s",
    )


class SilentTable:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def add(self, row: RoundRow) -> None:
        """Shows nothing."""

    def status(self, text: str) -> None:
        """Says nothing."""

    def progress(self, text: str) -> None:
        """Says nothing."""


class PlainTable:
    """One line a round, for files and pipes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._headed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def add(self, row: RoundRow) -> None:
        """Writes the round's line."""
        if not self._headed:
            self._write(self._line(HEADING))
            self._headed = True
        self._write(self._line(cells(row)))

    def status(self, text: str) -> None:
        """Writes the text on a line of its own."""
        self._write(text)

    def progress(self, text: str) -> None:
        """Writes nothing: lines stay."""

    @staticmethod
    def _line(texts: Sequence[str]) -> str:
        return "  ".join(
            text.rjust(max(len(name), 8)) for text, name in zip(texts, HEADING, strict=True)
        )


class LiveTable:
    """A table redrawn in place by `rich`."""

    def __init__(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - optional

        self._rows: list[tuple[str, ...]] = []
        self._status = ""
        self._live = Live(self._render(), refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status = ""
        self._live.update(self._render())
        self._live.stop()

    def add(self, row: RoundRow) -> None:
        """Adds the round to the drawn table."""
        self._rows.append(cells(row))
        self._live.update(self._render())

    def status(self, text: str) -> None:
        """Shows the text below the table, in place of the one before."""
        self._status = text
        self._live.update(self._render())

    def progress(self, text: str) -> None:
        """Shows the text as `status` does."""
        self.status(text)

    def _render(self) -> Any:
        from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - optional
        from rich.console import Group  # noqa: PLC0415 - optional
        from rich.table import Table  # noqa: PLC0415 - optional
        from rich.text import Text  # noqa: PLC0415 - optional

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in HEADING:
            table.add_column(name, justify="right")
        for row in self._rows:
            table.add_row(*row)
        status = Text(self._status, style="dim")
        return Group(table, status) if self._rows else status
