"""The Top-K of a state, taken by the coordinator."""

from collections.abc import Mapping

from sparsyfed.edge_runtime import Artifact, Session, State


def pruned(
    artifact: Artifact, state: State, sparsity: float, budget: str | Mapping[str, int]
) -> State:
    """The state with the largest |v| by `budget` alone, by the code with which devices choose theirs.

    Raises FormatError, InputError or MismatchError where artifact and state don't belong together.
    """
    with Session.open(artifact, state, batch_size=1) as session:
        return State(session.update(sparsity, budget).tensors, state.round)
