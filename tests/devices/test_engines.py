"""A local round on every engine gives the same update."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import engine_bundle

from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.training import LocalEngine, LocalResult, LocalRound, train_locally
from sparsyfed.edge_runtime import SparseUpdate, State
from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.export.targets import TARGETS

WORK = LocalRound(
    round=0,
    batch_size=16,
    epochs=2,
    learning_rate=0.05,
    weight_decay=1e-3,
    sparsity=0.8,
    budget="global",
    seed=3,
)


@pytest.fixture(scope="module")
def results(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalResult]:
    """One round of each engine on the same data with the same seed."""
    data = Dataset(engine_bundle.save_data(tmp_path_factory.mktemp("data"), 72))
    return {
        name: trained(bundle, name, data)
        for name in engine_bundle.available()
        if TARGETS[name].python == sys.executable
    }


def trained(bundle: Path, name: str, data: Dataset) -> LocalResult:
    return train_locally(
        engine_bundle.opened(bundle, name),
        engine_bundle.initial(bundle).encode(),
        data,
        WORK,
        memory_bytes=1 << 28,
        engine=LocalEngine.load(TARGETS[name].backend),
    )


def test_updates_of_all_engines_agree(results: dict[str, LocalResult], bundle: Path) -> None:
    base = engine_bundle.initial(bundle)
    for name, result in results.items():
        agree(name, result, results["native"], base)


def test_an_export_by_the_cores_kernels_trains_the_same(
    results: dict[str, LocalResult], tmp_path: Path
) -> None:
    if TARGETS["onnx"].missing():
        pytest.skip("no onnxruntime here")
    engine_bundle.write(tmp_path / "bundle", targets=["onnx"], kernels="sparsyfed")
    data = Dataset(engine_bundle.save_data(tmp_path / "data", 72))
    result = trained(tmp_path / "bundle", "onnx", data)
    agree("onnx", result, results["native"], engine_bundle.initial(tmp_path / "bundle"))
    assert result.profile.engine is not None
    assert result.profile.engine.endswith("sparsyfed kernels")


def agree(name: str, result: LocalResult, native_result: LocalResult, base: State) -> None:
    update, native = decoded(result, base), decoded(native_result, base)
    assert np.mean((update != 0) == (native != 0)) == 1 or shared(update, native) >= 0.99, name
    both = (update != 0) & (native != 0)
    distance = np.linalg.norm(update[both] - native[both]) / np.linalg.norm(native[both])
    assert distance <= 1e-3, name
    assert result.loss == pytest.approx(native_result.loss, rel=1e-3)


def decoded(result: LocalResult, base: State) -> np.ndarray:
    """All prunable weights of an update, dense, one after the other."""
    update = SparseUpdate.decode(result.update, base=base)
    return np.concatenate([matrix.toarray().ravel() for matrix in update.csr().values()])


def shared(one: np.ndarray, other: np.ndarray) -> float:
    """Share of the support of both that each has."""
    return np.count_nonzero((one != 0) & (other != 0)) / np.count_nonzero((one != 0) | (other != 0))


def test_an_engine_tells_what_it_knows_and_nothing_else(results: dict[str, LocalResult]) -> None:
    for name, result in results.items():
        profile = result.profile
        assert profile.backend == TARGETS[name].backend
        assert 0 < (profile.base_rss_bytes or 0) <= (profile.peak_rss_bytes or 0)
        known = name == "native"
        assert (profile.planned_arena_bytes is not None) is known
        assert (profile.arena_peak_bytes is not None) is known
        assert (profile.multiply_adds is not None) is known
        assert (result.multiply_adds_per_second is not None) is known
        assert profile.engine


def test_an_engine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BackendError, match="got backend 'tflite', available: native, "):
        LocalEngine.load("tflite")
