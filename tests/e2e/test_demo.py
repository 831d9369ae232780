import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

NEEDED = ("torch", "seglearn", "matplotlib", "paho", "scipy")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED),
        reason=f"the demo needs {', '.join(NEEDED)}",
    ),
]

ROUNDS = 3


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    scratch = folder / "scratch"
    scratch.mkdir()
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "sparsyfed.tools",
            "demo",
            "--quick",
            "--boards",
            "none",
            "--out",
            str(folder),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "equals the plan to the byte" in ended.stdout
    assert str(folder / "report.html") in ended.stdout
    assert str(folder / "trained.sfs") in ended.stdout
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return content


def test_readers_find_plain_numbers_under_the_agreed_names(report: dict[str, Any]) -> None:
    integers = [report["dense_update_bytes"]]
    numbers = [report["final_accuracy"], report["dense_reference_accuracy"]]
    for entry in report["rounds"]:
        integers += [entry[key] for key in ("round", "bytes_down", "bytes_up", "devices")]
        numbers += [entry[key] for key in ("accuracy", "density_down", "seconds")]
    for device in report["devices"]:
        assert device["id"].startswith("watch-")
        integers += [device[key] for key in ("planned_arena_bytes", "arena_peak_bytes")]
        integers += [device[key] for key in ("peak_rss_bytes", "multiply_adds", "examples")]
    assert {type(value) for value in integers} == {int}
    assert {type(value) for value in numbers} == {float}


def test_totals_are_those_of_all_rounds(report: dict[str, Any]) -> None:
    rounds, total = report["rounds"], report["whole_run"]
    assert total["bytes"] == sum(entry["bytes_down"] + entry["bytes_up"] for entry in rounds)
    assert total["dense_bytes"] == 2 * 8 * ROUNDS * report["dense_update_bytes"]
    work = [sum(entry["multiply_adds"].values()) for entry in rounds]
    assert total["multiply_adds"] == sum(work)
    assert work[-1] == sum(device["multiply_adds"] for device in report["devices"])
    assert work[0] > work[-1]
    dense = [sum(entry["multiply_adds"].values()) for entry in report["dense_reference"]["rounds"]]
    assert total["dense_multiply_adds"] == sum(dense)


def test_the_trained_model_can_be_used(out: Path, report: dict[str, Any]) -> None:
    from sparsyfed.edge_runtime import Artifact, Session, State

    artifact, state = Artifact.load(out / "model.sfd"), State.load(out / "trained.sfs")
    assert artifact.identity == report["model"]["artifact"]
    assert state.round == ROUNDS + 1
    Session.open(artifact, state, batch_size=1).close()


def test_every_round_had_every_device(report: dict[str, Any]) -> None:
    assert [entry["round"] for entry in report["rounds"]] == list(range(1, ROUNDS + 1))
    for entry in report["rounds"]:
        assert entry["devices"] == 8
        assert 0.0 <= entry["accuracy"] <= 1.0
        assert entry["seconds"] > 0
        # Every update and every state went over the wire, and not much else.
        assert 8 * 30_000 < entry["bytes_up"] < 8 * (entry["update_bytes"] + 4_000)
    assert report["rounds"][0]["density_down"] == 1.0
    assert all(entry["density_down"] < 0.1 for entry in report["rounds"][1:])


def test_updates_after_round_1_are_nine_times_smaller_than_dense(report: dict[str, Any]) -> None:
    dense = 4 * (report["model"]["prunable"] + report["model"]["dense"])
    assert report["dense_update_bytes"] == dense
    for entry in report["rounds"][1:]:
        assert 9 * entry["update_bytes"] <= dense


def test_measured_memory_is_the_planned_memory(report: dict[str, Any]) -> None:
    assert len(report["devices"]) == 8
    for device in report["devices"]:
        assert device["arena_peak_bytes"] == device["planned_arena_bytes"]
        assert (
            device["last_round"]["arena_peak_bytes"] == device["last_round"]["planned_arena_bytes"]
        )
        assert device["planned_arena_bytes"] <= device["memory_bytes"]
        assert device["peak_rss_bytes"] > device["planned_arena_bytes"]
        done = device["last_round"]["multiply_adds"]
        assert device["multiply_adds"] == done["forward"] + done["d_input"] + done["d_weight"] > 0
        assert device["multiply_adds"] < sum(device["largest_round"]["multiply_adds"].values())
    assert sum(device["examples"] for device in report["devices"]) == 1693 - 364


def test_the_broker_changes_no_model(report: dict[str, Any], tmp_path: Path) -> None:
    from sparsyfed.tools import watch_job
    from sparsyfed.tools.watch_data import load_fleet

    folders = load_fleet().save(tmp_path)
    job = watch_job.sparse_job(ROUNDS, report["seed"])
    virtual = watch_job.run_virtually(job, watch_job.BETA, folders, 1 << 22, workers=2)
    for here, there in zip(virtual, report["rounds"], strict=True):
        assert here.accuracy == there["accuracy"]
        assert here.density_down == there["density_down"]
        assert max(here.update_bytes) == there["update_bytes"]
        assert asdict(here.multiply_adds) == there["multiply_adds"]


def test_accuracies_are_those_of_the_rounds(report: dict[str, Any]) -> None:
    for found, rounds in [
        (report["final_accuracy"], report["rounds"]),
        (report["dense_reference_accuracy"], report["dense_reference"]["rounds"]),
    ]:
        accuracies = [entry["accuracy"] for entry in rounds]
        assert len(accuracies) == ROUNDS
        assert found == pytest.approx(sum(accuracies) / ROUNDS)


def test_the_page_is_there_and_needs_nothing_else(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert "<script" not in page


def test_nothing_is_left_running(out: Path, report: dict[str, Any]) -> None:
    started = str(out / "scratch").encode()  # in the arguments of every process of this demo
    left = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if started in command_line(path)
    ]
    assert left == []
    assert report["command"].endswith(f"--out {out}")


def command_line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_devices_take_turns_at_the_engines(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    command = [sys.executable, "-m", "sparsyfed.tools", "demo", "--rounds", "1", "--json"]
    command += ["--engines", "native,onnxruntime", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 0, ended.stderr
    devices = json.loads(ended.stdout)["devices"]
    # No boards, whose only round would come after the last, keep windows from the watches.
    assert sum(device["examples"] for device in devices) == 1693 - 364
    assert [device["backend"] for device in devices] == ["native", "onnxruntime"] * 4
    for device in devices[1::2]:
        assert device["planned_arena_bytes"] is None
        assert 0 < device["base_rss_bytes"] < device["peak_rss_bytes"]
        assert device["engine"].startswith("onnxruntime ")


def test_an_engine_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    from sparsyfed.tools import cli

    assert cli.main(["demo", "--engines", "native,abacus"]) == 2
    assert "got engine 'abacus', wanted some of native, onnxruntime" in capsys.readouterr().err


def test_emulated_boards_join(tmp_path: Path) -> None:
    from board_machines import require_tools

    from sparsyfed.tools.demo_boards import BOARDS, WINDOWS

    require_tools(*BOARDS.boards)
    command = [sys.executable, "-m", "sparsyfed.tools", "demo", "--quick", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    boards = {device["id"]: device for device in report["devices"] if device["id"] in BOARDS.names}
    assert [device["profile"] for device in boards.values()] == list(BOARDS.boards)
    assert report["rounds"][0]["devices"] == 8
    assert report["rounds"][-1]["devices"] == 8 + len(BOARDS.names)
    dense = report["dense_reference"]["rounds"]
    assert dense[-1]["bytes_down"] / dense[0]["bytes_down"] == pytest.approx(
        report["rounds"][-1]["devices"] / report["rounds"][0]["devices"], rel=0.01
    )
    for device in boards.values():
        assert device["rounds"] >= 1
        assert device["examples"] == WINDOWS
        assert device["memory_bytes"] == BOARDS.ram_bytes
        last = device["last_round"]
        assert last["arena_peak_bytes"] == last["planned_arena_bytes"]
        assert last["arena_peak_bytes"] < device["peak_rss_bytes"] < BOARDS.ram_bytes
    assert sum(device["examples"] for device in report["devices"]) == 1693 - 364
