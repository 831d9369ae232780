"""sparsyfed device emulate and gateway, as commands."""

import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from board_machines import require_tools

from sparsyfed.devices.board import Board
from sparsyfed.devices.serial_link import SerialLink
from sparsyfed.devices.serial_port import open_port
from sparsyfed.tools.cli import EXIT_INTERRUPTED, main

BOARD = "mps2-an386"
GATEWAY = ("gateway", "--id", "g", "--broker", "b", "--directory", "d")


def processes_with(text: str) -> list[Path]:
    """Command lines of running processes that hold this text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(path)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_emulated_boards_answer_and_end_with_their_command() -> None:
    require_tools(BOARD)
    firmware = f"{BOARD}/firmware-{200 * 1024}.elf"
    command = [sys.executable, "-m", "sparsyfed.tools", "device", "emulate"]
    with subprocess.Popen(
        [*command, "--board", BOARD, "--count", "2", "--ram", "200KiB"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        ports = [process.stdout.readline().strip() for _ in range(2)]
        try:
            for port in ports:
                with closing(SerialLink(partial(open_port, port), patience_s=30)) as link:
                    facts = Board(link).hello()
                assert facts.name == BOARD
                assert facts.memory_bytes < 200 * 1024
            assert len(processes_with(firmware)) == 2
        finally:
            process.terminate()
    assert process.returncode == EXIT_INTERRUPTED
    until = time.monotonic() + 10
    while processes_with(firmware) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_with(firmware) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GATEWAY, "--port", "p", "--data", "sensors:"], "wanted a folder or sensors:COUNT"),
        ([*GATEWAY, "--port", "p", "--data", "sensors:0"], "wanted 1 to 65536"),
        (
            ["emulate", "--board", BOARD, "--image", "x.elf", "--ram", "1MiB"],
            "an image has its own",
        ),
        (["emulate", "--board", BOARD, "--image", "x.elf"], "x.elf: No such file"),
        (["emulate", "--board", "mps9"], "got board 'mps9', wanted one of"),
        (["emulate", "--board", BOARD, "--count", "0"], "got 0 boards, wanted 1 to 64"),
        (
            [
                "gateway",
                "--id",
                "g",
                "--broker",
                "b",
                "--directory",
                "d",
                "--port",
                "a",
                "--port",
                "b",
                "--data",
                "x",
            ],
            "got 2 of --port and 1 of --data, wanted as many",
        ),
        (
            [
                "gateway",
                "--id",
                "g",
                "--broker",
                "b",
                "--directory",
                "d",
                "--port",
                "a",
                "--data",
                "x",
                "--port",
                "a",
                "--data",
                "y",
            ],
            "got a port twice: a, a",
        ),
        (
            [
                "gateway",
                "--id",
                "g",
                "--broker",
                "b",
                "--directory",
                "d",
                "--port",
                "socket://x",
                "--data",
                "x",
            ],
            "got port 'socket://x', wanted socket://HOST:PORT",
        ),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["device", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
