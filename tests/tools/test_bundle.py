"""`sparsyfed export` for several engines."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

import engine_bundle

from sparsyfed.coordinator import bundle as delivered
from sparsyfed.edge_runtime.errors import (
    ConfigurationError,
    UnsupportedOperationError,
    VerificationError,
)
from sparsyfed.edge_runtime.transfer import sha256_hex
from sparsyfed.export import targets
from sparsyfed.export.targets import TARGETS
from sparsyfed.tools import bundle, cli

# The others take long to write; they are in the bundle of tests/e2e/test_engines.py.
QUICK = [name for name in ("native", "onnx", "torchscript") if not TARGETS[name].missing()]
MODEL = ["--model", "engine_bundle:Net", "--input-shape", "2,12,10"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bundle.Bundle]:
    folder = tmp_path_factory.mktemp("bundle")
    return folder, engine_bundle.write(folder, targets=QUICK, verify=True)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_manifest_says_what_each_file_is(written: tuple[Path, bundle.Bundle]) -> None:
    folder, made = written
    manifest = made.manifest
    assert manifest == json.loads((folder / "manifest.json").read_bytes())
    assert set(manifest["files"]) == files(folder) - {"manifest.json", "measured.json"}
    for name, record in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert (record["bytes"], record["sha256"]) == (len(data), sha256_hex(data))
    assert [layer["name"] for layer in manifest["layers"]] == [
        "stem.weight",
        "block.weight",
        "head.weight",
    ]
    for layer in manifest["layers"]:
        assert 0 < layer["stored"] <= layer["positions"] == layer["rows"] * layer["columns"]
    assert manifest["x"] == {"type": "float32", "shape": ["batch", *engine_bundle.SHAPE]}
    assert manifest["planned"]["arena_bytes"] > 0
    assert list(manifest["targets"]) == QUICK


def test_each_target_is_verified_and_measured(written: tuple[Path, bundle.Bundle]) -> None:
    folder, made = written
    measured = json.loads((folder / "measured.json").read_bytes())
    assert measured["targets"] == made.measured
    for name, record in made.manifest["targets"].items():
        assert record["backend"] == TARGETS[name].backend
        assert record["operators"]
        assert record["engine"]
        assert record.get("kernels") == ("stock" if name == "onnx" else None)
        if name == "native":
            assert name not in made.measured
            continue
        assert record["verified"]["worst_gradient_error"] <= 1e-5
        figures = made.measured[name]
        assert figures["batch_size"] == 16
        assert figures["peak_bytes"] - figures["base_bytes"] == figures["growth_bytes"] > 2**20


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    # In processes of their own: PyTorch numbers the classes of TorchScript by process.
    names = ",".join(QUICK)
    for out in ("one", "other"):
        command = [sys.executable, "-m", "sparsyfed.tools", "export", *MODEL, "--out", out]
        subprocess.run(
            [*command, "--target", names, "--no-verify"],
            check=True,
            cwd=tmp_path,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
    for name in files(tmp_path / "one") - {"measured.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), (
            name
        )


def test_a_fleet_gets_what_a_device_trains_with(written: tuple[Path, bundle.Bundle]) -> None:
    folder, made = written
    whole = delivered.Bundle.load(folder, None)
    assert whole.native
    assert whole.artifact.identity == made.manifest["artifact"]
    for name in set(QUICK) - {"native"}:
        export = whole.exports[TARGETS[name].backend]
        assert export.memory_bytes == made.measured[name]["growth_bytes"]
        assert export.opened in {None, *export.files}
        assert not TARGETS[name].kept_back & set(export.files)
    assert "manifest.json" in whole.exports["onnxruntime"].files
    few = delivered.Bundle.load(folder, ["onnx"])
    assert (few.native, list(few.exports)) == (False, ["onnxruntime"])


def test_a_bundle_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    engine_bundle.write(tmp_path, targets=["native"])
    with pytest.raises(ConfigurationError, match=r"got no target 'onnx', the bundle has native"):
        delivered.Bundle.load(tmp_path, ["onnx"])
    (tmp_path / "model.sfd").write_bytes(b"other")
    with pytest.raises(ConfigurationError, match=r"model.sfd is not the file of manifest.json"):
        delivered.Bundle.load(tmp_path, None)
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(ConfigurationError, match="is no manifest of a bundle"):
        delivered.Bundle.load(tmp_path, None)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="wanted an object"):
        delivered.Bundle.load(tmp_path, None)
    with pytest.raises(ConfigurationError, match="No such file"):
        delivered.Bundle.load(tmp_path / "absent", None)


def run(folder: Path, *arguments: str) -> int:
    return cli.main(["export", *MODEL, "--out", str(folder), *arguments])


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("sparsyfed export: ")
    return last


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--target", "native,tflite"], "got target 'tflite', wanted some of native, onnx"),
        (["--target", ""], "got target ''"),
        (["--device", "abacus"], "got device 'abacus'"),
        (
            ["--device", "nrf5340", "--batch-size", "64"],
            "for training, a step of batch 64 at density 100.0% takes",
        ),
        (["--device", "watch", "--target", "onnx"], "on onnxruntime was measured to take"),
        (["--batch-size", "0"], "got batch size 0"),
        (["--target", "onnx", "--kernels", "fast"], "got kernels 'fast', wanted one of sparsyfed"),
        (
            ["--target", "native,torchscript", "--kernels", "stock"],
            "for native, torchscript, which have no choice: onnx, executorch have one",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *arguments, "--no-verify") == 2
    assert wanted in complaint(capsys)
    assert not (tmp_path / "manifest.json").exists()


def test_a_missing_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert run(tmp_path, "--target", "onnx") == 2
    wanted = "needs onnx and onnxruntime: pip install 'sparsyfed-edge[onnx]'"
    assert wanted in complaint(capsys)


def test_the_answer_is_json_or_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert run(tmp_path, "--target", "native, onnx", "--no-verify", "--json") == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["targets"]["onnx"]["verified"] is None
    assert (
        run(tmp_path, "--target", "native,onnx", "--no-verify", "--device", "raspberry_pi_4") == 0
    )
    output = capsys.readouterr()
    assert "not verified" in output.out
    assert "planned for raspberry_pi_4" in output.out
    assert "onnx: measure the memory of a step of batch 16" in output.err


def test_the_kernels_of_an_export_are_chosen_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    arguments = ["--target", "native,onnx", "--sparsity", "0.5", "--kernels", "sparsyfed"]
    assert run(tmp_path, *arguments) == 0
    assert "sparsyfed kernels" in capsys.readouterr().out
    record = json.loads((tmp_path / "manifest.json").read_bytes())["targets"]["onnx"]
    assert record["kernels"] == "sparsyfed"
    assert record["verified"]["worst_gradient_error"] <= 1e-5
    assert record["needs"].pop("operators")[:2] == ["batch_norm", "batch_norm_backward"]
    assert record["needs"] == {"domain": "sparsyfed", "library": "libsparsyfed_onnxruntime.so"}
    delivery = delivered.Bundle.load(tmp_path, None).exports["onnxruntime"]
    assert json.loads(delivery.files["manifest.json"])["kernels"] == "sparsyfed"


def test_a_target_that_does_not_hold_a_model_names_those_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> dict[str, Any]:
        raise UnsupportedOperationError("stem: no such convolution")

    lame = targets.Target("onnx", "onnxruntime", refuse, None, (), "onnx")
    monkeypatch.setitem(TARGETS, "onnx", lame)
    with pytest.raises(
        UnsupportedOperationError, match=r"target onnx: stem: .*: native, .*torchscript"
    ):
        engine_bundle.write(tmp_path, targets=["onnx"])


def test_what_does_not_verify_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> dict[str, Any]:
        raise VerificationError("head.weight: off by 3 %")

    engine_bundle.write(tmp_path, targets=["native"])
    wrong = targets.Target("onnx", "onnxruntime", fail, None, (), "onnx")
    monkeypatch.setitem(TARGETS, "onnx", wrong)
    with pytest.raises(VerificationError, match=r"head.weight"):
        engine_bundle.write(tmp_path, targets=["onnx"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["initial.sfs", "model.sfd", "onnx"]
