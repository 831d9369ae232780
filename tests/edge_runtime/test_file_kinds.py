"""A file of the wrong kind is named as what it is, and so is what was wanted."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparsyfed.edge_runtime import Artifact, Session, SparseUpdate, State, plan
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.file_kinds import FLAGS, kind_of


def update_of(state: State) -> bytes:
    return SparseUpdate(state.tensors, state.round, state.support_id).encode()


def test_kinds_are_told_by_their_first_bytes(classifier: Artifact, sparse_state: State) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    assert kind_of(classifier.encode()).value == "a training artifact (.sfd)"
    assert kind_of(sparse_state.encode()).value == "a state (.sfs)"
    assert kind_of(update_of(sparse_state)).value == "an update"
    assert kind_of(array.getvalue()).value == "a NumPy array (.npy)"
    assert kind_of(b"PK\3\4").value == "a zip archive, such as a TorchScript export (.pt)"
    assert kind_of(b"\x1c\0\0\0ET12").value == "an ExecuTorch program (.pte)"
    assert kind_of(b"").value == kind_of(b"some text").value == "another kind of file"


@pytest.mark.parametrize("use", [plan, Session.open])
def test_a_state_and_an_artifact_that_changed_places(
    use: Callable[..., object], classifier: Artifact, sparse_state: State, tmp_path: Path
) -> None:
    sparse_state.save(tmp_path / "a.sfd")
    wanted = r"a.sfd: got a state \(.sfs\), wanted a training artifact \(.sfd\)"
    with pytest.raises(FormatError, match=wanted):
        use(tmp_path / "a.sfd", sparse_state, 4)
    for other, name in (
        (classifier.encode(), r"a training artifact \(.sfd\)"),
        (update_of(sparse_state), "an update"),
        (b"some text", "another kind of file"),
    ):
        with pytest.raises(FormatError, match=rf"got {name}, wanted a state \(.sfs\)"):
            use(classifier, other, 4)
        (tmp_path / "s.sfs").write_bytes(other)
        with pytest.raises(FormatError, match=rf"s.sfs: got {name}, wanted a state"):
            State.load(tmp_path / "s.sfs")


def test_an_engine_is_given_an_artifact(
    classifier: Artifact, sparse_state: State, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    unknown_content = bytearray(sparse_state.encode())
    unknown_content[FLAGS] = b"\xff\xff"
    for data, name in (
        (classifier.encode(), r"a training artifact \(.sfd\)"),
        (bytes(unknown_content), r"a state \(.sfs\) or an update"),
    ):
        (tmp_path / "a.sfd").write_bytes(data)
        with pytest.raises(FormatError, match=rf"got {name}, wanted an export for torch"):
            Session.open(tmp_path / "a.sfd", sparse_state, backend="torchscript")
