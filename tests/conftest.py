"""What several test modules share: a private broker, another Python, and hypothesis settings that repeat."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from sparsyfed.tools.broker import PrivateBroker

# A run repeats, and a busy machine is no failure. `--hypothesis-profile=explore` draws anew.
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeat")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[PrivateBroker]:
    """A mosquitto on a free loopback port, of this test alone."""
    with PrivateBroker(tmp_path / "broker") as running:
        yield running


@pytest.fixture(scope="session")
def training_python() -> Iterator[Path]:
    """The Python that has onnxruntime-training, where exports look for it."""
    environment = Path(__file__).parent.parent / ".venv-onnxruntime-training"
    if not (environment / ".installed").exists():
        pytest.skip(f"{environment} lacks onnxruntime-training-cpu 1.19.2: `make setup` says why")
    python = environment / "bin" / "python"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSYFED_ONNXRUNTIME_TRAINING_PYTHON", str(python))
        yield python
