"""What the studies have in common: their arguments, and figures that are measured or read again."""

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from sparsyfed.edge_runtime.files import write_atomic


def study_parser(module: str, description: str) -> argparse.ArgumentParser:
    """The parser of a study, with the arguments that all of them take."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--date", type=date.fromisoformat, required=True, help="of the results")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder")
    parser.add_argument(
        "--page-only", action="store_true", help="write the page anew from figures that are there"
    )
    return parser


def command_line(parser: argparse.ArgumentParser, given: Sequence[str]) -> str:
    """The command that was given, to be run again."""
    return shlex.join([*parser.prog.split(), *given])


def figures_of(
    parsed: argparse.Namespace, name: str, measure: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """What `measure` gives, written to `name`.json with the date; or what an earlier run wrote there."""
    path: Path = parsed.out / f"{name}.json"
    parsed.out.mkdir(parents=True, exist_ok=True)
    if not parsed.page_only:
        result = {**measure(), "date": parsed.date.isoformat()}
        write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures
