"""`sparsyfed profile`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.tools.commands.outputs import require_writable

if TYPE_CHECKING:
    from sparsyfed.tools.profile_report import ModelProfile

SUMMARY = "say what fits on a device: batch sizes, densities, memory over time, work of a step"
EXAMPLE = "sparsyfed profile model.sfd --device stm32f746"
DENSITY = 0.05


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = f"example:\n  {EXAMPLE}\n  sparsyfed profile model.sfd --device all --json"
    parser.epilog += (
        "\n  sparsyfed profile model.sfd --device watch --density 0.1 --html memory.html"
    )
    parser.epilog += "\n  sparsyfed profile model.sfd --board mps2-an386 --batch-size 1"
    parser.add_argument("artifact", type=Path, help="compiled model (.sfd)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--device", help='name of a profile, or "all"')
    target.add_argument("--board", help="run steps on this board, such as mps2-an386, in QEMU")
    parser.add_argument("--port", help="run them on the board at this serial port instead")
    parser.add_argument(
        "--vectors",
        action="store_true",
        help="emulate firmware that uses the board's vector instructions: mps3-an547",
    )
    parser.add_argument("--profiles", type=Path, help="TOML file with profiles of your own")
    parser.add_argument(
        "--memory",
        help="what training may take instead, or all RAM of an emulated board; "
        "such as 256KiB; KiB, MiB, GiB, kB, MB, GB",
    )
    parser.add_argument(
        "--state", type=Path, help="plan for this state (.sfs) instead of evenly spread densities"
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, help="for memory by use and work (default: 16)"
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a page that draws the arena over the steps, or what a board has measured",
    )
    parser.add_argument(
        "--density",
        type=float,
        help=f"of the page and of --board, without --state (default: {DENSITY})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON with every number")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the table or the JSON."""
    from sparsyfed.tools.profile_report import profile_json, profile_model, profile_text

    if arguments.density is not None and arguments.state is not None:
        raise ConfigurationError("--density is for a model without --state, which has its own")
    if arguments.html is not None:
        require_writable("--html", arguments.html)
    if arguments.board is not None:
        return _run_on_board(arguments)
    if arguments.port is not None:
        raise ConfigurationError("--port goes with --board")
    if arguments.vectors:
        raise ConfigurationError("--vectors goes with --board")
    if arguments.html is None and arguments.density is not None:
        raise ConfigurationError("--density goes with --html or --board: the tables have many")
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


def _run_on_board(arguments: argparse.Namespace) -> int:
    from sparsyfed.devices.profiles import parse_bytes
    from sparsyfed.edge_runtime import State
    from sparsyfed.tools.bench_process import say
    from sparsyfed.tools.board_profile import profile_on_board

    if arguments.profiles is not None:
        raise ConfigurationError("--profiles goes with --device")
    memory = arguments.memory
    if memory is not None and arguments.port is not None:
        raise ConfigurationError(
            "--memory with --board is the RAM of an emulated one, --port names another"
        )
    if arguments.vectors and arguments.port is not None:
        raise ConfigurationError("--vectors is of firmware that is built, --port names a board")
    report = profile_on_board(
        arguments.artifact,
        arguments.board,
        state=None if arguments.state is None else State.load(arguments.state),
        density=_density(arguments),
        batch_size=arguments.batch_size,
        ram_bytes=None if memory is None else parse_bytes(memory),
        vectors=arguments.vectors,
        port=arguments.port,
        say=say,
    )
    if arguments.html is not None:
        from sparsyfed.edge_runtime.files import write_atomic
        from sparsyfed.tools.board_page import render

        write_atomic(arguments.html, render(report).encode())
    print(report.to_json() if arguments.json else report.to_text())
    return 0


def _density(arguments: argparse.Namespace) -> float:
    return DENSITY if arguments.density is None else arguments.density


def _write_page(result: "ModelProfile", arguments: argparse.Namespace) -> None:
    from sparsyfed.edge_runtime import State
    from sparsyfed.edge_runtime.files import write_atomic
    from sparsyfed.tools.profile_page import arena_profile, render

    state = None if arguments.state is None else State.load(arguments.state)
    arena = arena_profile(result, state, _density(arguments))
    write_atomic(arguments.html, render(result, arena).encode())
