"""The parsers of what a command can do: `sparsyfed device run`, `sparsyfed bench step`."""

import argparse
from typing import Any


def add_action(
    actions: Any, name: str, *, summary: str, description: str, example: str
) -> argparse.ArgumentParser:
    """The parser of one action; `actions` is what `add_subparsers` gave."""
    parser: argparse.ArgumentParser = actions.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser
