"""Learning rate of a round."""

import math


def learning_rate(round_number: int, rounds: int, initial: float, final: float) -> float:
    """Learning rate of round t: initial * (final / initial) ** (t / rounds), t = 1 .. rounds.

    An exponential decay that reaches `final` in the last round (SparsyFed, arXiv 2504.05153).
    """
    return initial * math.pow(final / initial, round_number / rounds)
