"""The keyword study: tiny runs on made-up clips, and the page from made-up figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from board_machines import require_tools
from keyword_clips import write_clips

from sparsyfed.devices.board_fit import fit_on_board
from sparsyfed.devices.training import LocalRound
from sparsyfed.devices.virtual import train_devices
from sparsyfed.edge_runtime import State
from sparsyfed.edge_runtime.errors import ArenaError, ConfigurationError, FormatError, InputError
from sparsyfed.tools import in_process, keyword_boards, study_keywords
from sparsyfed.tools.keyword_boards import BOARD, board_settings, measure_point
from sparsyfed.tools.keyword_data import Clips, load_clips, split_speakers
from sparsyfed.tools.keyword_figures import Figures
from sparsyfed.tools.keyword_fleet import (
    BOARDS,
    CLIPS_OF_A_BOARD,
    LINUX_DEVICES,
    MixedRun,
    speakers_of_devices,
)
from sparsyfed.tools.keyword_page import markdown
from sparsyfed.tools.keyword_plots import draw_all
from sparsyfed.tools.keyword_points import MEASURED, POINTS, PRUNED_POINTS, ROUNDS, Point
from sparsyfed.tools.keyword_results import (
    FAMILIES,
    PointResult,
    chosen_rate,
    compare,
    compared_results,
    longer_tasks,
    longest_tasks,
    recommended,
    training_tasks,
    tuning_tasks,
)
from sparsyfed.tools.keyword_training import Task

TINY = Point("tiny", (8, 8, 16), (2, 2), sparsity=0.5)
KIB = 1024


def board(point: Point) -> dict[str, Any]:
    """Made-up measurements: dense points take 10 KiB for each channel of the last layer, sparse ones half of it."""
    size = point.widths[-1] * (1 if point.is_sparse else 5) * KIB
    return {
        "ram_bytes": size,
        "firmware_ram_bytes": 6464,
        "text_bytes": 30_000,
        "stored": 6000,
        "positions": 100_000,
        "state_bytes": 36_000,
        "planned_arena_bytes": size - 9000,
        "touched_arena_bytes": size - 9000,
        "touched_stack_bytes": 1300,
        "step_ticks": 61 * size,
        "multiply_adds": {"forward": 1, "d_input": 1, "d_weight": 1, "recomputed": 0},
        "update_bytes": 36_000,
        "same_bits_as_host": True,
    }


def results_of(figures: Figures) -> list[PointResult]:
    return compared_results(figures)


@pytest.fixture
def figures(tmp_path: Path) -> Figures:
    found = Figures(tmp_path / "keywords.json")
    found.describe(
        {
            "date": "2026-11-21",
            "machine": {"platform": "Linux", "processor": "one", "cpu_count": 2},
            "versions": {"sparsyfed": "0.1.0"},
            "commands": {"tune": "python -m sparsyfed.tools.study_keywords --date 2026-11-21"},
            "kernels": "avx2",
        }
    )
    for task in tuning_tasks(ROUNDS):
        found.put("tuning", task.settings(), {"final_accuracy": 0.5 - abs(task.rate - 0.06)})
    for task in longer_tasks(found):
        accuracy = (0.8 if task.point.is_sparse else 0.6) + 0.01 * task.seed
        found.put("runs", task.settings(), {"final_accuracy": accuracy})
    for point, batch_size in MEASURED:
        found.put("boards", board_settings(point, batch_size), board(point))
    return found


def test_the_best_rate_of_the_tuned_points_is_taken_for_the_family(figures: Figures) -> None:
    assert chosen_rate(figures, "dense-narrow", ROUNDS) == 0.06
    assert chosen_rate(figures, "sparse-wide", ROUNDS) == 0.05
    rates = {task.point.family: task.rate for task in training_tasks(figures, ROUNDS)}
    assert rates == {"dense-narrow": 0.06, "sparse-wide": 0.05}


def test_no_rate_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the step tune first"):
        training_tasks(Figures(tmp_path / "keywords.json"), ROUNDS)


def test_families_are_compared_within_a_limit(figures: Figures) -> None:
    results = results_of(figures)
    assert len(results) == len(POINTS) + len(PRUNED_POINTS)
    for family in FAMILIES[1:]:
        within = compare(results, 300 * KIB, lambda result: result.ram_bytes, family)
        assert within.verdict == family
        assert within.wide is not None
        assert within.wide.point.family == family
        assert within.wide.accuracy == pytest.approx(0.81)
        assert within.dense is not None
        assert within.dense.ram_bytes <= 300 * KIB
        best = recommended(results, "dense-narrow", family)
        assert best is not None
        assert best.point.family == family
    assert compare(results, KIB, lambda result: result.ram_bytes).verdict == "none fits"
    assert recommended([], *FAMILIES) is None


def test_what_the_seeds_do_not_show_is_not_decided(figures: Figures) -> None:
    for task in longer_tasks(figures):
        accuracy = 0.6 + (0.015 if task.point.is_sparse else 0.0)
        figures.put("runs", task.settings(), {"final_accuracy": accuracy})
    results = results_of(figures)
    limit = 1 << 30
    assert compare(results, limit, lambda result: result.ram_bytes).verdict == "not decided"


def test_the_page_is_made_of_the_figures_and_repeats(figures: Figures, tmp_path: Path) -> None:
    plots = draw_all(results_of(figures))
    page = markdown(figures, plots)
    assert page == markdown(Figures(tmp_path / "keywords.json"), draw_all(results_of(figures)))
    assert "CC BY 4.0" in page
    assert "sparse-wide is better" in page
    assert "pruned-wide is better" in page
    assert "Recommended for such a fleet" in page
    assert "not trained to the end" in page
    assert page.count("| S2 |") >= 1
    assert "| **" in page  # the rate that was taken
    assert page.count("Not run yet.") == 1  # no mixed run
    assert all(plot.file_name in page and plot.svg.count("<svg") == 1 for plot in plots)


def test_the_answer_has_the_best_within_both_limits(figures: Figures) -> None:
    answer = markdown(figures, []).partition("### Where Linux devices begin")[0]
    limits = [line.split(" | ") for line in answer.splitlines() if " KiB | " in line]
    named = {row[0]: [cell.split(" ")[0].strip("*") for cell in row[1:]] for row in limits}
    # Sparse points are equal here, and the first of them is taken: S1 has 128 channels at the end, S5 has 64.
    assert named["| 64 KiB"] == ["S5"] * 5
    assert named["| 384 KiB"] == ["S5", "S5", "S1", "S1", "S1"]


def test_a_cheaper_point_that_is_as_good_is_named(figures: Figures) -> None:
    results = [r for r in results_of(figures) if r.point.family != "pruned-wide"]
    best = recommended(results, *FAMILIES)
    assert best is not None
    equal = [r for r in results if r.point.is_sparse and r is not best]
    less = min(equal, key=lambda result: result.ram_bytes)
    assert f"do not tell it from **{less.point.name}**" in markdown(figures, [])
    for task in longer_tasks(figures):
        if task.point == less.point:
            figures.put("runs", task.settings(), {"final_accuracy": 0.7})
    assert f"do not tell it from **{less.point.name}**" not in markdown(figures, [])


def test_fewer_rounds_and_more_stand_beside_each_other(figures: Figures) -> None:
    for task in training_tasks(figures, ROUNDS):
        figures.put("runs", task.settings(), {"final_accuracy": 0.5})
    for task in longest_tasks(figures):
        if task.seed < 2:
            figures.put("runs", task.settings(), {"final_accuracy": 0.9})
    page = markdown(figures, [])
    assert "gained 11.0 to 31.0 points" in page
    assert page.count("D4 reaches 90.0% (2 of 3 seeds) after 540, from 61.0%.") == 1
    assert page.count("| 50.0% | 61.0% | 90.0% (2 of 3 seeds) |") == 1
    assert "By RAM, after 60 rounds: only one fits at 64 KiB; not decided at" in page


def test_a_point_that_is_little_too_large_is_named(figures: Figures) -> None:
    for point in POINTS:
        size = (97 if point.name == "D6" else 90) * KIB
        figures.put("boards", board_settings(point, 1), {**board(point), "ram_bytes": size})
    for task in longer_tasks(figures):
        accuracy = 0.9 if task.point.name == "D6" else 0.8 if task.point.is_sparse else 0.6
        figures.put("runs", task.settings(), {"final_accuracy": accuracy})
    assert "At 96 KiB, D6 is 1,024 bytes too large, which reaches 90.0%." in markdown(figures, [])


def test_a_point_without_runs_is_left_out(figures: Figures) -> None:
    figures.content["runs"] = [
        run for run in figures.content["runs"] if run["settings"]["point"] != POINTS[0].settings()
    ]
    names = [result.point.name for result in results_of(figures)]
    assert names == [point.name for point in (*POINTS[1:], *PRUNED_POINTS)]


def test_without_runs_of_pruned_points_the_page_says_so(figures: Figures) -> None:
    figures.content["runs"] = [
        run for run in figures.content["runs"] if not run["settings"]["job"]["dense_rounds"]
    ]
    assert "### Where Linux devices begin\n\nNot run yet." in markdown(figures, [])


def test_figures_survive_and_are_replaced_by_their_settings(tmp_path: Path) -> None:
    path = tmp_path / "keywords.json"
    Figures(path).put("runs", {"a": (1, 2)}, {"final_accuracy": 0.5})
    again = Figures(path)
    assert again.find("runs", {"a": [1, 2]}) is not None
    again.put("runs", {"a": [1, 2]}, {"final_accuracy": 0.6})
    assert [run["final_accuracy"] for run in Figures(path).content["runs"]] == [0.6]
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(FormatError, match="no figures of this study"):
        Figures(path)


def test_runs_are_done_once_and_kept_at_once(tmp_path: Path) -> None:
    clips = load_clips(write_clips(tmp_path / "clips.npz"))
    figures = Figures(tmp_path / "keywords.json")
    tasks = [Task(purpose, TINY, 0.1, 0, rounds=2) for purpose in ("tuning", "runs")]
    said: list[str] = []
    study_keywords.train(tasks, figures, clips, 2, said.append)
    assert len(said) == 2
    assert "0 to go" in said[-1]
    study_keywords.train(tasks, figures, clips, 1, said.append)
    assert len(said) == 2
    runs = json.loads((tmp_path / "keywords.json").read_text())["runs"]
    assert len(runs[0]["accuracy"]) == 2
    assert not runs[0]["diverged"]
    split = split_speakers(clips)
    assert len(tasks[0].data(clips, split).devices) == len(split.training)
    assert len(tasks[1].data(clips, split).devices) == len(split.training) + len(split.validation)


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    clips = load_clips(write_clips(tmp_path / "clips.npz"))
    task = Task("runs", replace(TINY, sparsity=0.0), 1e30, 0, rounds=1)
    figures = Figures(tmp_path / "keywords.json")
    study_keywords.train([task], figures, clips, 1, lambda _: None)
    (run,) = figures.content["runs"]
    assert run["diverged"]
    assert run["final_accuracy"] == 0.0


def test_a_point_is_measured_with_the_least_ram() -> None:
    require_tools(BOARD)
    found = measure_point(TINY, 1)
    assert found["same_bits_as_host"]
    assert found["planned_arena_bytes"] == found["touched_arena_bytes"]
    assert found["ram_bytes"] % keyword_boards.GRAIN_BYTES == 0
    assert (
        found["firmware_ram_bytes"] + found["planned_arena_bytes"] < found["ram_bytes"] < 64 * KIB
    )
    assert found["step_ticks"] > 0
    one_grain_less = found["ram_bytes"] - keyword_boards.GRAIN_BYTES - found["firmware_ram_bytes"]
    artifact, state = TINY.compile(0)
    with pytest.raises(ArenaError):
        fit_on_board(artifact, state.encode(), 1, one_grain_less, 1)


def test_boards_have_a_speaker_each_and_linux_devices_the_others() -> None:
    counts = [CLIPS_OF_A_BOARD - 1, *[CLIPS_OF_A_BOARD] * 20]
    speaker = np.repeat(np.arange(21, dtype=np.int32), counts)
    clips = Clips(np.zeros((len(speaker), 1, 49, 20), np.float32), speaker % 12, speaker, ())
    speakers = speakers_of_devices(clips)
    assert [len(speakers[name]) for name in BOARDS.names] == [1, 1]
    assert not {0} & {
        one for name in BOARDS.names for one in speakers[name]
    }  # it has too few clips
    assert len(speakers) == len(BOARDS.names) + LINUX_DEVICES
    everybody = [one for own in speakers.values() for one in own]
    assert len(everybody) == len(set(everybody))
    assert not set(everybody) & set(split_speakers(clips).test)


def test_boards_join_a_pruned_point_after_its_dense_rounds(tmp_path: Path) -> None:
    clips = load_clips(write_clips(tmp_path / "clips.npz"))
    task = Task("runs", replace(TINY, dense_share=0.5), 0.1, 0, rounds=4)
    figures = Figures(tmp_path / "keywords.json")
    seen: list[tuple[int, float, set[str]]] = []

    def watch(devices: Any, artifact: Any, state: Any, work: LocalRound, **options: Any) -> Any:
        devices = list(devices)
        density = State.decode(state).density
        seen.append((work.round, density, {device.name for device in devices}))
        return train_devices(devices, artifact, state, work, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_process, "train_devices", watch)
        study_keywords.train([task], figures, clips, 1, lambda _: None)
    assert [(number, density) for number, density, _ in seen[:2]] == [(1, 1.0), (2, 1.0)]
    assert [density for _, density, _ in seen[2:]] == pytest.approx([0.5, 0.5], abs=0.01)
    names = sorted(task.data(clips, split_speakers(clips)).devices)
    for number, _, devices in seen:
        assert devices <= set(names[::2] if number <= 2 else names)
    assert any(devices - set(names[::2]) for _, _, devices in seen[2:])


def test_a_mixed_run_is_known_by_what_it_trains() -> None:
    settings = MixedRun(TINY, 0.1).settings()
    assert settings["job"]["batch_size"] == 1
    assert settings["boards"]["ram_bytes"] == BOARDS.ram_bytes
    json.dumps(settings)


def test_page_only_needs_no_data(
    figures: Figures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del figures
    arguments = ["--date", "2026-11-21", "--out", str(tmp_path), "--page-only"]
    assert study_keywords.main(arguments) == 0
    assert (tmp_path / "keywords.md").exists()
    assert "keywords-ram.svg" in capsys.readouterr().out


def test_without_figures_there_is_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--date", "2026-11-21", "--out", str(tmp_path), "--page-only"]
    assert study_keywords.main(arguments) == 0
    assert "no page yet" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.md"))


def test_training_wants_the_data(tmp_path: Path) -> None:
    arguments = ["--date", "2026-11-21", "--out", str(tmp_path), "--steps", "tune"]
    with pytest.raises(ConfigurationError, match="got no --data"):
        study_keywords.main(arguments)


def test_a_command_that_is_kept_names_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_keywords, "measure", lambda _figures, _say: None)
    data = write_clips(tmp_path / "clips.npz")
    arguments = ["--date", "2026-11-21", "--data", str(data), f"--out={tmp_path}", "--steps"]
    assert study_keywords.main([*arguments, "measure"]) == 0
    commands = Figures(tmp_path / "keywords.json").content["commands"]
    assert str(tmp_path) not in commands["measure"]
    assert "--data clips.npz" in commands["measure"]
