"""`sparsyfed coordinator`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sparsyfed.tools.commands.actions import add_action
from sparsyfed.tools.commands.outputs import require_writable

if TYPE_CHECKING:
    from sparsyfed.coordinator import RoundFinished

logger = logging.getLogger(__name__)

SUMMARY = "run the rounds of a job with the devices on a broker"
EXAMPLE = "sparsyfed coordinator run job.toml"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = f"example:\n  {EXAMPLE}"
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    start = add_action(
        actions,
        "run",
        summary="run a job to its end; started again, it goes on where it was",
        description=(
            "Runs a job to its end. Started again after a stop, it goes on where it was.\n"
            "A model named as package.module:function is found from the working directory, too."
        ),
        example=EXAMPLE,
    )
    start.add_argument(
        "config", type=Path, help="TOML file; coordinator/example.toml has every key"
    )
    start.add_argument("--state-out", type=Path, help="write the trained state (.sfs) here")
    start.add_argument("--json", action="store_true", help="print one JSON object a round")
    start.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the coordinator; rounds go to standard output, what happens to standard error."""
    from sparsyfed import coordinator

    config = coordinator.Configuration.load(arguments.config)
    if arguments.state_out is not None:
        require_writable("--state-out", arguments.state_out)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    result = coordinator.run(config, _print_json if arguments.json else _print_line)
    if arguments.state_out is None:
        logger.info(
            "the trained state is in %s; run again with --state-out FILE to get it as a file",
            config.store.directory,
        )
    else:
        result.state.save(arguments.state_out)
        logger.info("the trained state is in %s", arguments.state_out)
    return 0


def _print_json(finished: "RoundFinished") -> None:
    print(json.dumps(finished.to_mapping()), flush=True)


def _print_line(finished: "RoundFinished") -> None:
    from sparsyfed.tools.quantities import byte_text

    accuracy = "" if finished.accuracy is None else f"accuracy {finished.accuracy:.1%}, "
    print(
        f"round {finished.round}: {accuracy}density {finished.density_down:.2%}, "
        f"{byte_text(finished.bytes_down)} down, {byte_text(finished.bytes_up)} up, "
        f"{finished.devices} devices, {finished.seconds:.1f} s",
        flush=True,
    )
