import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

from sparsyfed import export
from sparsyfed.edge_runtime import Session, SparseTensor, State
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.tools.bench_models import BETA, SEED, BenchModel


@pytest.fixture(scope="module")
def model() -> BenchModel:
    return BenchModel.load("kws_dscnn", None)


def counts(state: State) -> list[int]:
    return [tensor.count for tensor in state.tensors if isinstance(tensor, SparseTensor)]


def whole_counts(model: BenchModel) -> list[int]:
    return counts(model.dense)


def test_random_masks_keep_the_same_share_of_every_layer(model: BenchModel) -> None:
    state = model.masked("random", 0.9, "global", None)
    assert counts(state) == [round(0.1 * count) for count in whole_counts(model)]


def test_random_masks_keep_the_counts_of_a_budget(model: BenchModel) -> None:
    state = model.masked("random", 0.9, "erk", None)
    wanted = keep_counts(model.artifact.parameters, 0.9, "erk")
    assert counts(state) == [wanted[index] for index in model.artifact.prunable]


def test_random_masks_keep_values_where_they_are_and_choose_all_over_a_layer(
    model: BenchModel,
) -> None:
    state = model.masked("random", 0.5, "global", None)
    dense, sparse = model.dense.csr(), state.csr()
    for name, matrix in sparse.items():
        rows, columns = matrix.nonzero()
        np.testing.assert_array_equal(matrix.data, dense[name].toarray()[rows, columns])
        # Of a half, 16 in a row at one side would have a chance of 1 in 65,536.
        assert 0 < rows.mean() < matrix.shape[0]
        assert len(set(rows)) > 1
    State.decode(state.encode())


def test_initial_masks_are_those_of_the_method(model: BenchModel) -> None:
    wanted = export.initial_state(
        export.models.load_model(model.name), beta=BETA, sparsity=0.9, seed=SEED, budget="erk"
    )
    assert model.masked("initial", 0.9, "erk", None).support_id == wanted.support_id


def test_trained_masks_are_the_largest_of_the_trained_state(model: BenchModel) -> None:
    x, y = model.batch(4)
    with Session.open(model.artifact, model.dense, batch_size=4) as session:
        for _ in range(3):
            session.step(x, y, learning_rate=0.5)
        trained = session.state()
        wanted = session.update(sparsity=0.9)
    state = model.masked("trained", 0.9, "global", trained)
    assert [t.value for t in state.tensors] == [t.value for t in wanted.tensors]
    assert state.support_id != model.masked("initial", 0.9, "global", None).support_id
    assert model.masked("trained", 0.0, "global", trained) is trained


def test_the_module_holds_the_dense_state(model: BenchModel) -> None:
    weights = dict(model.module.named_parameters())
    for name, matrix in model.dense.csr().items():
        flat = weights[name].detach().numpy().reshape(matrix.shape)
        np.testing.assert_array_equal(flat, matrix.toarray())
