"""What a benchmark found: JSON with all that tells how it was measured, or a table."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import sparsyfed
from sparsyfed.tools.machine import describe_machine, vector_instructions

SETTING_ENVIRONMENT = ("GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD", "SPARSYFED_KERNELS")

MEASURED = "CPU time, one thread, median over the turns"


def describe(command: str) -> dict[str, Any]:
    """Machine, versions, date and command; of the environment, what changes allocator or kernels."""
    set_here = {
        name: value for name, value in os.environ.items() if name.startswith(SETTING_ENVIRONMENT)
    }
    return {
        "machine": describe_machine() | {"vector_instructions": vector_instructions()},
        "versions": {"sparsyfed": sparsyfed.__version__, "torch": metadata.version("torch")},
        "environment": set_here,
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
    }


def given_command() -> str:
    """The command line of this process."""
    return shlex.join(["sparsyfed", *sys.argv[1:]])


def result_json(found: Mapping[str, Any]) -> str:
    """Every figure."""
    return json.dumps(found, indent=1)


def result_text(
    found: Mapping[str, Any],
    rows: str,
    heading: Sequence[str],
    cells: Callable[[Mapping[str, Any]], Sequence[str]],
    measured: str = MEASURED,
) -> str:
    """The rows as a table for people, below what was `measured` where."""
    machine, versions = found["machine"], found["versions"]
    where = f"{machine['processor']}, {machine['platform']}, PyTorch {versions['torch']}"
    lines = [f"{measured}; {where}; {found['date']}"]
    lines += [_training(training) for training in found.get("trainings", ())]
    return "\n".join([*lines, aligned(heading, [cells(row) for row in found[rows]])])


def _training(training: Mapping[str, Any]) -> str:
    return (
        f"{training['model']} trained for {training['steps']} steps on {training['data']}: "
        f"loss {training['loss_of_first_tenth']:.3f} -> {training['loss_of_last_tenth']:.3f}"
    )


def aligned(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heading; the first is a name, the others stand to the right."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = []
    for row in [heading, *rows]:
        first, *others = zip(row, widths, strict=True)
        texts = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)
