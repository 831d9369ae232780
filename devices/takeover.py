"""Two devices with one id: the broker lets only the one that came last stay."""

import logging

from sparsyfed.edge_runtime.errors import ConfigurationError

MAX_TAKEOVERS = 3
FORGET_S = 3600.0

logger = logging.getLogger(__name__)


class Takeovers:
    """Counts how often another client took this device's session, and says how long to stay away.

    MQTT tells the client that was there before, never the newcomer, so neither can know which of the two has the
    wrong id. A pause before the return leaves the other one the time to do its work; one that was pushed out
    MAX_TAKEOVERS times gives up, so that of two that share an id one is left.
    """

    def __init__(self, device: str, pause_s: float) -> None:
        self._device = device
        self._pause_s = pause_s
        self._count = 0
        self._last = 0.0
        self._is_out = False

    def add(self, now: float) -> None:
        """Count a takeover at `now`, in seconds; those of long ago are forgotten."""
        self._count = 1 if now - self._last > FORGET_S else self._count + 1
        self._last = now
        self._is_out = True
        logger.error("another device uses the id %s: give each its own", self._device)

    def pause(self) -> float:
        """Seconds to stay away after a takeover, 0 otherwise. Raises ConfigurationError after too many."""
        if not self._is_out:
            return 0.0
        self._is_out = False
        if self._count >= MAX_TAKEOVERS:
            raise ConfigurationError(
                f"another device uses the id {self._device}: it took the link over {self._count} times"
            )
        return self._pause_s
