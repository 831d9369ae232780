from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsyfed.coordinator.config import EvaluationConfig
from sparsyfed.coordinator.evaluation import HeldOutData
from sparsyfed.edge_runtime import Artifact, ConfigurationError, State
from sparsyfed.edge_runtime.container import DenseTensor, SparseTensor
from sparsyfed.edge_runtime.format import Loss


def save(folder: Path, x: Any, y: Any) -> EvaluationConfig:
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return EvaluationConfig(x=folder / "x.npy", y=folder / "y.npy")


def test_loss_and_accuracy_equal_those_by_hand(
    tmp_path: Path, artifact: Artifact, dense_state: State
) -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(size=(37, 6)).astype(np.float32)
    y = generator.integers(0, 3, 37)
    data = HeldOutData.load(save(tmp_path, x, y), artifact)
    assert data is not None
    loss, accuracy = data.evaluate(artifact, dense_state, batch_size=8)

    first, _, last, _ = dense_state.tensors
    assert isinstance(first, SparseTensor)
    assert isinstance(last, SparseTensor)
    v1 = np.array(first.value, np.float64).reshape(10, 6)
    v2 = np.array(last.value, np.float64).reshape(3, 10)
    hidden = np.maximum(x @ (np.sign(v1) * np.abs(v1) ** 1.25).T, 0)
    logits = hidden @ (np.sign(v2) * np.abs(v2) ** 1.25).T
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(37), y]
    assert loss == pytest.approx(losses.mean(), rel=1e-5)
    assert accuracy == np.mean(logits.argmax(1) == y)
    assert isinstance(dense_state.tensors[1], DenseTensor)


def test_no_files_no_data(artifact: Artifact) -> None:
    assert HeldOutData.load(EvaluationConfig(), artifact) is None


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((2, 6)), np.zeros(2, np.int32), "x.npy: got float64, wanted float32"),
        (np.zeros((2, 6), np.float32), np.zeros(2, np.int8), "y.npy: got int8, wanted int32 or"),
        (np.zeros((2, 6), np.float32), np.zeros(3, np.int32), "got 2 examples and 3 targets"),
        (np.zeros((0, 6), np.float32), np.zeros(0, np.int32), "got 0 examples"),
        (
            np.zeros((2, 7), np.float32),
            np.zeros(2, np.int32),
            r"shape \(7,\), the model wants \(6,\)",
        ),
        (
            np.zeros((2, 6), np.float32),
            np.array([0, 3]),
            "from 0 to 3, wanted one label from 0 to 2",
        ),
        (np.zeros((2, 6), np.float32), np.array([0, -1]), "from -1 to 0, wanted one label"),
        (np.zeros((2, 6), np.float32), np.zeros((2, 1), np.int64), r"shape \(2, 1\) .* wanted one"),
        (np.zeros((2, 6), np.float32), np.zeros(2, np.float32), "got float32 .* wanted one label"),
    ],
)
def test_bad_data_is_named(
    tmp_path: Path, artifact: Artifact, x: Any, y: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        HeldOutData.load(save(tmp_path, x, y), artifact)


def test_targets_of_a_regression_are_values(tmp_path: Path, artifact: Artifact) -> None:
    regression = replace(artifact, loss=Loss.MEAN_SQUARED_ERROR)
    x = np.zeros((2, 6), np.float32)
    assert HeldOutData.load(save(tmp_path, x, np.zeros((2, 3), np.float32)), regression) is not None
    for y in (np.zeros((2, 2), np.float32), np.zeros((2, 3), np.int32)):
        with pytest.raises(ConfigurationError, match="wanted 3 float32 values an example"):
            HeldOutData.load(save(tmp_path, x, y), regression)


def test_a_pickle_is_not_read(tmp_path: Path, artifact: Artifact) -> None:
    pickled = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "x.npy", pickled, allow_pickle=True)
    np.save(tmp_path / "y.npy", np.zeros(1, np.int32))
    config = EvaluationConfig(x=tmp_path / "x.npy", y=tmp_path / "y.npy")
    with pytest.raises(ConfigurationError, match=r"x.npy: got another kind of file.*numpy.save"):
        HeldOutData.load(config, artifact)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\x93NUMPY\x01\x00"])
def test_another_kind_of_file_is_named_without_advice_to_load_pickles(
    tmp_path: Path, artifact: Artifact, content: bytes
) -> None:
    config = save(tmp_path, np.zeros((1, 6), np.float32), np.zeros(1, np.int32))
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"x.npy: got another kind of file") as caught:
        HeldOutData.load(config, artifact)
    assert "pickle" not in str(caught.value)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(ConfigurationError, match=r"x.npy: No such file or directory$"):
        HeldOutData.load(config, artifact)
