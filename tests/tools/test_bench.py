"""The command from end to end, at settings so small that the times say nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

import numpy as np

from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.edge_runtime.process_memory import CLEAR_REFERENCES
from sparsyfed.export.targets import TARGETS
from sparsyfed.tools import (
    bench_engines,
    bench_layer,
    bench_memory,
    bench_report,
    bench_step,
    bench_threads,
    cli,
)

pytestmark = pytest.mark.long

SPREAD = {"median", "low", "high"}
TWO_DIMENSIONAL = """
from torch import nn

def net():
    print("a model may say something")
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
"""


def found(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["bench", *arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    for key in ("machine", "versions", "date", "command", "environment"):
        assert key in result
    assert result["machine"]["vector_instructions"]
    return result


def table_of(result: dict[str, Any], rows: str, module: Any) -> list[str]:
    text = bench_report.result_text(result, rows, module.HEADING, module.cells)
    assert result["machine"]["processor"] in text
    return text.splitlines()


def test_steps_of_every_kind_of_mask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", generator.standard_normal((40, 6, 256), dtype=np.float32))
    np.save(tmp_path / "y.npy", generator.integers(0, 7, 40))
    arguments = ["step", "--models", "watch_cnn", "--batch-size", "2", "--sparsity", "0.95"]
    arguments += ["--masks", "random", "initial", "--trained", "3", "--data", str(tmp_path)]
    arguments += ["--kernels", "portable", "--reference", "--turns", "2"]
    result = found(arguments, capsys)
    assert [row["masks"] for row in result["steps"]] == ["random", "initial", "trained"]
    for row in result["steps"]:
        assert row["kernels"] == "portable"
        assert row["density"] == pytest.approx(0.05, abs=1e-3)
        assert list(row["dense_seconds"]) == ["contiguous"]
        for name in ("seconds", "speedup", "reference_seconds", "speedup_over_reference"):
            assert row[name].keys() == SPREAD
            assert row[name]["low"] > 0
        for name, work in row["multiply_adds"].items():
            assert 0 <= work["share"] == work["done"] / work["dense"] < 0.5
            assert work["done"] > 0 or name == "recomputed"
        assert row["arena_peak_bytes"] == row["arena_bytes"]
    assert result["steps"][0]["multiply_adds"]["forward"]["share"] == pytest.approx(0.05, rel=0.1)
    (training,) = result["trainings"]
    assert (training["steps"], training["data"]) == (3, tmp_path.name)
    lines = table_of(result, "steps", bench_step)
    assert "trained for 3 steps" in lines[1]
    assert len(lines) == 2 + 1 + 3


def test_steps_of_a_model_of_the_user_under_a_limit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "sse2" not in available_kernels():
        pytest.skip("this processor has no SSE2 to be limited to")
    (tmp_path / "net_of_a_user.py").write_text(TWO_DIMENSIONAL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = ["step", "--models", "net_of_a_user:net", "--input-shape", "2,8,8"]
    arguments += ["--batch-size", "1", "17", "--sparsity", "0", "--isa", "sse2", "--turns", "1"]
    rows = found(arguments, capsys)["steps"]
    assert [(row["batch_size"], row["kernels"]) for row in rows] == [(1, "sse2"), (17, "sse2")]
    assert rows[0]["dense_seconds"].keys() == {"contiguous", "channels_last"}
    assert all(row["multiply_adds"]["forward"]["share"] == 1 for row in rows)


def test_steps_of_a_state_in_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    export = ["export", "--model", "mlp", "--sparsity", "0.8", "--out", str(tmp_path)]
    assert cli.main(export) == 0
    capsys.readouterr()
    arguments = ["step", "--models", "mlp", "--state", str(tmp_path / "initial.sfs")]
    (row,) = found([*arguments, "--batch-size", "2", "--turns", "1"], capsys)["steps"]
    assert (row["masks"], row["budget"]) == ("file", None)
    assert row["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_threads(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["threads", "--models", "mlp", "--batch-size", "16", "--sparsity", "0.9"]
    result = found([*arguments, "--threads", "3", "--turns", "2"], capsys)
    (row,) = result["threads"]
    assert (row["threads"], row["density"]) == (3, pytest.approx(0.1, abs=1e-3))
    assert row["seconds"].keys() == {"one", "at_once", "threads"}
    for side, seconds in row["seconds"].items():
        assert 0 < row["least_seconds"][side] <= seconds["low"] <= seconds["high"]
    assert row["speedup"]["low"] > 0
    assert row["speedup_of_processes"]["low"] > 0
    assert len(table_of(result, "threads", bench_threads)) == 2 + 1


def test_engines(capsys: pytest.CaptureFixture[str]) -> None:
    here = [target for target in TARGETS.values() if not target.missing()]
    ways = bench_engines._ways(here)
    engines = [bench_engines.Exported(*way, Path()).name for way in ways]
    assert {"onnxruntime (stock)", "onnxruntime (sparsyfed)"} < {*engines}
    assert "executorch (stock)" not in engines
    arguments = ["engines", "--models", "mlp", "--batch-size", "2", "--sparsity", "0.9"]
    result = found([*arguments, "--turns", "2"], capsys)
    rows = {row["engine"]: row for row in result["engines"]}
    assert sorted(rows) == sorted(["dense", "eager", *engines])
    for name, row in rows.items():
        assert row["over_eager"]["low"] > 0
        assert row["over_native"]["low"] > 0
        assert (row["memory"] is None) == (name == "dense")
        assert (row["file_bytes"] is None) == (name in {"dense", "eager"})
        if row["memory"]:
            assert 2**20 < row["memory"]["base_bytes"] < row["memory"]["peak_bytes"]
    assert rows["eager"]["over_eager"]["median"] == rows["native"]["over_native"]["median"] == 1
    assert len(table_of(result, "engines", bench_engines)) == 2 + len(rows)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [("onnx", "needs a_package_of_no_one"), ("tflite", "got target 'tflite'")],
)
def test_an_engine_that_is_not_there_is_named(
    target: str,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lame = replace(TARGETS["onnx"], packages=("a_package_of_no_one",))
    monkeypatch.setitem(TARGETS, "onnx", lame)
    assert cli.main(["bench", "engines", "--models", "mlp", "--targets", target]) == 2
    assert complaint in capsys.readouterr().err


def test_layers(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["layer", "--layers", "8,8,3,1,8", "4,8,3,2,9", "12,6", "--batch-size", "2"]
    arguments += ["--sparsity", "0.5", "--turns", "2", "--kernels", "portable"]
    result = found(arguments, capsys)
    assert [row["of_net"] for row in result["layers"]] == [False, True, True]
    for row in result["layers"]:
        for name in ("dense_seconds", "seconds", "speedup"):
            assert row[name].keys() == {"forward", "step"}
            assert row[name]["step"].keys() == SPREAD
        assert row["operator_seconds"].keys() == {"forward", "d_input", "d_weight"}
        # Of the layer alone: its input gradient is computed, as the stem has weights to train.
        for name, work in row["multiply_adds"].items():
            assert 0 < work["share"] <= (0.5 if name == "d_weight" else 0.75)
    assert len(table_of(result, "layers", bench_layer)) == 2 + 3


@pytest.mark.skipif(not CLEAR_REFERENCES.exists(), reason="no peak to reset")
def test_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_memory, "DENSE_PROCESSES", 1)
    arguments = ["memory", "--models", "watch_cnn", "--batch-size", "64", "--sparsity", "0.95"]
    (row,) = found(arguments, capsys)["memory"]
    ours, dense = row["session"], row["dense"]
    assert dense["processes"] == 1
    for side in (ours, dense):
        assert side["before_bytes"] < side["loaded_bytes"] <= side["peak_bytes"]
    assert ours["planned_bytes"] == ours["arena_bytes"] == ours["arena_peak_bytes"]
    assert ours["peak_bytes"] - ours["before_bytes"] >= ours["arena_bytes"]
    assert row["smaller_with_model"] > 0


def test_memory_is_compared_with_the_model_and_without_it() -> None:
    dense = {"before_bytes": 100, "loaded_bytes": 140, "peak_bytes": 340}
    ours = {"before_bytes": 10, "loaded_bytes": 58, "peak_bytes": 58, "transient_bytes": 40}
    assert bench_memory.smaller_by(dense, ours) == {"smaller_with_model": 5.0, "smaller_step": 5.0}
    ours["peak_bytes"] = 110
    assert bench_memory.smaller_by(dense, ours) == {
        "smaller_with_model": 2.4,
        "smaller_step": 200 / 52,
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["step", "--sparsity", "1"], "wanted at least 0"),
        (["step", "--batch-size", "0"], "wanted a whole number above 0"),
        (["step", "--isa", "mmx"], "invalid choice: 'mmx'"),
        (["layer", "--layers", "64,64,3"], "wanted IN,OUT"),
        (["layer", "--layers", "64,0"], "wanted IN,OUT"),
        ([], "required: WHAT"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--models", "mlp", "--kernels", "mmx"], "got kernels 'mmx'"),
        (["--models", "mlp", "--state", "missing.sfs"], "missing.sfs"),
        (["--models", "mlp", "--trained", "1", "--data", "missing"], "cannot read local data"),
    ],
)
def test_what_cannot_be_measured_is_said(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "step", *arguments, "--turns", "1"]) == 2
    output = capsys.readouterr()
    assert complaint in output.err
    assert output.out == ""


def test_columns_stand_under_their_heading() -> None:
    text = bench_report.aligned(["model", "ms"], [["mlp", "1.5"], ["resnet18", "74"]])
    assert text == "model      ms\nmlp       1.5\nresnet18   74"
