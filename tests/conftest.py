"""What several test modules share: a private broker, and hypothesis settings that repeat."""

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
