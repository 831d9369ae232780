"""onnxruntime-training in a process of its own: it can't share an environment with onnxruntime."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime.errors import BackendError

PYTHON_VARIABLE = "SPARSYFED_ONNXRUNTIME_TRAINING_PYTHON"
"""The environment variable that names the Python of the environment with onnxruntime-training."""
LIMIT_SECONDS = 600.0
"""A process that takes longer for an answer is ended."""

Arrays = Mapping[str, NDArray[Any]]


@contextmanager
def training_worker() -> Iterator[TrainingWorker]:
    """A running worker, in the Python that SPARSYFED_ONNXRUNTIME_TRAINING_PYTHON names, else in this one.

    Raises BackendError where that has no onnxruntime-training.
    """
    python = os.environ.get(PYTHON_VARIABLE, sys.executable)
    program = resources.files("sparsyfed.edge_runtime.backends") / "onnx_training_module.py"
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as log,
        resources.as_file(program) as path,
    ):
        try:
            process = subprocess.Popen(
                [python, "-I", path, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        except OSError as error:
            raise _missing(python, str(error)) from error
        try:
            yield TrainingWorker(process, python, Path(folder), log)
        finally:
            process.kill()
            with suppress(BrokenPipeError), process:
                pass  # what is left to do: close the pipes, wait for the end


class TrainingWorker:
    """Serves the training artifacts in `folder`, which is empty at first and ends with the worker."""

    def __init__(
        self, process: subprocess.Popen[bytes], python: str, folder: Path, log: IO[bytes]
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.folder = folder
        self._process, self._log = process, log
        self._requests, self._answers = process.stdin, process.stdout
        with self._limited():
            greeting = self._answers.readline(100).decode().split()
        if greeting[:1] != ["ready"]:
            raise _missing(python, self._last_words())
        self.version = greeting[1]
        """Of onnxruntime-training."""

    def call(self, action: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Return what an action of `onnx_training_module.Service` answers.

        Raises BackendError where the engine fails or does not answer.
        """
        data = io.BytesIO()
        np.savez(data, **arrays)  # type: ignore[arg-type] # no name is that of its other argument
        body = data.getvalue()
        with self._limited():
            with suppress(BrokenPipeError):
                self._requests.write(f"{action} {len(body)}\n".encode() + body)
                self._requests.flush()
            header = self._answers.readline(100).decode().split()
            answer = self._answers.read(int(header[1])) if header else b""
        if not header or len(answer) != int(header[1]):
            raise BackendError(
                f"onnxruntime-training: the process ended, or took over {LIMIT_SECONDS:g} s for {action}: "
                f"{self._last_words()}"
            )
        if header[0] != "done":
            raise BackendError(f"onnxruntime-training: {action}: {answer.decode()}")
        with np.load(io.BytesIO(answer), allow_pickle=False) as results:
            return dict(results)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        timer = threading.Timer(LIMIT_SECONDS, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def _missing(python: str, reason: str) -> BackendError:
    return BackendError(
        f"{python} can't run onnxruntime-training ({reason}): install "
        f"sparsyfed-edge[onnxruntime-training] in an environment of its own and name its Python in {PYTHON_VARIABLE}"
    )
