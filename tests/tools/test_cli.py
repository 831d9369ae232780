import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsyfed.devices.feasibility import evenly_spread_state
from sparsyfed.devices.profiles import find_profile
from sparsyfed.edge_runtime import Artifact, State, plan
from sparsyfed.tools import cli
from sparsyfed.tools.commands import device, profile

COMMANDS = [
    ("demo",),
    ("export",),
    ("profile",),
    ("coordinator",),
    ("coordinator", "run"),
    ("device",),
    ("device", "run"),
    ("bench",),
    ("bench", "step"),
    ("bench", "layer"),
    ("bench", "memory"),
    ("broker",),
    ("broker", "run"),
]


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sparsyfed.tools", *arguments]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="torch is not installed")
    folder = tmp_path_factory.mktemp("exported")
    assert cli.main(["export", "--model", "watch_cnn", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("command", [(), *COMMANDS])
def test_help_has_an_example(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  sparsyfed {' '.join(command)}".rstrip() in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: COMMAND"),
        (["simulate"], "invalid choice: 'simulate'"),
        (["device"], "required: ACTION"),
        (["demo", "--rounds", "many"], "invalid int value: 'many'"),
        (["export", "--model", "mlp", "--out", "o", "--input-shape", "3,x"], "wanted sizes"),
        (["export", "--model", "mlp", "--out", "o", "--budget", "most"], "wanted global, erk"),
    ],
)
def test_a_mistake_in_the_arguments_ends_with_2_and_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert complaint in output.err
    assert output.err.startswith("sparsyfed")
    assert output.err.count("\n") == 1


def complaint_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def test_bad_input_ends_with_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.sfd"
    damaged.write_bytes(b"SFDA but nothing more")
    config = tmp_path / "job.toml"
    config.write_text("[job]\nname = 7\n")
    missing = str(tmp_path / "missing")
    run = ["device", "run", "--id", "a", "--data", missing, "--directory", missing]
    assert "damaged" not in complaint_of(["profile", missing, "--device", "all"], capsys)
    assert "artifact" in complaint_of(["profile", str(damaged), "--device", "all"], capsys)
    assert "abacus" in complaint_of(["profile", str(damaged), "--device", "abacus"], capsys)
    assert "name" in complaint_of(["coordinator", "run", str(config)], capsys)
    assert "missing" in complaint_of([*run, "--broker", "localhost"], capsys)
    assert "wanted HOST" in complaint_of([*run, "--broker", "localhost:no"], capsys)
    assert "got 0 rounds" in complaint_of(["demo", "--rounds", "0"], capsys)
    assert "got sparsity 1.0" in complaint_of(["demo", "--sparsity", "1"], capsys)
    assert "port" in complaint_of(["broker", "run", "--port", "0"], capsys)


def test_a_model_that_cannot_be_exported_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    out = ["--out", str(tmp_path)]
    assert "no model 'lstm'" in complaint_of(["export", "--model", "lstm", *out], capsys)
    unshaped = ["export", "--model", "torch.nn:Identity", *out]
    assert "--input-shape" in complaint_of(unshaped, capsys)
    assert "sparsity" in complaint_of(["export", "--model", "mlp", "--sparsity", "2", *out], capsys)


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        (["profile", "a", "--device", "all"], "matplotlib.axes", "demo"),
        (["coordinator", "run", "job.toml"], "numpy", "coordinator"),
        (["export", "--model", "mlp", "--out", "o"], "numpy", "coordinator,export"),
        (["demo"], "numpy", "demo"),
    ],
)
def test_a_missing_extra_is_named(
    command: list[str],
    missing: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(_arguments: object) -> int:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(command) == 2
    top = missing.partition(".")[0]
    assert f"needs {top}: pip install 'sparsyfed-edge[{extra}]'" in capsys.readouterr().err


def test_a_defect_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_arguments: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(profile, "run", run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["profile", "a", "--device", "all"])


def test_export_writes_files_that_belong_together(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "initial.sfs",
        "manifest.json",
        "model.sfd",
    ]
    again = ["export", "--model", "watch_cnn", "--out", str(tmp_path), "--json"]
    assert cli.main(again) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((exported / "manifest.json").read_text())
    assert (tmp_path / "initial.sfs").read_bytes() == (exported / "initial.sfs").read_bytes()
    assert sum(layer["stored"] for layer in manifest["layers"]) == 102_976


def test_export_takes_sparsity_and_budget(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    arguments = ["--model", "mlp", "--sparsity", "0.9", "--budget", "erk", "--out", str(tmp_path)]
    assert cli.main(["export", *arguments]) == 0
    state = State.load(tmp_path / "initial.sfs")
    assert state.nonzeros == state.positions - round(0.9 * state.positions)


def test_profile_says_what_fits(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(exported / "model.sfd")
    assert cli.main(["profile", model, "--device", "stm32f746", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["devices"]
    assert found["device"] == "stm32f746"
    for fit in found["fits"]:
        assert fit["fits"] == (fit["arena_bytes"] <= found["memory_bytes"])
        assert fit["multiply_adds"]["total"] == sum(
            fit["multiply_adds"][kind] for kind in ("forward", "d_input", "d_weight", "recomputed")
        )
    assert not any(fit["fits"] for fit in found["fits"] if fit["density"] == 1.0)
    assert any(fit["fits"] for fit in found["fits"])


def test_profile_of_a_state_plans_that_state(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, state = str(exported / "model.sfd"), str(exported / "initial.sfs")
    arguments = ["profile", model, "--device", "watch", "--state", state, "--memory", "2MB"]
    assert cli.main([*arguments, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["devices"]
    assert found["memory_bytes"] == 2_000_000
    assert {fit["density"] for fit in found["fits"]} == {1.0}
    assert {fit["nonzeros"] for fit in found["fits"]} == {102_976}


def test_profile_prints_tables_for_one_device_and_for_all(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(exported / "model.sfd")
    assert cli.main(["profile", model, "--device", "watch", "--batch-size", "5"]) == 0
    one = capsys.readouterr().out
    assert cli.main(["profile", model, "--device", "all"]) == 0
    everything = capsys.readouterr().out
    assert "Linux-class smartwatch" in one
    assert "batch 5" in one
    assert "rp2350" in everything
    assert "gradients of weights" in everything


def test_profile_draws_the_arena(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, page = exported / "model.sfd", tmp_path / "memory.html"
    arguments = ["profile", str(model), "--device", "watch", "--batch-size", "4"]
    assert cli.main([*arguments, "--density", "0.1", "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    state = evenly_spread_state(Artifact.load(model), 0.1)
    for memory in ("fast", "small"):
        planned = plan(model, state, 4, memory=memory, kernels=find_profile("watch").kernels)
        assert f"{planned.arena_bytes:,} bytes" in text
        assert all(f"<td>{buffer.bytes:,}</td>" in text for buffer in planned.buffers)
    assert text.count("<svg ") == 2
    assert "<script" not in text
    capsys.readouterr()
    assert cli.main([*arguments, "--density", "2", "--html", str(page)]) == 2
    assert "got density 2.0" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == text


def test_the_time_of_a_step_is_that_of_a_batch_that_fits(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(exported / "model.sfd")
    arguments = ["profile", model, "--device", "cortex_m4f_256k", "--memory", "600kB"]
    assert cli.main([*arguments, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["devices"]
    fitting = [fit for fit in found["fits"] if fit["fits"] and fit["density"] == 0.5]
    best = max(fitting, key=lambda fit: fit["batch_size"])
    assert best["batch_size"] < 16
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert f"{best['estimated_seconds']:.3g} ({best['batch_size']})" in text
    assert "given by --memory" in text


@pytest.mark.parametrize("wanted", [True, False])
def test_the_coordinator_says_where_the_trained_state_is(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    wanted: bool,
) -> None:
    coordinator = pytest.importorskip("sparsyfed.coordinator")
    state = State.load(exported / "initial.sfs")
    monkeypatch.setattr(coordinator, "run", lambda *_: SimpleNamespace(state=state))
    caplog.set_level(logging.INFO)
    config = tmp_path / "job.toml"
    config.write_text(
        '[job]\nname = "j"\nrounds = 1\nmodel = "linear"\n'
        '[training]\nlearning_rate = 0.1\n[store]\ndirectory = "store"\n'
    )
    out = tmp_path / "trained.sfs"
    arguments = ["--state-out", str(out)] if wanted else []
    assert cli.main(["coordinator", "run", str(config), *arguments]) == 0
    assert out.exists() == wanted
    (line,) = [text for text in caplog.messages if "trained state" in text]
    place = str(out) if wanted else f"{tmp_path / 'store'}; run again with --state-out FILE"
    assert f"the trained state is in {place}" in line


def test_a_reader_that_leaves_early_gets_no_traceback(exported: Path) -> None:
    profile = subprocess.Popen(
        program("profile", str(exported / "model.sfd"), "--device", "all", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert profile.stdout is not None
    profile.stdout.close()
    assert profile.wait(timeout=60) == 1
    assert profile.stderr is not None
    assert profile.stderr.read() == b""
    profile.stderr.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("broker.example", ("broker.example", 1883)),
        ("10.0.0.7:8883", ("10.0.0.7", 8883)),
        ("[::1]:1884", ("::1", 1884)),
        ("[::1]", ("::1", 1883)),
    ],
)
def test_broker_addresses(text: str, address: tuple[str, int]) -> None:
    assert device.broker_address(text) == address


def test_a_device_needs_neither_numpy_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from sparsyfed.tools.cli import main\n"
        f"main(['device', 'run', '--id', 'a', '--broker', 'h', '--data', {str(tmp_path)!r},"
        f" '--directory', {str(tmp_path)!r}])\n"
        "import sparsyfed.devices.client\n"
        "loaded = {'numpy', 'torch', 'scipy', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(loaded)) or 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    pytest.importorskip("paho.mqtt", reason="paho-mqtt is not installed")
    from sparsyfed.tools.broker import find_mosquitto

    find_mosquitto()
    out = str(tmp_path / "report")
    before = signal.getsignal(signal.SIGINT)
    # A shell that starts the tests in the background has them, and their children, ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            program("demo", "--out", out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        process.stdout.readline()  # the devices are being started
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    # Where the interrupt crossed an exec() of text, as in an import, CPython ends itself by the
    # signal after our return: a shell shows 130 for both.
    assert process.returncode in (130, -signal.SIGINT)
    assert errors == "sparsyfed demo: interrupted\n"
