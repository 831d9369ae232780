import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsyfed.coordinator.config import Configuration, EvaluationConfig
from sparsyfed.coordinator.job import prepare
from sparsyfed.coordinator.store import Store
from sparsyfed.edge_runtime import Artifact, ConfigurationError, Session, State


def configuration(folder: Path, **job: Any) -> Configuration:
    table = {"name": "j", "rounds": 2, "sparsity": 0.8, "seed": 1} | job
    data = {
        "job": table,
        "training": {"learning_rate": 0.1},
        "store": {"directory": "store"},
    }
    return Configuration.from_mapping(data, folder=folder)


@pytest.fixture
def files(tmp_path: Path, artifact: Artifact, dense_state: State) -> dict[str, str]:
    artifact.save(tmp_path / "a.sfd")
    dense_state.save(tmp_path / "a.sfs")
    return {"artifact": "a.sfd", "state": "a.sfs"}


def test_a_new_job_is_journalled_and_goes_on_without_its_files(
    tmp_path: Path, files: dict[str, str], artifact: Artifact, dense_state: State
) -> None:
    config = configuration(tmp_path, **files)
    with Store(tmp_path / "store") as store:
        assert prepare(config, store) == artifact
        assert State.decode(store.state(1)) == dense_state
    with Store(tmp_path / "store") as store:
        assert prepare(config, store) == artifact


def test_presparsified_start_is_the_top_k_that_devices_use(
    tmp_path: Path, files: dict[str, str], artifact: Artifact, dense_state: State
) -> None:
    config = configuration(tmp_path, first_round="presparsified", **files)
    with Store(tmp_path / "store") as store:
        prepare(config, store)
        state = State.decode(store.state(1))
    assert state.nonzeros == 18
    assert state.round == 1
    with Session.open(artifact, dense_state, batch_size=1) as session:
        assert state.tensors == session.update(0.8).tensors


def test_other_settings_for_the_same_store_are_refused(
    tmp_path: Path, files: dict[str, str], dense_state: State
) -> None:
    with Store(tmp_path / "store") as store:
        prepare(configuration(tmp_path, **files), store)
        with pytest.raises(ConfigurationError, match="holds a job with seed = 1, got 2"):
            prepare(configuration(tmp_path, **files, seed=2), store)
        State(dense_state.tensors[:-1] + dense_state.tensors[-1:], round=9).save(tmp_path / "a.sfs")
        with pytest.raises(ConfigurationError, match="holds a job with state = "):
            prepare(configuration(tmp_path, **files), store)


def test_files_that_are_absent_or_do_not_belong_together_are_named(
    tmp_path: Path, files: dict[str, str], dense_state: State
) -> None:
    with Store(tmp_path / "store") as store:
        with pytest.raises(ConfigurationError, match=r"\[job\] artifact: .*absent.sfd"):
            prepare(configuration(tmp_path, **files | {"artifact": "absent.sfd"}), store)
        for key, other in (("artifact", "a.sfs"), ("state", "a.sfd")):
            with pytest.raises(ConfigurationError, match=rf"\[job\] {key}: .*{other}: "):
                prepare(configuration(tmp_path, **files | {key: other}), store)
        State(dense_state.tensors[:2], round=1).save(tmp_path / "a.sfs")
        with pytest.raises(ConfigurationError, match=r"\[job\] artifact .*a.sfd, state .*a.sfs: "):
            prepare(configuration(tmp_path, **files), store)
        assert store.job() is None
    assert not (tmp_path / "store").exists()


def test_held_out_data_is_checked_before_the_job_is_journalled(
    tmp_path: Path, files: dict[str, str]
) -> None:
    config = configuration(tmp_path, **files)
    absent = EvaluationConfig(x=tmp_path / "x.npy", y=tmp_path / "y.npy")
    with Store(tmp_path / "store") as store:
        with pytest.raises(ConfigurationError, match=r"\[evaluation\] x: .*x.npy"):
            prepare(replace(config, evaluation=absent), store)
        assert store.job() is None


def test_a_job_that_is_done_is_called_so(
    tmp_path: Path, files: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = configuration(tmp_path, **files)
    with Store(tmp_path / "store") as store:
        prepare(config, store)
        prepare(config, store)
        store.set_done()
        prepare(config, store)
    assert caplog.messages == [
        "job j: new, 2 rounds",
        "job j: going on with round 1",
        "job j is already done (2 rounds)",
    ]


def test_a_named_model_is_compiled(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    config = configuration(tmp_path, model="linear", beta=1.5, first_round="presparsified")
    with Store(tmp_path / "store") as store:
        artifact = prepare(config, store)
        state = State.decode(store.state(1))
    assert artifact.beta == 1.5
    assert state.density == pytest.approx(0.2, abs=1e-3)
    with Store(tmp_path / "other") as store, pytest.raises(ConfigurationError, match="no model"):
        prepare(configuration(tmp_path, model="no_such_model"), store)
    with Store(tmp_path / "other") as store, pytest.raises(ConfigurationError, match="input_shape"):
        prepare(configuration(tmp_path, model="sparsyfed.export.models:linear"), store)
    config = configuration(
        tmp_path, model="sparsyfed.export.models:linear", input_shape=[1, 28, 28]
    )
    with Store(tmp_path / "third") as store:
        assert prepare(config, store).tensors[0].shape == (1, 28, 28)
