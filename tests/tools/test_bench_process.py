import json
import subprocess
from typing import Any

import pytest

from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError
from sparsyfed.tools import bench_process
from sparsyfed.tools.bench_process import measure_apart


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the measuring process was started with; it answers 7."""
    started: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        started.update(options, command=command)
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps({"result": 7}))

    monkeypatch.setattr(subprocess, "run", run)
    return started


@pytest.mark.parametrize("isa", ["best", "avx2", "sse2"])
def test_both_sides_are_under_the_limits_asked_for_and_no_others(
    isa: str, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in bench_process.LIMITING:
        monkeypatch.setenv(name, "of the user")
    assert measure_apart("bench_step", {"turns": 3}, isa) == 7
    limits = {k: v for k, v in started["env"].items() if k in bench_process.LIMITING}
    assert limits == bench_process.LIMITS[isa]
    assert started["env"]["OMP_NUM_THREADS"] == "1"
    assert json.loads(started["input"]) == {"turns": 3}


def test_every_limit_is_taken_away_where_it_is_not_asked_for() -> None:
    for limits in bench_process.LIMITS.values():
        assert limits.keys() <= set(bench_process.LIMITING)


def test_wrong_settings_come_back_as_an_error_of_the_user() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    settings = {"models": ["lstm"], "turns": 1}
    with pytest.raises(ConfigurationError, match="no model 'lstm'"):
        measure_apart("bench_step", {"settings": settings, "trained": {}})


def test_a_process_that_breaks_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="ended with code 1"):
        measure_apart("no_such_module", {})
    assert "no_such_module" in capfd.readouterr().err
