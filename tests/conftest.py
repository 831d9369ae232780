"""What several test modules share: a broker, another Python, a program, and hypothesis settings that repeat."""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from sparsyfed.tools.broker import PrivateBroker

WriteOnce = Callable[[str, Callable[[Path], object]], Path]

# A run repeats, and a busy machine is no failure. `--hypothesis-profile=explore` draws anew.
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeat")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked as long begins first, so that no process is alone with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[PrivateBroker]:
    """A mosquitto on a free loopback port, of this test alone."""
    with PrivateBroker(tmp_path / "broker") as running:
        yield running


@pytest.fixture(scope="session")
def any_training_python() -> Iterator[Path | None]:
    """The Python that has onnxruntime-training, where exports look for it; None if there is none."""
    environment = Path(__file__).parent.parent / ".venv-onnxruntime-training"
    if not (environment / ".installed").exists():
        yield None
        return
    python = environment / "bin" / "python"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSYFED_ONNXRUNTIME_TRAINING_PYTHON", str(python))
        yield python


@pytest.fixture(scope="session")
def training_python(any_training_python: Path | None) -> Path:
    """The same for tests of it alone."""
    if any_training_python is None:
        pytest.skip("no onnxruntime-training-cpu 1.19.2 here: `make setup` says why")
    return any_training_python


@pytest.fixture(scope="session")
def write_once(tmp_path_factory: pytest.TempPathFactory) -> WriteOnce:
    """Gives a path of this name, written by the first of the processes that run tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def write_once(name: str, write: Callable[[Path], object]) -> Path:
        path, partial = folder / name, folder / f"partial-{name}"
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                write(partial)
                partial.rename(path)
        return path

    return write_once


@pytest.fixture(scope="session")
def executorch_file(write_once: WriteOnce) -> Callable[[str], Path]:
    """The ExecuTorch program of one of `engine_cases`. Writing one takes seconds: each is written once."""
    from engine_cases import compiled

    from sparsyfed import export

    def file(name: str) -> Path:
        return write_once(
            f"{name}.pte", lambda path: export.to_executorch(compiled(name), path, verify=False)
        )

    return file


@pytest.fixture(scope="session")
def bundle(any_training_python: Path | None, write_once: WriteOnce) -> Path:
    """A bundle of `engine_bundle` for all engines that are here. Writing one takes long: it is written once."""
    import engine_bundle

    available = engine_bundle.available()
    assert any_training_python is None or "onnx-training" in available
    return write_once("bundle", lambda path: engine_bundle.write(path, targets=available))
