"""A round over MQTT by device processes of every engine, from one bundle."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import engine_bundle

from sparsyfed import coordinator
from sparsyfed.coordinator import Configuration
from sparsyfed.coordinator.aggregation import FederatedAverage
from sparsyfed.edge_runtime import SparseUpdate
from sparsyfed.export.targets import TARGETS, Target
from sparsyfed.tools.broker import PrivateBroker
from sparsyfed.tools.other_python import environment_for

PHONE = "phone_midrange"
WITHOUT_TORCH = """
import sys
from sparsyfed.tools import cli
code = cli.main(sys.argv[1:])
loaded = {"torch", "onnx", "scipy"} & set(sys.modules)
sys.exit(f"loaded: {loaded}" if loaded else code)
"""


def job(folder: Path, bundle: Path, port: int, devices: int) -> Configuration:
    tables = {
        "job": {"name": "engines", "rounds": 2, "bundle": bundle, "sparsity": 0.8},
        # All of a device's data in one batch: the devices differ in nothing but their order.
        "training": {"learning_rate": 0.05, "batch_size": 16, "epochs": 3},
        "round": {"minimum_devices": devices, "quorum": 1.0, "register_timeout_s": 300},
        "broker": {"port": port},
        "store": {"directory": folder / "store"},
    }
    return Configuration.from_mapping(tables)


def start(
    backend: str, broker: PrivateBroker, folder: Path, packages: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    arguments = ["device", "run", "--id", backend, "--broker", f"{broker.host}:{broker.port}"]
    arguments += ["--data", str(folder / "data"), "--directory", str(folder / backend)]
    arguments += ["--profile", PHONE, "--backend", backend, "--exit-on-finish"]
    program = ["-c", WITHOUT_TORCH] if "onnx" in backend else ["-m", "sparsyfed.tools"]
    with (folder / f"{backend}.log").open("wb") as log:
        return subprocess.Popen(
            [target_of(backend).python, *program, *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, **packages},
        )


def target_of(backend: str) -> Target:
    return next(target for target in TARGETS.values() if target.backend == backend)


def test_devices_of_all_engines_train_the_same_model(
    bundle: Path, broker: PrivateBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_bundle.save_data(tmp_path / "data", 16)
    updates: list[SparseUpdate] = []
    add = FederatedAverage.add

    def keep(self: FederatedAverage, update: SparseUpdate, examples: int) -> None:
        updates.append(update)
        add(self, update, examples)

    monkeypatch.setattr(FederatedAverage, "add", keep)
    backends = sorted(TARGETS[name].backend for name in engine_bundle.available())
    pythons = {name: target_of(name).python for name in backends}
    with ExitStack() as stack:
        packages = {n: stack.enter_context(environment_for(p)) for n, p in pythons.items()}
        processes = {name: start(name, broker, tmp_path, packages[name]) for name in backends}
        stack.callback(end, processes.values())
        result = coordinator.run(job(tmp_path, bundle, broker.port, len(backends)))
        for name, process in processes.items():
            assert process.wait(60) == 0, (tmp_path / f"{name}.log").read_text()
    assert [entry.devices for entry in result.rounds] == [len(backends)] * 2
    check_devices(result, backends)
    first_round = dict(zip(backends, updates[: len(backends)], strict=True))
    check_agreement(first_round)


def end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def check_devices(result: coordinator.JobResult, backends: list[str]) -> None:
    """Each device reports its own engine and memory; what an engine does not tell stays open."""
    for device, backend in zip(result.devices, backends, strict=True):
        assert device.id == device.latest.backend == backend
        assert 2**20 < (device.latest.base_rss_bytes or 0) < (device.latest.peak_rss_bytes or 0)
        assert (device.latest.planned_arena_bytes is None) == (backend != "native")
        assert (device.latest.multiply_adds is None) == (backend != "native")


def check_agreement(updates: Mapping[str, SparseUpdate]) -> None:
    dense = {
        name: np.concatenate([matrix.toarray().ravel() for matrix in update.csr().values()])
        for name, update in updates.items()
    }
    native = dense["native"]
    for name, values in dense.items():
        both = (values != 0) & (native != 0)
        assert np.count_nonzero(both) >= 0.99 * np.count_nonzero(native), name
        distance = np.linalg.norm((values - native)[both]) / np.linalg.norm(native[both])
        assert distance <= 1e-3, name
