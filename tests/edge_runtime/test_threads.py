"""A session with threads: the same bits, the planned memory, and no thread left behind."""

import platform
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_strategies import ARCHITECTURES, Model, ModelBuilder, random_model, random_state
from session_batches import images

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.format import Loss, OperationKind
from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.session import Session
from sparsyfed.edge_runtime.state import State

ROOT = Path(__file__).parents[2]
CORE = ROOT / "edge_runtime" / "csrc"
TASKS = Path("/proc/self/task")
NOT_PLANNED = 4  # of train_steps.c

COMPILER = shutil.which("cc") or ""

needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler")
counts_threads = pytest.mark.skipif(not TASKS.exists(), reason="/proc lists the threads")


def threads_alive() -> int:
    return len(list(TASKS.iterdir()))


def batch(artifact: Artifact, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count * artifact.tensors[0].size).astype(np.float32)
    outputs = artifact.tensors[artifact.output].size
    if artifact.loss is Loss.CROSS_ENTROPY:
        return x, rng.integers(0, outputs, count, dtype=np.int32)
    return x, rng.normal(size=(count, outputs)).astype(np.float32)


def train(model: Model, kernels: str, threads: int) -> tuple[bytes, ...]:
    """Gradients of a batch, and the state after five steps with whole blocks and a rest.

    How much is computed again is left out of the counters: plans differ by the scratch of threads.
    """
    size = 37
    planned = plan(model.artifact, model.state, size, kernels=kernels, threads=threads)
    with Session.open(
        model.artifact, model.state, size, kernels=kernels, threads=threads
    ) as session:
        assert session.threads == threads
        _, gradients = session.gradients(*batch(model.artifact, size, seed=0))
        for step, count in enumerate((size, 16, 32, 5, size), start=1):
            session.step(*batch(model.artifact, count, seed=step), learning_rate=0.02)
        assert session.memory.arena_peak_bytes == planned.arena_bytes
        values = [values.tobytes() for values in gradients.values()]
        counters = replace(session.counters, recomputed=0)
        return *values, session.state().encode(), str(counters).encode()


@pytest.mark.parametrize("density", [0.05, 0.5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernels", available_kernels())
def test_threads_change_no_bit(kernels: str, architecture: str, density: float) -> None:
    model = random_model(architecture, 4, density)
    alone = train(model, kernels, 1)
    for threads in (2, 3, 16):
        assert train(model, kernels, threads) == alone


def large_images(height: int) -> Model:
    """Layers of several strips, inputs of which Top-K takes a sample, groups and strides."""
    net = ModelBuilder(Tensor(3, height, 31, 3))
    x = net.convolution(0, 16, (3, 3), padding=(1, 1))
    x = net.activation(net.batch_norm(x), OperationKind.RELU)
    x = net.convolution(x, 24, (3, 3), stride=(2, 2), padding=(1, 1), groups=2)
    x = net.activation(net.batch_norm(x), OperationKind.RELU)
    x = net.convolution(x, 70, (3, 3), padding=(1, 1), bias=True)
    net.linear(net.reshape(net.adaptive_pool(x, 1, 1)), 5)
    artifact = net.finish()
    return Model(artifact, random_state(artifact, np.random.default_rng(0), 0.1))


@pytest.mark.parametrize("height", [32, 33])
@pytest.mark.parametrize("kernels", available_kernels()[1:])
def test_threads_change_no_bit_of_large_images(kernels: str, height: int) -> None:
    """Two threads share the strips of the lower images among them, five those of the others."""
    model = large_images(height)
    alone = train(model, kernels, 1)
    for threads in (2, 3, 5):
        assert train(model, kernels, threads) == alone


def test_the_plan_counts_the_threads(classifier: Artifact, sparse_state: State) -> None:
    sizes = [plan(classifier, sparse_state, 16, threads=count).arena_bytes for count in (1, 2, 16)]
    assert sizes == sorted(set(sizes))


@counts_threads
def test_a_closed_session_leaves_no_thread(classifier: Artifact, sparse_state: State) -> None:
    before = threads_alive()
    for _ in range(20):
        session = Session.open(classifier, sparse_state, 4, threads=3)
        assert threads_alive() == before + 2
        session.step(*images(4), learning_rate=0.1)
        session.close()
        session.close()
        assert threads_alive() == before


@counts_threads
def test_a_dropped_session_leaves_no_thread(classifier: Artifact, sparse_state: State) -> None:
    before = threads_alive()
    session = Session.open(classifier, sparse_state, 4, threads=2)
    assert threads_alive() == before + 1
    del session
    assert threads_alive() == before


@counts_threads
def test_sessions_have_threads_of_their_own(classifier: Artifact, sparse_state: State) -> None:
    before = threads_alive()
    sessions = [Session.open(classifier, sparse_state, 4, threads=2) for _ in range(10)]
    assert threads_alive() == before + 10
    losses = {session.step(*images(4), learning_rate=0.1) for session in sessions}
    assert len(losses) == 1
    for session in sessions:
        session.close()
    assert threads_alive() == before


@pytest.mark.parametrize("threads", [0, 17, -1, True, 2.0, None])
def test_other_numbers_are_refused(classifier: Artifact, sparse_state: State, threads: int) -> None:
    for use in (plan, Session.open):
        with pytest.raises(InputError, match=f"got threads {threads!r}, wanted 1 to 16"):
            use(classifier, sparse_state, 4, threads=threads)


def test_the_core_refuses_too_many(
    monkeypatch: pytest.MonkeyPatch, classifier: Artifact, sparse_state: State
) -> None:
    monkeypatch.setattr("sparsyfed.edge_runtime.arguments.MAX_THREADS", 99)
    with pytest.raises(InputError, match=r"so many threads \(got 17, wanted 16\)"):
        plan(classifier, sparse_state, 4, threads=17)


@needs_compiler
def test_a_core_without_threads_says_so(tmp_path: Path) -> None:
    arguments = training_files(tmp_path, random_model("residual", 4, 0.1))
    program = compile_training(tmp_path, [])
    assert run(program, arguments, 1, tmp_path).returncode == 0
    assert run(program, arguments, 2, tmp_path).returncode == NOT_PLANNED


def training_files(folder: Path, model: Model) -> list[str]:
    """A model, its state, and the other arguments of train_steps.c but for the threads."""
    model.artifact.save(folder / "model.sfd")
    model.state.save(folder / "model.sfs")
    size, outputs = (model.artifact.tensors[i].size for i in (0, model.artifact.output))
    assert model.artifact.loss is Loss.CROSS_ENTROPY
    keep = model.state.nonzeros // 2
    numbers = (size, outputs, 37, 4, keep, int(_native.Target.INT32))
    return ["model.sfd", "model.sfs", *map(str, numbers)]


def compile_training(folder: Path, flags: list[str]) -> Path:
    """Build train_steps.c with the core and, on x86-64, the kernels for every such processor."""
    sources = [ROOT / "tests" / "c" / "train_steps.c", *sorted(CORE.glob("*.c"))]
    if platform.machine() == "x86_64":
        flags = [*flags, "-DSFD_WITH_SSE2"]
        sources += [CORE / "fast" / "sfd_sse2.c", *sorted((CORE / "fast").glob("fast_*.c"))]
    program = folder / "train_steps"
    command = [COMPILER, "-std=c99", "-O1", "-g1", *flags, f"-I{CORE}", *map(str, sources), "-lm"]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=600)
    return program


def run(
    program: Path, arguments: list[str], threads: int, folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments, str(threads)],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )


@needs_compiler
def test_the_thread_sanitizer_finds_no_race(tmp_path: Path) -> None:
    flags = ["-fsanitize=thread", "-DSFD_WITH_THREADS", "-pthread"]
    probe = subprocess.run(
        [COMPILER, *flags, "-x", "c", "-", "-o", str(tmp_path / "probe")],
        input="int main(void) { return 0; }",
        text=True,
        check=False,
        capture_output=True,
    )
    if probe.returncode or subprocess.run([tmp_path / "probe"], check=False).returncode:
        pytest.skip("the compiler has no ThreadSanitizer")
    program = compile_training(tmp_path, flags)
    for model, threads in ((random_model("residual", 4, 0.1), 3), (large_images(32), 2)):
        arguments = training_files(tmp_path, model)
        results = [run(program, arguments, count, tmp_path) for count in (1, threads)]
        assert [result.returncode for result in results] == [0, 0], results[1].stderr[-4000:]
        assert results[0].stdout == results[1].stdout
