"""`sparsyfed profile`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsyfed.tools.profile_report import ModelProfile

SUMMARY = "say what fits on a device: batch sizes, densities, memory over time, work of a step"
EXAMPLE = "sparsyfed profile model.sfd --device stm32f746"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = f"example:\n  {EXAMPLE}\n  sparsyfed profile model.sfd --device all --json"
    parser.epilog += (
        "\n  sparsyfed profile model.sfd --device watch --density 0.1 --html memory.html"
    )
    parser.add_argument("artifact", type=Path, help="compiled model (.sfd)")
    parser.add_argument("--device", required=True, help='name of a profile, or "all"')
    parser.add_argument("--profiles", type=Path, help="TOML file with profiles of your own")
    parser.add_argument(
        "--memory", help="what training may take instead, such as 256KiB; KiB, MiB, GiB, kB, MB, GB"
    )
    parser.add_argument(
        "--state", type=Path, help="plan for this state (.sfs) instead of evenly spread densities"
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, help="for memory by use and work (default: 16)"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page that draws the arena over the steps"
    )
    parser.add_argument(
        "--density", type=float, default=0.05, help="of the page, without --state (default: 0.05)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON with every number")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the table or the JSON."""
    from sparsyfed.tools.profile_report import profile_json, profile_model, profile_text

    result = profile_model(
        arguments.artifact,
        arguments.device,
        batch_size=arguments.batch_size,
        state=arguments.state,
        profiles=arguments.profiles,
        memory=arguments.memory,
    )
    if arguments.html is not None:
        _write_page(result, arguments)
    print(profile_json(result) if arguments.json else profile_text(result))
    return 0


def _write_page(result: "ModelProfile", arguments: argparse.Namespace) -> None:
    from sparsyfed.edge_runtime import State
    from sparsyfed.edge_runtime.files import write_atomic
    from sparsyfed.tools.profile_page import arena_profile, render

    state = None if arguments.state is None else State.load(arguments.state)
    arena = arena_profile(result, state, arguments.density)
    write_atomic(arguments.html, render(result, arena).encode())
