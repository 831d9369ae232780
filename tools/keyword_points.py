"""The points of the keyword study: nets, densities, and how they are trained."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from sparsyfed import export
from sparsyfed.edge_runtime import Artifact, State
from sparsyfed.tools.in_process import FederatedJob
from sparsyfed.tools.keyword_data import INPUT_SHAPE

BETA = 1.25
SEEDS = (0, 1, 2)
BUDGET = "erk"
BATCH_SIZE = 1
EPOCHS = 3
ROUNDS = 60
"""Of the runs that choose learning rates, and of the first look at each point."""
DEVICES_PER_ROUND = 10
WEIGHT_DECAY = 1e-3
DENSE_SHARE = 0.5
"""Of the rounds of a pruned point."""
FINAL_SHARE = 0.1
"""The learning rate of the last round, over that of the first."""
LAST_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Point:
    """`export.models.kws_cnn` with these arguments, at a sparsity; without one β is 1.

    It is sparse from the first round on, or after a share of the rounds in which all weights are trained.
    """

    name: str
    widths: tuple[int, ...]
    strides: tuple[int, ...] = (2, 2, 1)
    stem_strides: tuple[int, int] = (4, 2)
    sparsity: float = 0.0
    dense_share: float = 0.0

    @property
    def is_sparse(self) -> bool:
        """Whether it is trained by SparsyFed, not by dense FedAvg."""
        return self.sparsity > 0.0

    @property
    def beta(self) -> float:
        """Exponent of the power-propagation."""
        return BETA if self.is_sparse else 1.0

    @property
    def family(self) -> str:
        """Points whose learning rates are compared."""
        if not self.is_sparse:
            return "dense-narrow"
        return "pruned-wide" if self.dense_share else "sparse-wide"

    def settings(self) -> dict[str, Any]:
        """What the net of the point is known by: plain values, without the name."""
        return {
            "widths": list(self.widths),
            "strides": list(self.strides),
            "stem_strides": list(self.stem_strides),
            "sparsity": self.sparsity,
            "beta": self.beta,
        }

    def compile(self, seed: int) -> tuple[Artifact, State]:
        """Artifact and initial state for round 1, of this sparsity already."""
        return self._compile(seed, self.sparsity)

    def beginning(self, seed: int) -> tuple[Artifact, State]:
        """The same, dense where the first rounds are."""
        return self._compile(seed, 0.0 if self.dense_share else self.sparsity)

    def _compile(self, seed: int, sparsity: float) -> tuple[Artifact, State]:
        torch.manual_seed(seed)
        model = export.models.kws_cnn(
            widths=self.widths, strides=self.strides, stem_strides=self.stem_strides
        )
        artifact = export.compile(model, torch.zeros(1, *INPUT_SHAPE), beta=self.beta).native
        state = export.initial_state(
            model, beta=self.beta, sparsity=sparsity, seed=seed, budget=BUDGET
        )
        return artifact, State(state.tensors, round=1)

    def job(self, seed: int, rate: float, rounds: int) -> FederatedJob:
        """The rounds of this point at a learning rate."""
        return FederatedJob(
            rounds=rounds,
            seed=seed,
            sparsity=self.sparsity,
            learning_rate=rate,
            final_learning_rate=FINAL_SHARE * rate,
            batch_size=BATCH_SIZE,
            epochs=EPOCHS,
            weight_decay=WEIGHT_DECAY,
            budget=BUDGET,
            devices_per_round=DEVICES_PER_ROUND,
            dense_rounds=round(self.dense_share * rounds),
        )


_WIDE = (16, 48, 64, 128)
SPOTTER = Point("S2", _WIDE, sparsity=0.95)
"""`kws_cnn` with its default arguments: too large for boards without sparsity."""
SPOTTER_DENSE = Point("kws_cnn, dense", _WIDE)
_MEDIUM = (16, 32, 48, 64)
POINTS = (
    Point("D1", (8, 8, 12, 16)),
    Point("D2", (8, 12, 16, 24)),
    Point("D3", (8, 16, 32), (2, 2)),
    Point("D4", (8, 12, 16, 24), stem_strides=(2, 2)),
    Point("D5", (12, 16, 24, 32)),
    Point("D6", (16, 24, 32, 48)),
    Point("D7", (8, 8, 12, 16), stem_strides=(2, 2)),
    Point("S1", _WIDE, sparsity=0.975),
    SPOTTER,
    Point("S3", _WIDE, sparsity=0.9),
    Point("S4", (32, 64, 160), (2, 2), sparsity=0.95),
    Point("S5", _MEDIUM, sparsity=0.875),
    Point("S6", _MEDIUM, sparsity=0.75),
    Point("S7", (12, 24, 32, 48), sparsity=0.75),
    Point("S8", (12, 24, 32, 48), stem_strides=(2, 2), sparsity=0.75),
    Point("S9", (8, 16, 24, 32), stem_strides=(2, 2), sparsity=0.75),
)
"""Dense-narrow points from few weights to many, sparse-wide ones that store about as many in wider nets."""
PRUNED_POINTS = tuple(
    replace(point, name=point.name.replace("S", "P"), dense_share=DENSE_SHARE)
    for point in POINTS
    if point.name in {"S1", "S2", "S5", "S8"}
)
"""Some of the sparse-wide nets, pruned after dense rounds; on a board they are what these are."""


def unpruned(point: Point) -> Point:
    """The point with the same net that is sparse from the first round on."""
    return replace(point, name=point.name.replace("P", "S"), dense_share=0.0)


RATES = {
    "dense-narrow": (0.03, 0.06, 0.12),
    "sparse-wide": (0.05, 0.1, 0.2),
    "pruned-wide": (0.05, 0.1, 0.2),
}
TUNED = ("D2", "D5", "S2", "S5", "P2", "P5", "P8")
"""Points by which the learning rate of their family is chosen."""


LARGER_BATCH = 8
MEASURED = (
    *((point, BATCH_SIZE) for point in POINTS),
    (SPOTTER_DENSE, BATCH_SIZE),
    (SPOTTER, LARGER_BATCH),
)
"""Points and batch sizes that are measured on the board."""


WIDER = (("D2", "S7", "S5", "S2"), ("D5", "S6", "S3"))
"""Points that store about as many weights, from the narrowest net to the widest."""

FINER = (("D1", "D7"), ("D2", "D4"), ("S7", "S8"))
"""The same net with two strides of its first convolution in time."""

LONGER_ROUNDS = 3 * ROUNDS
"""Of the runs that points are compared by."""
LONGEST_ROUNDS = 9 * ROUNDS
LONGEST = ("D4", "S8")
"""Points that are trained for LONGEST_ROUNDS, too: the best of their families within the RAM of a recommendation."""


def tuning_grid() -> list[tuple[Point, float]]:
    """What is tried for the learning rates."""
    tuned = [point for point in (*POINTS, *PRUNED_POINTS) if point.name in TUNED]
    return [(point, rate) for point in tuned for rate in RATES[point.family]]
