"""Processes that end with the process that started them."""

import functools
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import IO


def spawn(
    command: Sequence[str],
    log: IO[bytes] | int,
    environment: Mapping[str, str] = MappingProxyType({}),
    *,
    pass_fds: Collection[int] = (),
) -> subprocess.Popen[bytes]:
    """Starts a program whose output goes to `log`, with this in addition to the environment.

    It has the open files `pass_fds` besides.

    It is in a session of its own, so an interrupt at the terminal goes to the owner alone, who
    stops it. Where the system can, the program gets SIGTERM when the thread that started it ends,
    by kill -9 too: start it from a thread that lives as long as the program shall.
    """
    return subprocess.Popen(
        [*_death_signal_prefix(), *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={**os.environ, **environment},
        pass_fds=tuple(pass_fds),
    )


@functools.cache
def _death_signal_prefix() -> tuple[str, ...]:
    """Command that ends a program when its parent ends; () where the system has none."""
    program = shutil.which("setpriv")
    if program is None:
        return ()
    prefix = (program, "--pdeathsig", "TERM", "--")
    known = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if known else ()
