"""A local round for a board: what the tests of boards do, and compare with the same round here."""

from dataclasses import dataclass

import pytest

from sparsyfed.devices.board import Board
from sparsyfed.devices.board_fit import fit_on_board
from sparsyfed.devices.board_training import train_on_board
from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.training import LocalResult, LocalRound
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import ArenaError
from sparsyfed.edge_runtime.plan import plan

MEMORY = 1 << 20
WORK = LocalRound(
    round=4,
    batch_size=8,
    epochs=2,
    learning_rate=0.1,
    weight_decay=1e-3,
    sparsity=0.5,
    budget="global",
    seed=5,
)


@dataclass(frozen=True)
class BoardTask:
    """A local round to do."""

    artifact: Artifact
    state: bytes
    dataset: Dataset

    def train(self, board: Board, memory: int = MEMORY) -> LocalResult:
        """The round on a board."""
        return train_on_board(
            board, self.artifact, self.state, self.dataset, WORK, memory_bytes=memory
        )

    def layout(self, batch_size: int) -> bytes:
        """Of the plan with the least work."""
        return plan(self.artifact, self.state, batch_size, kernels="portable").layout

    def least_memory(self) -> int:
        """Memory in which a batch fits, and not all examples."""
        with pytest.raises(ArenaError) as caught:
            fit_on_board(self.artifact, self.state, WORK.batch_size, 100, len(self.dataset))
        return caught.value.wanted
