"""What changes from round to round: learning rate and sparsity."""

import math


def learning_rate(round_number: int, rounds: int, initial: float, final: float) -> float:
    """Learning rate of round t: initial * (final / initial) ** (t / rounds), t = 1 .. rounds.

    An exponential decay that reaches `final` in the last round (SparsyFed, arXiv 2504.05153).
    """
    return initial * math.pow(final / initial, round_number / rounds)


def update_sparsity(round_number: int, dense_rounds: int, sparsity: float) -> float:
    """Sparsity of the updates of round t: none in the first `dense_rounds` rounds, then that of the job."""
    return 0.0 if round_number <= dense_rounds else sparsity
