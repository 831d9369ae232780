"""Run with onnxruntime-training, where neither torch nor pytest is: its sessions do what native ones do.

Takes the folder that `test_onnx_training_backend.py` has filled, and the name of a function.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime import Session, SparseTensor, SparseUpdate, State
from sparsyfed.edge_runtime.backends.engine_session import EngineSession
from sparsyfed.edge_runtime.errors import (
    DivergedError,
    FormatError,
    InputError,
    MismatchError,
    SparsyFedError,
)

BACKEND = "onnxruntime-training"
Model = tuple[Path, State, list[tuple[NDArray[Any], NDArray[Any]]]]


def read(folder: Path, name: str) -> Model:
    """Export, state and batches."""
    with np.load(folder / f"{name}.npz") as arrays:
        count = len(arrays.files) // 2
        batches = [(arrays[f"x{turn}"], arrays[f"y{turn}"]) for turn in range(count)]
    return folder / name, State.load(folder / f"{name}.sfs"), batches


def opened(path: Path, state: State) -> EngineSession:
    return Session.open(path, state, batch_size=6, backend=BACKEND)


def native(path: Path, state: State) -> Session:
    return Session.open(path / "model.sfd", state, batch_size=6)


def distance(got: array[float], wanted: array[float]) -> float:
    a, b = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-3))


@contextmanager
def refused(kind: type[SparsyFedError], words: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        if words not in str(error):
            raise
    else:
        raise AssertionError(f"no {kind.__name__}")


def places(update: SparseUpdate) -> set[tuple[str, int, int]]:
    return {
        (tensor.name, row, column)
        for tensor in update.tensors
        if isinstance(tensor, SparseTensor)
        for row in range(tensor.rows)
        for column in tensor.column[tensor.row_pointer[row] : tensor.row_pointer[row + 1]]
    }


def training_agrees_with_the_native_core(folder: Path) -> None:
    for name in ("odd_net", "resnet8", "signal_net"):
        path, state, batches = read(folder, name)
        with opened(path, state) as session, native(path, state) as core:
            assert session.kernels == "onnxruntime-training 1.19.2"
            for x, y in batches[:4]:
                loss, gradients = session.gradients(x, y)
                core_loss, core_gradients = core.gradients(x, y)
                assert abs(loss / core_loss - 1) <= 1e-4
                assert gradients.keys() == core_gradients.keys()
                for key, gradient in gradients.items():
                    assert distance(gradient, core_gradients[key]) <= 1e-3, (name, key)
                rates = {"learning_rate": 0.02, "weight_decay": 1e-3}
                loss, core_loss = session.step(x, y, **rates), core.step(x, y, **rates)
                assert abs(loss / core_loss - 1) <= 1e-4
            loss, correct = session.evaluate(*batches[4])
            core_loss, core_correct = core.evaluate(*batches[4])
            assert abs(loss / core_loss - 1) <= 1e-3
            assert correct == core_correct
            assert session.counters.steps == 4
            assert session.counters.forward is None
            assert (session.memory.process_peak_bytes or 0) > 10_000_000
            update, wanted = session.update(0.95), core.update(0.95)
            assert SparseUpdate.decode(update.encode(), base=state).nonzeros == wanted.nonzeros
            assert len(places(update) & places(wanted)) >= 0.99 * wanted.nonzeros
            for one, other in zip(session.state().tensors, core.state().tensors, strict=True):
                assert distance(one.value, other.value) <= 1e-3, (name, one.name)
            assert session.state().support_id == state.support_id


def an_update_is_that_of_the_native_core_to_the_bit(folder: Path) -> None:
    path, state, _ = read(folder, "mlp")
    # Values that tie in their hundreds, and zeros in the support.
    values = [array("f", np.round(np.asarray(t.value), 1).tolist()) for t in state.tensors]
    state = state.with_values(values, round=7)
    with opened(path, state) as session, native(path, state) as core:
        assert session.state().encode() == state.encode()
        for budget in ("global", "erk", {"1.weight": 700, "5.weight": 3}):
            wanted = core.update(0.9, budget).encode()
            assert session.update(0.9, budget).encode() == wanted


def a_layer_without_a_nonzero_trains_and_stays_empty(folder: Path) -> None:
    path, state, batches = read(folder, "mlp")
    tensors = list(state.tensors)
    place = next(i for i, tensor in enumerate(tensors) if tensor.name == "3.weight")
    full = tensors[place]
    assert isinstance(full, SparseTensor)
    tensors[place] = replace(
        full, row_pointer=array("I", [0] * 129), column=array("H"), value=array("f")
    )
    state = State(tuple(tensors))
    with opened(path, state) as session, native(path, state) as core:
        for x, y in batches[:3]:
            loss = session.step(x, y, learning_rate=0.1)
            assert abs(loss / core.step(x, y, learning_rate=0.1) - 1) <= 1e-5
        assert session.state().tensors[place].count == 0


def a_step_that_diverges_leaves_the_model(folder: Path) -> None:
    for name, factor in (("odd_net", 1e37), ("signal_net", 1e30)):
        path, state, batches = read(folder, name)
        x, y = batches[0]
        with opened(path, state) as session:
            large = x * np.float32(factor)
            with refused(DivergedError, "not finite"):
                session.step(large, y, learning_rate=0.1)
            with refused(DivergedError, "not finite"):
                session.step(x * np.float32(100), y, learning_rate=3e38)
            session.gradients(x, y)
            assert session.state().encode() == state.encode()
            assert session.counters.steps == 0
            wanted = native(path, state).step(x, y, learning_rate=0.01)
            assert abs(session.step(x, y, learning_rate=0.01) / wanted - 1) <= 1e-4


def what_is_wrong_is_refused(folder: Path) -> None:
    path, state, batches = read(folder, "mlp")
    x, y = batches[0]
    with refused(MismatchError, ""):
        opened(path, read(folder, "signal_net")[1])
    with refused(FormatError, "lacks training_model.onnx"):
        opened(folder / "plain", state)
    with refused(FormatError, "checkpoint is not the file"):
        opened(folder / "changed", state)
    session = opened(path, state)
    with refused(InputError, "label outside 0 to 9"):
        session.step(x, y + 10, learning_rate=0.1)
    session.close()
    with refused(InputError, "closed"):
        session.state()
    assert not {"torch", "onnx"} & sys.modules.keys()


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]))
