"""What a user gets wrong ends with one line and an exit code, never with a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from sparsyfed.tools import cli

TINY_SHAPE = ("--input-shape", "4")


def complaint_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a package of models, which is not on Python's path."""
    pytest.importorskip("torch", reason="torch is not installed")
    package = tmp_path / "models_of_mine"
    package.mkdir()
    (package / "nets.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Linear(4, 2)\n"
        "def fails():\n    raise ValueError('no such width')\n"
        "def lazy():\n    return nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.LazyLinear(2))\n"
        "def number():\n    return 3\n"
        "def narrow_end():\n    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    for name in ("models_of_mine", "models_of_mine.nets"):
        sys.modules.pop(name, None)
    return package


def test_models_in_the_working_directory_are_found(own_models: Path) -> None:
    out = own_models.parent / "out"
    model = ["--model", "models_of_mine.nets:net", *TINY_SHAPE]
    assert cli.main(["export", *model, "--out", str(out)]) == 0
    assert (out / "model.sfd").exists()


def test_a_job_finds_models_in_the_working_directory(
    own_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = own_models.parent / "job.toml"
    job.write_text(
        '[job]\nname = "j"\nrounds = 1\nmodel = "models_of_mine.nets:fails"\ninput_shape = [4]\n'
        '[training]\nlearning_rate = 0.1\n[store]\ndirectory = "store"\n'
    )
    assert "no such width" in complaint_of(["coordinator", "run", str(job)], capsys)


def test_an_exception_of_a_users_function_is_named_with_its_place(
    own_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "models_of_mine.nets:fails", *TINY_SHAPE]
    error = complaint_of(["export", *model, "--out", "out"], capsys)
    assert f"ValueError: no such width ({own_models / 'nets.py'}:5)" in error


@pytest.mark.usefixtures("own_models")
@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("lazy", "2.weight has no shape yet, its layer is lazy: call the model on an example"),
        ("number", "returned 3; it must return a torch.nn.Module"),
    ],
)
def test_models_that_are_none_yet(
    function: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", f"models_of_mine.nets:{function}", *TINY_SHAPE]
    assert complaint in complaint_of(["export", *model, "--out", "out"], capsys)


@pytest.mark.usefixtures("own_models")
def test_layers_without_a_weight_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "models_of_mine.nets:narrow_end", *TINY_SHAPE, "--out", "out"]
    for budget, is_empty in (("global", True), ("erk", False)):
        assert cli.main(["export", *model, "--density", "0.1", "--budget", budget]) == 0
        assert ("Nothing passes 2.weight" in capsys.readouterr().out) == is_empty


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["export", "--model", "linear", "--out", "file"], "file exists and is not a folder"),
        (["export", "--model", "linear", "--out", "o", "--seed", "-5"], "got seed -5"),
        (["export", "--model", ":net", "--out", "o"], "wanted package.module:function"),
        (
            ["export", "--model", "linear", "--out", "o", "--density", "1.5"],
            "got density 1.5, wanted above 0 and at most 1",
        ),
        (
            ["export", "--model", "linear", "--out", "o", "--density", "nan"],
            "got density nan, wanted above 0 and at most 1",
        ),
        (
            ["export", "--model", "linear", "--out", "o", "--target", "coreml"],
            "got target 'coreml', wanted some of native, onnx, onnx-training, executorch, torchscript, board",
        ),
        (
            ["export", "--model", "linear", "--out", "o", "--target", "board", "--board", "m9"],
            "got board 'm9', wanted one of cortex_m4f_256k, esp32_s3, mps2-an385",
        ),
        (["broker", "run", "--host", "0.0.0.0"], "--open-to-network"),  # noqa: S104 - refused
        (
            ["profile", "file", "--device", "watch"],
            "file: got another kind of file, wanted a training artifact (.sfd)",
        ),
        (
            ["profile", "file", "--device", "watch", "--density", "0.1"],
            "--density goes with --html",
        ),
        (
            ["profile", "file", "--device", "watch", "--density", "0.1", "--state", "s"],
            "--density is for a model without --state",
        ),
        (
            ["profile", "file", "--device", "watch", "--html", "no/such/page.html"],
            "--html no/such/page.html: there is no folder no/such",
        ),
    ],
)
def test_one_line_says_what_was_wrong(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments[0] == "export":
        pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"neither an artifact nor a folder")
    assert complaint in complaint_of(arguments, capsys)


def test_the_folder_of_a_broker_is_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparsyfed.tools.broker import PrivateBroker

    file = tmp_path / "file"
    file.touch()
    port = str(PrivateBroker(tmp_path).port)
    arguments = ["broker", "run", "--port", port, "--directory", str(file)]
    assert f"{file} exists and is not a folder" in complaint_of(arguments, capsys)


def test_an_absurd_shape_is_refused_before_anything_is_built(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "--model", "linear", "--out", "o", "--input-shape", "99999,99999"])
    assert ended.value.code == 2
    assert "at most 67,108,864 elements" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "complaint"), [("notpem", "notpem: not what PEM"), ("absent", "absent: No such")]
)
def test_files_for_tls_that_are_none(
    file: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("paho.mqtt", reason="paho-mqtt is not installed")
    numpy = pytest.importorskip("numpy")
    numpy.save(tmp_path / "x.npy", numpy.zeros((2, 4), numpy.float32))
    numpy.save(tmp_path / "y.npy", numpy.zeros(2, numpy.int32))
    (tmp_path / "notpem").write_text("no certificate\n")
    run = ["device", "run", "--id", "a", "--broker", "localhost", "--data", str(tmp_path)]
    run += ["--directory", str(tmp_path / "device"), "--tls-authority", str(tmp_path / file)]
    assert complaint in complaint_of(run, capsys)


@pytest.mark.parametrize(
    ("out", "complaint"), [("absent/state.sfs", "there is no folder"), (".", "got a folder")]
)
def test_where_the_trained_state_goes_is_checked_before_the_training(
    out: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("paho.mqtt", reason="paho-mqtt is not installed")
    job = tmp_path / "job.toml"
    job.write_text(
        '[job]\nname = "j"\nrounds = 1\nmodel = "linear"\n'
        '[training]\nlearning_rate = 0.1\n[store]\ndirectory = "store"\n'
    )
    path = str(tmp_path / out)
    error = complaint_of(["coordinator", "run", str(job), "--state-out", path], capsys)
    assert complaint in error
    assert path in error
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    export = ["export", "--model", "linear", "--out", str(tmp_path), "--json"]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "sparsyfed.tools", *export],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert ended.returncode == 1
    assert ended.stderr == b"sparsyfed export: No space left on device\n"
