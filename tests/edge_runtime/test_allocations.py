"""The process asks for no memory while it trains, and the C core could not."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_strategies import Model, ModelBuilder, random_model, random_state

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.artifact import Tensor
from sparsyfed.edge_runtime.format import OperationKind

HERE = Path(__file__).parent
# What the compiler calls for C's own operations, plain or hardened; nothing that takes memory.
ALLOWED = {
    "memcpy",
    "memmove",
    "memset",
    "memcmp",
    "__memcpy_chk",
    "__memmove_chk",
    "__memset_chk",
    "__stack_chk_fail",
    "sqrtf",
}

# What a session with threads calls besides: it takes stacks when it is opened.
THREADS = {
    "pthread_cond_broadcast",
    "pthread_cond_destroy",
    "pthread_cond_init",
    "pthread_cond_wait",
    "pthread_create",
    "pthread_join",
    "pthread_mutex_destroy",
    "pthread_mutex_init",
    "pthread_mutex_lock",
    "pthread_mutex_unlock",
    "pthread_sigmask",
    "sched_yield",
    "sigfillset",
}

COMPILER, SYMBOL_LISTER = (shutil.which(name) or "" for name in ("cc", "nm"))

needs_compiler = pytest.mark.skipif(
    not COMPILER or platform.libc_ver()[0] != "glibc",
    reason="the counter is built with cc and stands before glibc's allocator",
)


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("counter") / "allocation_counter.so"
    source = HERE.parent / "c" / "allocation_counter.c"
    subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def probe(model: Model, batch_size: int, counter: Path, folder: Path) -> Any:
    """Return what the counter sees in a process of its own that trains the model."""
    model.artifact.save(folder / "model.sfd")
    model.state.save(folder / "model.sfs")
    classes = model.artifact.tensors[model.artifact.output].size
    files = (folder / "model.sfd", folder / "model.sfs")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(counter),
        "PYTHONMALLOC": "malloc",  # each object by itself, and no pools
        "SPARSYFED_LIBRARY": _native.library()._name,
    }
    done = subprocess.run(
        [sys.executable, HERE / "allocation_probe.py", *files, str(batch_size), str(classes)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def wide_mlp(width: int) -> Model:
    net = ModelBuilder(Tensor(20, 1, 1, 1))
    x = net.activation(net.linear(0, width), OperationKind.RELU)
    net.linear(net.activation(net.linear(x, width), OperationKind.RELU), 5)
    artifact = net.finish()
    return Model(artifact, random_state(artifact, np.random.default_rng(0), 0.5))


@needs_compiler
@pytest.mark.parametrize("architecture", ["residual", "depthwise", "mlp"])
def test_a_step_takes_no_memory(architecture: str, counter: Path, tmp_path: Path) -> None:
    seen = probe(random_model(architecture, 1, 0.2), 8, counter, tmp_path)
    assert seen["training"]["large"] == 0
    assert seen["buffer"]["large"] == 1, "the counter does not count"


@needs_compiler
def test_what_python_takes_for_a_step_does_not_grow_with_the_model(
    counter: Path, tmp_path: Path
) -> None:
    small, large = (probe(wide_mlp(width), 4, counter, tmp_path) for width in (16, 256))
    assert large["arena"] > 20 * small["arena"]
    assert large["training"] == small["training"]


@pytest.mark.skipif(not SYMBOL_LISTER, reason="nm lists the symbols")
def test_the_core_calls_nothing_that_takes_memory() -> None:
    path = _native.library()._name
    listed = subprocess.run(
        [SYMBOL_LISTER, "--dynamic", "--undefined-only", path],
        check=True,
        capture_output=True,
        text=True,
    )
    entries = [line.split() for line in listed.stdout.splitlines()]
    called = {name.partition("@")[0] for kind, name in entries if kind == "U"}
    assert called, "the list of symbols is empty"
    assert called <= ALLOWED | THREADS
