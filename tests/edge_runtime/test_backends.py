"""Sessions on other engines do what native ones do."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import batch, compiled, state_at

from sparsyfed import export
from sparsyfed.edge_runtime import Session, SparseTensor, SparseUpdate, State
from sparsyfed.edge_runtime.backends import ENGINES
from sparsyfed.edge_runtime.backends.engine_session import EngineSession
from sparsyfed.edge_runtime.errors import (
    BackendError,
    DivergedError,
    FormatError,
    InputError,
    MismatchError,
)

pytestmark = pytest.mark.long

ENGINE_NAMES = ("onnxruntime", "torchscript", "executorch")
OWN_ONNX = "onnxruntime (sparsyfed)"
BACKENDS = (*ENGINE_NAMES, OWN_ONNX)
"""The first word is the name of the engine."""
DEVICE = """
import sys
import numpy as np
from sparsyfed.edge_runtime import Session, State
batch = np.load("batch.npz")
state = State.load("state.sfs")
with Session.open("out", state, batch_size=8, backend="onnxruntime") as session:
    print(session.step(batch["x"], batch["y"], learning_rate=0.1))
    session.update(0.5).encode()
    print(session.memory.process_peak_bytes)
assert "torch" not in sys.modules
"""

Exported = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, executorch_file: Callable[[str], Path]
) -> Exported:
    """The path of a model's export for a backend."""
    folder = tmp_path_factory.mktemp("exports")

    @cache
    def write(name: str, backend: str) -> Path:
        if backend == "executorch":
            return executorch_file(name)
        path = folder / f"{name}.{backend}"
        if backend == "torchscript":
            export.to_torchscript(compiled(name), path, verify=False)
        else:
            kernels = "sparsyfed" if backend == OWN_ONNX else "stock"
            export.to_onnx(compiled(name), path, kernels=kernels, verify=False)
        return path

    return write


def opened(exported: Exported, name: str, backend: str, state: State) -> EngineSession:
    path, engine = exported(name, backend), backend.split(maxsplit=1)[0]
    return Session.open(path, state, batch_size=6, backend=engine)


def native(name: str, state: State) -> Session:
    return Session.open(compiled(name).native, state, batch_size=6)


def distance(got: array[float], wanted: array[float]) -> float:
    a, b = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-3))


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        (backend, name)
        for backend in BACKENDS
        for name in ("odd_net", "resnet8", "signal_net")
        if (backend, name) != ("executorch", "resnet8")  # it takes long to export
    ],
)
def test_training_agrees_with_the_native_core(backend: str, name: str, exported: Exported) -> None:
    artifact, state = compiled(name), state_at(compiled(name), 0.1)
    with opened(exported, name, backend, state) as session, native(name, state) as core:
        for turn in range(4):
            x, y = (tensor.numpy() for tensor in batch(artifact, 3 + turn, seed=turn))
            loss, gradients = session.gradients(x, y)
            core_loss, core_gradients = core.gradients(x, y)
            assert loss == pytest.approx(core_loss, rel=1e-4)
            assert gradients.keys() == core_gradients.keys()
            for key, gradient in gradients.items():
                assert distance(gradient, core_gradients[key]) <= 1e-3, key
            rates = {"learning_rate": 0.02, "weight_decay": 1e-3}
            assert session.step(x, y, **rates) == pytest.approx(core.step(x, y, **rates), rel=1e-4)
        x, y = (tensor.numpy() for tensor in batch(artifact, 14, seed=9))
        loss, correct = session.evaluate(x, y)
        core_loss, core_correct = core.evaluate(x, y)
        assert loss == pytest.approx(core_loss, rel=1e-3)
        assert correct == core_correct
        assert session.counters.steps == 4
        assert session.counters.forward is None
        assert (session.memory.process_peak_bytes or 0) > 10_000_000
        agree(session.update(0.95), core.update(0.95), state)
        for one, other in zip(session.state().tensors, core.state().tensors, strict=True):
            assert distance(one.value, other.value) <= 1e-3, one.name
        assert session.state().support_id == state.support_id


def agree(one: SparseUpdate, other: SparseUpdate, base: State) -> None:
    """The same support for 99 % of the entries; what was sent can be decoded."""
    SparseUpdate.decode(one.encode(), base=base)
    shared = 0
    for left, right in zip(one.csr().values(), other.csr().values(), strict=True):
        shared += (left != 0).multiply(right != 0).nnz
    assert one.nonzeros == other.nonzeros
    assert shared >= 0.99 * one.nonzeros


@pytest.mark.parametrize("budget", ["global", "erk", {"1.weight": 700, "5.weight": 3}])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_update_is_that_of_the_native_core_to_the_bit(
    backend: str, budget: str | dict[str, int], exported: Exported
) -> None:
    state = state_at(compiled("mlp"), 0.1)
    # Values that tie in their hundreds, and zeros in the support.
    values = [array("f", np.round(np.asarray(t.value), 1).tolist()) for t in state.tensors]
    state = state.with_values(values, round=7)
    with opened(exported, "mlp", backend, state) as session, native("mlp", state) as core:
        assert session.state().encode() == state.encode()
        for sparsity in (0.0, 0.5, 0.95, 0.999):
            wanted = core.update(sparsity, budget).encode()
            assert session.update(sparsity, budget).encode() == wanted
        assert session.update(0.5, round=3).round == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_without_a_nonzero_trains_and_stays_empty(backend: str, exported: Exported) -> None:
    state = state_at(compiled("mlp"), 0.1)
    tensors = list(state.tensors)
    place = next(i for i, t in enumerate(tensors) if t.name == "3.weight")
    emptied = tensors[place]
    assert isinstance(emptied, SparseTensor)
    tensors[place] = replace(
        emptied,
        row_pointer=array("I", [0] * 129),
        column=array("H"),
        value=array("f"),
    )
    state = State(tuple(tensors))
    x, y = (tensor.numpy() for tensor in batch(compiled("mlp"), 5, seed=0))
    with opened(exported, "mlp", backend, state) as session, native("mlp", state) as core:
        for _ in range(3):
            loss = session.step(x, y, learning_rate=0.1)
            assert loss == pytest.approx(core.step(x, y, learning_rate=0.1), rel=1e-5)
        assert session.state().tensors[place].count == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_one_value_for_each_norm_trains(backend: str, exported: Exported) -> None:
    state = state_at(compiled("narrow_net"), 0.5)
    x, y = (tensor.numpy() for tensor in batch(compiled("narrow_net"), 7, seed=0))
    with (
        opened(exported, "narrow_net", backend, state) as session,
        native("narrow_net", state) as core,
    ):
        for part in (slice(0, 6), slice(6, 7)):  # an epoch in batches of six
            loss = session.step(x[part], y[part], learning_rate=0.1)
            assert loss == pytest.approx(core.step(x[part], y[part], learning_rate=0.1))
        for one, other in zip(session.state().tensors, core.state().tensors, strict=True):
            assert distance(one.value, other.value) <= 1e-5, one.name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_diverges_leaves_the_model(backend: str, exported: Exported) -> None:
    state = state_at(compiled("signal_net"), 0.5)
    x, y = (tensor.numpy() for tensor in batch(compiled("signal_net"), 5, seed=0))
    with opened(exported, "signal_net", backend, state) as session:
        with pytest.raises(DivergedError):
            session.step(x * np.float32(1e30), y, learning_rate=0.1)
        with pytest.raises(DivergedError):
            session.step(x, y, learning_rate=3e38)
        assert session.state().encode() == state.encode()
        assert session.counters.steps == 0
        session.step(x, y, learning_rate=0.01)
        assert session.counters.steps == 1


def test_a_torchscript_session_leaves_the_threads_of_pytorch(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_at(compiled("mlp"), 0.5)
    x, y = (tensor.numpy() for tensor in batch(compiled("mlp"), 5, seed=0))
    before, used = torch.get_num_threads(), []
    set_threads = torch.set_num_threads

    def noted(threads: int) -> None:
        used.append(threads)
        set_threads(threads)

    monkeypatch.setattr(torch, "set_num_threads", noted)
    path = exported("mlp", "torchscript")
    with pytest.raises(MismatchError):
        opened(exported, "mlp", "torchscript", state_at(compiled("signal_net"), 0.5))
    assert torch.get_num_threads() == before
    with Session.open(path, state, 6, "torchscript", threads=before + 1) as session:
        assert torch.get_num_threads() == before
        session.step(x, y, learning_rate=0.1)
        assert used == [before + 1, before]
        assert torch.get_num_threads() == before
        assert session.threads == before + 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_batches_and_states_are_refused(backend: str, exported: Exported) -> None:
    state = state_at(compiled("mlp"), 0.5)
    x, y = (tensor.numpy() for tensor in batch(compiled("mlp"), 7, seed=0))
    with pytest.raises(MismatchError, match=r"^state: "):
        opened(exported, "mlp", backend, state_at(compiled("signal_net"), 0.5))
    session = opened(exported, "mlp", backend, state)
    with pytest.raises(InputError, match="6 at most"):
        session.step(x, y, learning_rate=0.1)
    with pytest.raises(
        InputError, match="step: got y with a label outside 0 to 9: 10 for example 1"
    ):
        session.step(x[:2], np.array([3, 10], np.int32), learning_rate=0.1)
    with pytest.raises(
        InputError, match="step: got x with a value that is not finite: nan in example 0"
    ):
        session.step(x[:2] * np.float32(np.nan), y[:2], learning_rate=0.1)
    with pytest.raises(InputError, match="learning_rate"):
        session.step(x[:2], y[:2], learning_rate=-1.0)
    assert session.step(x[:1].ravel(), y[:1].astype(np.int32), learning_rate=0.1) > 0
    session.close()
    session.close()
    for use in (session.state, lambda: session.evaluate(x, y), lambda: session.counters):
        with pytest.raises(InputError, match="closed"):
            use()


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_are_checked_as_in_native_sessions(backend: str, exported: Exported) -> None:
    state = state_at(compiled("mlp"), 0.5)
    wrong: list[dict[str, Any]] = [
        *({"threads": threads} for threads in (0, 17, None, 1.0)),
        *({"batch_size": size} for size in (0, 2.5, "4", 10**20)),
    ]
    for arguments in wrong:
        for name, path in (("native", compiled("mlp").native), (backend, exported("mlp", backend))):
            with pytest.raises(InputError, match=r"got (threads|batch size) .*, wanted 1 to \d+"):
                Session.open(path, state, backend=name.split(maxsplit=1)[0], **arguments)
    with opened(exported, "mlp", backend, state) as session:
        for number in (1.5, -1, 2**32):
            with pytest.raises(InputError, match=f"got round {number}, wanted 0 to"):
                session.update(0.5, round=number)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ENGINE_NAMES)
def test_a_path_without_an_export_is_refused(backend: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"nothing")
    state = state_at(compiled("mlp"), 0.5)
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(FormatError):
            Session.open(path, state, backend=backend)
    with pytest.raises(FileNotFoundError):
        Session.open(tmp_path / "missing", state, backend=backend)
    with pytest.raises(InputError, match="path of an export"):
        Session.open(compiled("mlp").native, state, backend=backend)


def test_a_changed_file_is_refused(exported: Exported, tmp_path: Path) -> None:
    state = state_at(compiled("mlp"), 0.5)
    for path in exported("mlp", "onnxruntime").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / "train.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(FormatError, match=r"train\.onnx is not the file of the manifest"):
        Session.open(tmp_path, state, backend="onnxruntime")


def changed_folder(source: Path, folder: Path, **changes: str) -> Path:
    """A copy of an ONNX export, true to its manifest, where some graphs are others of the export."""
    manifest = json.loads((source / "manifest.json").read_bytes())
    for record in manifest["files"]:
        name = record["name"]
        data = (source / changes.get(Path(name).stem, name)).read_bytes()
        record["sha256"] = hashlib.sha256(data).hexdigest()
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_graph_that_is_not_the_training_step_is_an_error_of_the_backend(
    exported: Exported, tmp_path: Path
) -> None:
    artifact, state = compiled("mlp"), state_at(compiled("mlp"), 0.5)
    x, y = (tensor.numpy() for tensor in batch(artifact, 4, seed=0))
    source = exported("mlp", "onnxruntime")
    wrong = changed_folder(
        source, tmp_path, train="gradients.onnx", gradients="evaluate.onnx", evaluate="train.onnx"
    )
    with Session.open(wrong, state, batch_size=4, backend="onnxruntime") as session:
        for use in (
            lambda: session.step(x, y, learning_rate=0.1),
            lambda: session.gradients(x, y),
            lambda: session.evaluate(x, y),
        ):
            with pytest.raises(BackendError, match=r"^onnxruntime \d"):
                use()


class Stateless(torch.nn.Module):
    """TorchScript with a training step, and no parameters."""

    @torch.jit.export
    def train_step(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_without_parameters_is_an_error_of_the_backend(tmp_path: Path) -> None:
    path, artifact = tmp_path / "step.pt", compiled("mlp")
    extra = {"model.sfd": artifact.native.encode()}
    torch.jit.script(Stateless()).save(path, _extra_files=extra)  # type: ignore[no-untyped-call]
    with pytest.raises(BackendError, match=r"does not take .*step\.pt.*state"):
        Session.open(path, state_at(artifact, 0.5), backend="torchscript")


def test_an_executorch_manifest_without_parameters_is_an_error_of_the_backend(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = importlib.import_module(ENGINES["executorch"])
    read = engine._bytes

    def cut(module: Any, method: str) -> bytes:
        data: bytes = read(module, method)
        if method != "manifest":
            return data
        manifest = json.loads(data)
        del manifest["parameters"]
        return json.dumps(manifest).encode()

    monkeypatch.setattr(engine, "_bytes", cut)
    with pytest.raises(BackendError, match=r"executorch does not take .*KeyError"):
        opened(exported, "mlp", "executorch", state_at(compiled("mlp"), 0.5))


def test_a_device_with_onnx_runtime_loads_no_torch(tmp_path: Path) -> None:
    artifact, state = compiled("kws_dscnn"), state_at(compiled("kws_dscnn"), 0.1)
    export.to_onnx(artifact, tmp_path / "out", verify=False)
    state.save(tmp_path / "state.sfs")
    x, y = (tensor.numpy() for tensor in batch(artifact, 8, seed=0))
    np.savez(tmp_path / "batch.npz", x=x, y=y)
    answer = subprocess.run(
        [sys.executable, "-c", DEVICE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    loss, peak = map(float, answer.stdout.split())
    with Session.open(artifact.native, state, batch_size=8) as core:
        assert loss == pytest.approx(core.step(x, y, learning_rate=0.1), rel=1e-4)
    assert peak < 150e6
