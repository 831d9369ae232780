"""What several test modules share: a broker, another Python, a program, and hypothesis settings that repeat."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from sparsyfed.tools.broker import PrivateBroker

# A run repeats, and a busy machine is no failure. `--hypothesis-profile=explore` draws anew.
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeat")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file run in one process, for what its fixtures build; a mark may join several files.

    What is marked as long begins first, so that no process is alone with it at the end.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
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
def executorch_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The ExecuTorch program of one of `engine_cases`. Writing one takes seconds: each is written once."""
    from engine_cases import compiled

    from sparsyfed import export

    folder = tmp_path_factory.mktemp("executorch")

    @cache
    def write(name: str) -> Path:
        export.to_executorch(compiled(name), folder / f"{name}.pte", verify=False)
        return folder / f"{name}.pte"

    return write


@pytest.fixture(scope="session")
def bundle(any_training_python: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `engine_bundle` for all engines that are here. Writing one takes long: it is written once."""
    import engine_bundle

    available = engine_bundle.available()
    assert any_training_python is None or "onnx-training" in available
    folder = tmp_path_factory.mktemp("bundle")
    engine_bundle.write(folder, targets=available)
    return folder
