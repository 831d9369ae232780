"""sparsyfed profile --board."""

import json
from pathlib import Path

import pytest
from board_machines import require_tools
from model_strategies import ModelBuilder

from sparsyfed.devices.board_fit import fit_on_board
from sparsyfed.devices.feasibility import evenly_spread_state
from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.format import Loss, OperationKind
from sparsyfed.tools.cli import main

BOARD = "mps2-an386"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A regression over 60 features: 3,240 weights, dense too much for 40 KB."""
    net = ModelBuilder(Tensor(60, 1, 1, 1))
    net.linear(net.activation(net.linear(0, 50), OperationKind.RELU), 2)
    path = tmp_path / "model.sfd"
    net.finish(Loss.MEAN_SQUARED_ERROR).save(path)
    return path


def test_a_step_is_measured_on_the_board(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_tools(BOARD)
    arguments = [str(artifact), "--board", BOARD, "--batch-size", "2", "--density", "0.1"]
    assert main(["profile", *arguments, "--memory", "40KiB", "--json"]) == 0
    output = capsys.readouterr()
    assert "step 2 of 2" in output.err
    report = json.loads(output.out)
    assert report["board"]["name"] == BOARD
    assert 30_000 < report["board"]["memory_bytes"] < 40 * 1024
    step = report["steps"]["sparse"]
    assert step["planned_arena_bytes"] == step["touched_arena_bytes"] == step["host_arena_bytes"]
    assert step["same_bits_as_host"]
    assert 0 < step["evaluation_ticks"] < step["step_ticks"]
    parts = step["step_parts"]
    assert list(parts) == ["forward", "backward", "top_k", "update"]
    assert abs(sum(parts.values()) - step["step_ticks"]) <= len(parts)
    assert min(parts.values()) > 0
    assert step["multiply_adds"]["forward"] == 2 * step["nonzeros"]
    assert step["hosts"]["portable"]["arena_bytes"] == step["planned_arena_bytes"]
    assert step["hosts"]["best"]["cpu_seconds"] > 0
    assert report["flash_left_bytes"] == 4 * 2**20 - report["board"]["text_bytes"]
    assert step["ram_left_bytes"] > 0
    dense = report["steps"]["dense"]
    assert "are missing" in dense
    assert "a density of 0.5 fits" in dense
    page = tmp_path / "board.html"
    assert main(["profile", *arguments, "--html", str(page)]) == 0
    assert "Top-K of inputs" in page.read_text()
    assert page.read_text().count("<svg") == 2
    text = capsys.readouterr().out
    assert "instructions" in text
    assert "the bits are the same as" in text
    assert "100.00% stored" in text  # with all its RAM the board holds it dense, too


def test_a_dense_step_is_measured_where_it_fits_layer_by_layer_alone(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_tools(BOARD)
    arguments = [str(artifact), "--board", BOARD, "--batch-size", "2", "--density", "0.1"]
    assert main(["profile", *arguments, "--memory", "54KiB", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    model = Artifact.load(artifact)
    dense = evenly_spread_state(model, 1.0).encode()
    assert fit_on_board(model, dense, 2, report["board"]["memory_bytes"], 2).memory == "layerwise"
    for step in report["steps"].values():
        assert step["same_bits_as_host"]
        assert step["planned_arena_bytes"] == step["touched_arena_bytes"]
        assert step["multiply_adds"]["forward"] == 2 * step["nonzeros"]
        assert abs(sum(step["step_parts"].values()) - step["step_ticks"]) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--board", BOARD, "--profiles", "x.toml"], "--profiles goes with --device"),
        (["--board", "stm32f746-discovery"], "wanted one of mps2-an385"),
        (["--board", BOARD, "--port", "x", "--memory", "1KiB"], "--port names another"),
        (["--board", BOARD, "--port", "socket://127.0.0.1:1"], "cannot open port socket://127"),
        (["--board", BOARD, "--html", "no/such/page.html"], "there is no folder no/such"),
        (["--device", "all", "--port", "x"], "--port goes with --board"),
        (["--board", "mps9"], "got board 'mps9', wanted one of mps2-an385"),
        ([], "one of the arguments --device --board is required"),
    ],
)
def test_mistakes_get_one_line(
    options: list[str], message: str, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["profile", str(artifact), *options])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
