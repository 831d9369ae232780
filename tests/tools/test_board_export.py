"""sparsyfed export --target board."""

import json
import os
import re
import subprocess
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from board_machines import require_compilers, require_tools

pytest.importorskip("torch", reason="torch is not installed")

from sparsyfed.coordinator.bundle import Bundle
from sparsyfed.devices.board import Board
from sparsyfed.devices.serial_link import SerialLink
from sparsyfed.devices.serial_port import open_port
from sparsyfed.devices.serial_protocol import SerialObject
from sparsyfed.edge_runtime import Artifact, Session, State, plan
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.tools import firmware
from sparsyfed.tools.cli import main
from sparsyfed.tools.emulator import EmulatedBoard
from sparsyfed.tools.model_source import HEADER

BOARD = "mps2-an386"
MODEL = ["--model", "engine_bundle:Net", "--input-shape", "2,12,10"]
TARGET = ["--target", "board", "--board", BOARD]
RATES = {"learning_rate": 0.05, "weight_decay": 0.0}


def run(folder: Path, *arguments: str) -> int:
    return main(["export", *MODEL, *TARGET, "--out", str(folder), *arguments])


def write_model(path: Path, state: bytes, artifact_bytes: int) -> None:
    """A C file with an artifact of zeros, which no board opens, and this state."""
    path.write_text(
        f'#include "model.h"\nconst uint8_t model_artifact[{artifact_bytes}] = {{0u}};\n'
        f"const uint8_t model_state[] = {{{', '.join(f'{byte}u' for byte in state)}}};\n"
        f"const uint32_t model_artifact_bytes = {artifact_bytes}u;\n"
        f"const uint32_t model_state_bytes = {len(state)}u;\n"
    )


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_bundle_for_a_board_is_one_that_a_fleet_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--density", "0.2", "--batch-size", "4", "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    board = manifest["board"]
    assert (board["name"], board["model_in"], board["files"]) == (BOARD, "RAM", [])
    assert board["arena_bytes"] == manifest["planned"]["arena_bytes"]
    assert manifest["sparsity"] == 0.8
    bundle = Bundle.load(tmp_path, None)
    assert bundle.native
    assert not bundle.exports
    assert main(["export", *MODEL, *TARGET, "--out", str(tmp_path)]) == 0
    assert "bytes for training; batch 16 takes" in capsys.readouterr().out


def test_c_arrays_hold_the_model_and_a_given_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "first", "--density", "0.1") == 0
    state = tmp_path / "first" / "initial.sfs"
    given = ("--state", str(state), "--c-array")
    assert run(tmp_path / "out", *given) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["density"] == State.load(state).density
    assert [manifest[name] for name in ("seed", "sparsity", "budget")] == [None] * 3
    for option in (["--seed", "0"], ["--budget", "erk"]):
        assert run(tmp_path / "out", *given, *option) == 2
        assert f"{option[0]} is of the initial state" in complaint(capsys)
    folder = tmp_path / "out" / BOARD
    (folder / "write.c").write_text(
        '#include <stdio.h>\n#include "model.h"\n'
        "int main(void)\n{\n    fwrite(model_artifact, 1, model_artifact_bytes, stdout);\n"
        "    fwrite(model_state, 1, model_state_bytes, stdout);\n    return 0;\n}\n"
    )
    program = str(folder / "write")
    sources = [str(folder / name) for name in ("write.c", "model.c")]
    compile_it = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", *sources]
    subprocess.run([*compile_it, "-o", program], check=True, timeout=60)
    written = subprocess.run([program], check=True, capture_output=True, timeout=60).stdout
    assert written == (tmp_path / "out" / "model.sfd").read_bytes() + state.read_bytes()


def test_the_header_declares_what_the_firmware_wants() -> None:
    own = (firmware.sources() / "model.h").read_text()
    assert re.findall(r"extern .*;", HEADER) == re.findall(r"extern .*;", own) != []


def test_an_image_trains_the_model_that_it_holds(tmp_path: Path) -> None:
    require_tools(BOARD)
    tmp_path /= "a folder"  # make takes no path with a space
    arguments = ("--density", "0.2", "--memory", "256KiB", "--batch-size", "2", "--image")
    assert run(tmp_path, *arguments) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    names = ["model.h", "model.c", "firmware.elf", "firmware.hex", "firmware.bin"]
    assert manifest["board"]["files"] == [f"{BOARD}/{name}" for name in names]
    artifact = Artifact.load(tmp_path / "model.sfd")
    state = State.load(tmp_path / "initial.sfs")
    random = np.random.default_rng(0)
    x = random.normal(size=(2, *artifact.tensors[0].shape)).astype(np.float32)
    y = np.array([0, 1], np.int32)
    with Session.open(artifact, state, 2, kernels="portable") as session:
        wanted = session.step(x, y, **RATES)
    with (
        EmulatedBoard(BOARD, tmp_path / BOARD / "firmware.elf") as machine,
        closing(SerialLink(partial(open_port, machine.port), patience_s=60)) as link,
    ):
        board = Board(link)
        facts = board.hello()
        assert facts.memory_bytes == manifest["board"]["memory_bytes"]
        assert facts.artifact_in_flash.holds(artifact.encode())
        link.ask_piece = None  # type: ignore[method-assign,assignment]  # nothing is to be sent
        assert board.send(SerialObject.ARTIFACT, artifact.encode())
        assert board.send(SerialObject.STATE, state.encode())
        del link.ask_piece
        layout = plan(artifact, state, 2, kernels="portable").layout
        planned = board.open(2, layout, examples=2)
        assert planned.arena_bytes == manifest["board"]["arena_bytes"]
        board.send(SerialObject.EXAMPLES, x.tobytes() + y.tobytes())
        assert board.train([0, 1], 2, steps_before=0, **RATES) == [wanted]


@pytest.mark.parametrize(
    ("arguments", "ram", "option"),
    [
        (["--batch-size", "200", "--density", "0.2"], 60_000, "--batch-size"),
        (["--batch-size", "8", "--density", "1.0"], 100_000, "--density"),
    ],
)
def test_what_is_missing_and_what_would_fit_hold_to_the_byte(
    arguments: list[str], ram: int, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *arguments, "--memory", str(ram)) == 2
    error = complaint(capsys)
    assert not tmp_path.joinpath("manifest.json").exists()
    missing = re.search(r"(\d+) are missing", error)
    assert missing is not None
    enough = ram + int(missing[1])
    assert run(tmp_path, *arguments, "--memory", str(enough)) == 0
    assert run(tmp_path, *arguments, "--memory", str(enough - 4)) == 2
    words = {"--batch-size": r"batch size (\d+) fits", "--density": r"a density of ([\d.]+) fits"}
    named = re.search(words[option], error)
    assert named is not None, error
    place = arguments.index(option) + 1
    arguments[place] = named[1]
    assert run(tmp_path, *arguments, "--memory", str(ram)) == 0


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--target", "board"], "--target board and --board NAME go together"),
        (["--board", BOARD], "--target board and --board NAME go together"),
        (["--image"], "--image goes with --target board"),
        ([*TARGET, "--memory", "4KiB"], "the firmware of mps2-an386 takes 8,192 itself"),
        (["--target", "board", "--board", "abacus"], "got board 'abacus', wanted one of"),
        (
            ["--target", "board", "--board", "rp2350", "--image"],
            "got board 'rp2350', wanted one of",
        ),
        ([*TARGET, "--device", "watch"], "got a device and a board"),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *MODEL, "--out", str(tmp_path), *arguments]) == 2
    assert wanted in complaint(capsys)


def test_a_missing_compiler_is_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _program: None)
    assert run(tmp_path / "out", "--image") == 1
    assert "arm-none-eabi-gcc not installed: mps2-an386 needs it (make boards" in complaint(capsys)
    assert not (tmp_path / "out").exists()


def test_a_model_too_large_for_the_flash_is_refused_with_what_is_missing(
    tmp_path: Path,
) -> None:
    require_compilers("mps3-an547")
    write_model(tmp_path / "model.c", b"\x01", artifact_bytes=600_000)
    with pytest.raises(ConfigurationError, match=r"\d[\d,]+ bytes of flash are missing"):
        firmware.build_image("mps3-an547", tmp_path / "model.c", tmp_path / "firmware.elf")


def test_make_links_another_model_also_if_its_file_is_older(tmp_path: Path) -> None:
    require_compilers(BOARD)
    for state in (b"the first state", b"the second one"):
        model, image = tmp_path / f"{state[4:9].decode()}.c", tmp_path / "model.elf"
        write_model(model, state, artifact_bytes=16)
        os.utime(model, (0, 0))
        command = ["make", "-C", str(firmware.sources()), f"BOARD={BOARD}", f"MODEL={model}"]
        subprocess.run([*command, f"FIRMWARE={image}"], check=True, timeout=300)
        assert state in image.read_bytes()
