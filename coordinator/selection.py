"""Drawing the devices of a round."""

import math
from collections.abc import Iterable
from random import Random


def draw_order(devices: Iterable[str], *, seed: int, round_number: int, attempt: int) -> list[str]:
    """The devices in the random order in which they are offered work.

    The order depends on the set of devices and on (seed, round, attempt) alone, never on who came first.
    """
    order = sorted(devices)
    Random(f"{seed}:{round_number}:{attempt}").shuffle(order)  # noqa: S311 - guards nothing
    return order


def offer_count(goal: int, over_selection: float, available: int) -> int:
    """Devices to offer work to: ceil(over_selection * goal), but no more than are available."""
    return min(available, math.ceil(round(over_selection * goal, 9)))


def quorum_count(goal: int, quorum: float) -> int:
    """Updates that are enough at the deadline: ceil(quorum * goal), at least one."""
    return max(1, math.ceil(round(quorum * goal, 9)))
