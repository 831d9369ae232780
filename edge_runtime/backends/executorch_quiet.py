"""What ExecuTorch and its packages say of themselves on standard error, and nobody could act on, left out."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

RUNTIME_LINES = re.compile(rb"\[(cpuinfo_utils|threadpool)\.cpp:\d+\] ")
"""How lines begin that the runtime writes when it counts processors and makes its threads."""


@contextmanager
def quiet() -> Iterator[None]:
    """ExecuTorch and what it brings warn of their own use of PyTorch, and of processors that are not there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def without_runtime_lines() -> Iterator[None]:
    """Leave out RUNTIME_LINES, which come from C++; all else goes to standard error, afterwards.

    Where standard error is closed nothing is left out. A process that crashes inside loses what it said.
    """
    standard_error = _standard_error()
    if standard_error is None:
        yield
        return
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
            said.seek(0)
            for line in said:
                if not RUNTIME_LINES.match(line):
                    os.write(2, line)


def _standard_error() -> int | None:
    """A copy of the descriptor, with nothing left to write to it; None in a process without one."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
        return os.dup(2)
    except (OSError, ValueError):  # closed, by the system or by Python
        return None
