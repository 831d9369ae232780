import pytest

from sparsyfed.devices.takeover import FORGET_S, MAX_TAKEOVERS, Takeovers
from sparsyfed.edge_runtime.errors import ConfigurationError


def test_each_takeover_is_followed_by_one_pause_and_the_last_by_an_error() -> None:
    takeovers = Takeovers("w1", 60.0)
    assert takeovers.pause() == 0.0
    for count in range(1, MAX_TAKEOVERS):
        takeovers.add(100.0 * count)
        assert takeovers.pause() == 60.0
        assert takeovers.pause() == 0.0
    takeovers.add(100.0 * MAX_TAKEOVERS)
    with pytest.raises(ConfigurationError, match="another device uses the id w1"):
        takeovers.pause()


def test_takeovers_of_long_ago_do_not_count() -> None:
    takeovers = Takeovers("w1", 60.0)
    for count in range(3 * MAX_TAKEOVERS):
        takeovers.add(count * (FORGET_S + 1.0))
        assert takeovers.pause() == 60.0
