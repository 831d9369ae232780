"""Choosing the kernels of a session."""

import pytest
from session_batches import images

from sparsyfed.edge_runtime import _native, options
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.session import Session
from sparsyfed.edge_runtime.state import State

ABSENT = sorted({"sse2", "avx2", "avx512", "neon"} - set(available_kernels()))


@pytest.fixture(autouse=True)
def no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSYFED_KERNELS", raising=False)


def test_the_portable_kernels_are_everywhere() -> None:
    assert available_kernels()[0] == "portable"


@pytest.mark.parametrize("name", available_kernels())
def test_a_session_runs_the_kernels_that_it_is_told(
    classifier: Artifact, sparse_state: State, name: str
) -> None:
    planned = plan(classifier, sparse_state, 4, kernels=name)
    with Session.open(classifier, sparse_state, 4, kernels=name) as session:
        session.step(*images(4), learning_rate=0.1)
        assert session.kernels == name
        assert session.memory.arena_peak_bytes == planned.arena_bytes


def test_by_default_the_last_available_set_runs(classifier: Artifact, sparse_state: State) -> None:
    with Session.open(classifier, sparse_state, 4) as session:
        assert session.kernels == available_kernels()[-1]


def test_the_environment_names_the_default(
    monkeypatch: pytest.MonkeyPatch, classifier: Artifact, sparse_state: State
) -> None:
    monkeypatch.setenv("SPARSYFED_KERNELS", "portable")
    with Session.open(classifier, sparse_state, 4) as session:
        assert session.kernels == "portable"
    monkeypatch.setenv("SPARSYFED_KERNELS", "fastest")
    with pytest.raises(InputError, match="got SPARSYFED_KERNELS 'fastest', available here: portab"):
        plan(classifier, sparse_state, 4)
    with Session.open(classifier, sparse_state, 4, kernels="portable") as session:
        assert session.kernels == "portable"


@pytest.mark.parametrize("name", ["", "PORTABLE", "automatic", *ABSENT])
def test_a_set_that_is_not_there_is_refused(
    classifier: Artifact, sparse_state: State, name: str
) -> None:
    for use in (plan, Session.open):
        with pytest.raises(InputError, match=f"got kernels '{name}', available here: portable"):
            use(classifier, sparse_state, 4, kernels=name)


def test_the_core_refuses_a_set_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, classifier: Artifact, sparse_state: State
) -> None:
    monkeypatch.setattr(options, "find_kernels", lambda _: 77)
    with pytest.raises(InputError, match="does not have the kernel set"):
        plan(classifier, sparse_state, 4)
    assert not _native.library().sfd_kernels_available(77)
    assert _native.library().sfd_kernels_name(77) is None
