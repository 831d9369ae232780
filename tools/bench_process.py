"""Measurements in processes of their own: libraries read their limits when they are loaded."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError, SparsyFedError
from sparsyfed.tools.other_python import environment_for

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# Both sides on the same instructions. oneDNN computes PyTorch's convolutions, ATen the elementwise
# operations, MKL the matrix products. On an AMD processor MKL ignored MKL_ENABLE_INSTRUCTIONS, and of
# MKL_CBWR only COMPATIBLE, which is SSE2, changed its speed (measured).
LIMITS: dict[str, dict[str, str]] = {
    "best": {},
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
    },
    "sse2": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
    },
}
"""Environment that limits dense PyTorch to an instruction set."""

LIMITING = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")


def measure_apart(
    module: str, settings: Mapping[str, Any], isa: str = "best", *, python: str = sys.executable
) -> Any:
    """What `measure(**settings)` of a module of the tools returns in a new process, by way of JSON.

    The process runs on one thread, under the limits of `isa` and no other, and writes its progress
    to standard error. `python` may be one of another environment. Raises ConfigurationError for what
    it found wrong with the settings, BackendError if it ended otherwise.
    """
    environment = {name: value for name, value in os.environ.items() if name not in LIMITING}
    with environment_for(python) as packages:
        answer = subprocess.run(
            [python, "-m", "sparsyfed.tools.bench_process", module],
            input=json.dumps(settings),
            env={**environment, **ONE_THREAD, **LIMITS[isa], **packages},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    try:
        result = json.loads(answer.stdout)
    except ValueError:
        raise BackendError(f"the measuring process ended with code {answer.returncode}") from None
    if "error" in result:
        raise ConfigurationError(result["error"])
    return result["result"]


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


def main(module: str) -> None:
    """Measures as standard input says and prints what came of it."""
    settings = json.load(sys.stdin)
    try:
        # A model of the user may print; standard output is for the result.
        with contextlib.redirect_stdout(sys.stderr):
            measured = importlib.import_module(f"sparsyfed.tools.{module}").measure(**settings)
    except SparsyFedError as error:
        print(json.dumps({"error": str(error)}))
        return
    except OSError as error:
        if error.filename is None:
            raise
        print(json.dumps({"error": f"{error.filename}: {error.strerror}"}))
        return
    print(json.dumps({"result": measured}))


if __name__ == "__main__":
    main(sys.argv[1])
