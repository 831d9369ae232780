"""`sparsyfed broker`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import argparse
from pathlib import Path

from sparsyfed.tools.commands.actions import add_action

SUMMARY = "run a mosquitto with a fitting configuration"
EXAMPLE = "sparsyfed broker run --port 1883"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = f"example:\n  {EXAMPLE}"
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    start = add_action(
        actions,
        "run",
        summary="run until Ctrl-C",
        description="Runs a broker until Ctrl-C. It asks for no password.",
        example=EXAMPLE,
    )
    start.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    start.add_argument("--port", type=int, default=1883, help="port (default: 1883)")
    start.add_argument(
        "--directory", type=Path, help="for stored sessions and the log (default: temporary)"
    )
    start.add_argument(
        "--open-to-network",
        action="store_true",
        help="allow an address that other machines reach, for a network that you trust",
    )
    start.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the broker until it is interrupted."""
    from sparsyfed.tools.broker import run_broker

    return run_broker(
        arguments.host,
        arguments.port,
        arguments.directory,
        open_to_network=arguments.open_to_network,
    )
