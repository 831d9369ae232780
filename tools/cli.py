"""The command `sparsyfed`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import sparsyfed
from sparsyfed.edge_runtime.errors import BackendError, DivergedError, SparsyFedError, StoppedError
from sparsyfed.tools.commands import bench, broker, coordinator, demo, device, export, profile

Configure = Callable[[argparse.ArgumentParser], None]

COMMANDS: dict[str, tuple[str, Configure]] = {
    "demo": (demo.SUMMARY, demo.configure),
    "export": (export.SUMMARY, export.configure),
    "profile": (profile.SUMMARY, profile.configure),
    "coordinator": (coordinator.SUMMARY, coordinator.configure),
    "device": (device.SUMMARY, device.configure),
    "broker": (broker.SUMMARY, broker.configure),
    "bench": (bench.SUMMARY, bench.configure),
}

# Top-level modules that come with an extra of the distribution.
EXTRAS = {
    "matplotlib": "demo",
    "numpy": "coordinator",
    "paho": "agent",
    "scipy": "coordinator",
    "serial": "gateway",
    "torch": "export",
}

# Commands that need more than the extra of the module that they miss first.
COMMAND_EXTRAS = {"bench": "coordinator,export", "demo": "demo", "export": "coordinator,export"}

# Commands that import models of their user, who may keep them in the working directory.
IMPORTING = ("bench", "export", "coordinator")

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Prints the mistake and where to read on, and ends with exit code 2."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = OneLineParser(
        prog="sparsyfed",
        description="Sparse federated training for devices too small for PyTorch.",
        epilog="example:\n  sparsyfed demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sparsyfed {sparsyfed.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, configure) in COMMANDS.items():
        configure(
            commands.add_parser(
                name,
                help=summary,
                description=summary[0].upper() + summary[1:] + ".",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    0: done. 1: the work failed. 2: bad input, with one line that says what was wrong.
    130: interrupted by the user.
    """
    parsed = build_parser().parse_args(arguments)
    try:
        return _run(parsed)
    except (KeyboardInterrupt, StoppedError):
        return _complain(parsed.command, "interrupted", EXIT_INTERRUPTED)
    except (BackendError, DivergedError) as error:
        return _complain(parsed.command, str(error), EXIT_FAILED)
    except SparsyFedError as error:
        return _complain(parsed.command, str(error), EXIT_BAD_INPUT)
    except BrokenPipeError:
        # The reader of our output, `head` for one, has gone: nothing more can be said to it.
        _drop_output()
        return EXIT_FAILED
    except FileExistsError as error:
        message = f"{error.filename} exists and is not a folder"
        return _complain(parsed.command, message, EXIT_BAD_INPUT)
    except OSError as error:
        _drop_output()
        reason = error.strerror or str(error)
        if error.filename is None:
            return _complain(parsed.command, reason, EXIT_FAILED)
        return _complain(parsed.command, f"{error.filename}: {reason}", EXIT_BAD_INPUT)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        extra = COMMAND_EXTRAS.get(parsed.command, EXTRAS[missing])
        advice = f"needs {missing}: pip install 'sparsyfed-edge[{extra}]'"
        return _complain(parsed.command, advice, EXIT_BAD_INPUT)


def _run(parsed: argparse.Namespace) -> int:
    if parsed.command in IMPORTING:
        sys.path.insert(0, str(Path.cwd()))
    run: Callable[[argparse.Namespace], int] = parsed.run
    code = run(parsed)
    sys.stdout.flush()
    return code


def _drop_output() -> None:
    """Drops what standard output can't take: the interpreter would try, and fail, at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(command: str, message: str, code: int) -> int:
    print(f"sparsyfed {command}: {' '.join(message.split())}", file=sys.stderr)
    return code
