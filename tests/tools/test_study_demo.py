import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from sparsyfed.tools import study_demo, watch_job


@pytest.fixture
def result() -> dict[str, Any]:
    jobs = {"dense": study_demo._settings(watch_job.dense_job(30, 0))}
    runs = [
        {
            "system": system,
            "seed": seed,
            "final_accuracy": accuracy,
            "density_down": [1.0, density],
            "largest_update_bytes_after_round_1": size + seed,
            "multiply_adds_of_last_round": work,
        }
        for system, accuracies, density, size, work in [
            ("sparsyfed", (0.7, 0.8), 0.05, 35_000, 10),
            ("sparsyfed-presparsified", (0.6, 0.65), 0.05, 34_000, 9),
            ("dense", (0.72, 0.74), 1.0, 620_000, 100),
        ]
        for seed, accuracy in enumerate(accuracies)
    ]
    return {
        "model": "watch_cnn",
        "accuracy_definition": "mean over the last 5 rounds",
        "dense_update_bytes": 400_000,
        "jobs": jobs,
        "runs": runs,
        "command": "python -m sparsyfed.tools.study_demo --date 2026-11-21",
        "date": "2026-11-21",
        "machine": {"platform": "Linux", "processor": "one", "cpu_count": 2},
        "version": "0.1.0",
    }


def test_the_page_has_a_row_for_each_system(result: dict[str, Any]) -> None:
    lines = study_demo.markdown(result).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1
    assert "| 70.0% | 80.0% | 75.0% | 35,001 | 11.4 | 5.00% | 10 |" in rows[2]


def test_the_page_states_difference_command_and_date(result: dict[str, Any]) -> None:
    text = study_demo.markdown(result)
    assert "+2.0 points" in text
    assert "--date 2026-11-21" in text
    assert "Date 2026-11-21" in text


def test_the_page_is_written_anew_from_its_figures(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "watch.json").write_text(json.dumps(result))
    assert study_demo.main(["--date", "2026-11-21", "--out", str(tmp_path), "--page-only"]) == 0
    assert (tmp_path / "watch.md").read_text(encoding="utf-8") == study_demo.markdown(result)


def test_a_date_is_demanded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study_demo.main([])
    assert "--date" in capsys.readouterr().err


def test_final_accuracy_is_the_mean_of_the_last_five_rounds() -> None:
    assert watch_job.final_accuracy([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(0.3)
    assert watch_job.final_accuracy([0.2, 0.4]) == pytest.approx(0.3)
