from dataclasses import replace

from sparsyfed.coordinator.pruning import pruned
from sparsyfed.edge_runtime import Artifact, Session, State


def test_the_top_k_is_that_of_devices_in_the_round_of_the_state(
    artifact: Artifact, dense_state: State
) -> None:
    state = replace(dense_state, round=4)
    sparse = pruned(artifact, state, 0.8, "global")
    assert (sparse.nonzeros, sparse.round) == (18, 4)
    with Session.open(artifact, dense_state, batch_size=1) as session:
        assert sparse.tensors == session.update(0.8).tensors


def test_a_budget_holds_for_each_layer(artifact: Artifact, dense_state: State) -> None:
    sparse = pruned(artifact, dense_state, 0.8, {"first.weight": 5, "last.weight": 2})
    counts = {tensor.name: tensor.count for tensor in sparse.tensors}
    assert (counts["first.weight"], counts["last.weight"]) == (5, 2)
