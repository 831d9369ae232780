"""Which blocks to ask for, and when, over a link that loses messages."""

from random import Random

from sparsyfed.devices.storage import PartialObject
from sparsyfed.edge_runtime.messages import MAX_REQUESTED_BLOCKS


def full_jitter(random: Random, attempt: int, base: float, limit: float) -> float:
    """Seconds before the next try: uniform over [0, min(limit, base · 2^attempt)]."""
    return random.uniform(0.0, min(limit, base * 2.0 ** min(attempt, 62)))


class Pull:
    """A window of at most 16 blocks in flight; a block that does not come is asked for again.

    The time a block may take doubles with each silent timeout, up to `limit` seconds, and falls back
    with the next block that arrives. Up to half of it is added at random, so that a fleet that lost its
    coordinator at one moment does not ask again at one moment.
    """

    def __init__(
        self, partial: PartialObject, random: Random, *, timeout: float = 2.0, limit: float = 60.0
    ) -> None:
        self.partial = partial
        self._random = random
        self._timeout = timeout
        self._limit = limit
        self._silent = 0
        self._due: dict[int, float] = {}

    def requests(self, now: float) -> tuple[int, ...]:
        """Blocks to ask for now; empty while at least half the window is still in flight."""
        late = [index for index, due in self._due.items() if due <= now]
        for index in late:
            del self._due[index]
        if late:
            self._silent += 1
        if not late and len(self._due) > MAX_REQUESTED_BLOCKS // 2:
            return ()
        chosen: list[int] = []
        for index in self.partial.missing():
            if len(self._due) == MAX_REQUESTED_BLOCKS:
                break
            if index not in self._due:
                patience = min(self._limit, self._timeout * 2.0 ** min(self._silent, 30))
                self._due[index] = now + patience * (1.0 + self._random.random() / 2.0)
                chosen.append(index)
        return tuple(chosen)

    def receive(self, index: int, data: bytes) -> None:
        """Take a block, asked for or not, once or twice.

        Raises FormatError if its content is wrong.

        A wrong block stays in flight and is asked for again when its time is over: a source that is
        damaged is not asked at the speed of the link.
        """
        self.partial.store(index, data)
        self._due.pop(index, None)
        self._silent = 0

    @property
    def next_due(self) -> float | None:
        """When the first block in flight is late; None if none is."""
        return min(self._due.values(), default=None)
