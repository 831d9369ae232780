"""The page on training steps, from made-up figures; the measurements are those of `bench`."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from sparsyfed.tools import study_step
from sparsyfed.tools.step_goals import MASKS, MODELS, Verdict, by_sparsity, judge
from sparsyfed.tools.step_page import markdown
from sparsyfed.tools.step_plots import draw_all
from sparsyfed.tools.study_step import Extent, step_parts


def spread(value: float) -> dict[str, float]:
    return {"median": value, "low": 0.9 * value, "high": 1.1 * value}


def step(speedup: float, sparsity: float, **values: Any) -> dict[str, Any]:
    density = 1 - sparsity
    row = {
        "model": "resnet18",
        "batch_size": 16,
        "isa": "best",
        "kernels": "avx512",
        "chosen_kernels": True,
        "memory": None,
        "masks": "random",
        "budget": "global",
        "sparsity": sparsity,
        "density": density,
        "dense_format": "channels_last",
        "dense_seconds": {"contiguous": spread(0.6), "channels_last": spread(0.5)},
        "seconds": spread(0.5 / speedup),
        "speedup": spread(speedup),
        "speedup_over_reference": None,
        "multiply_adds": {
            name: {"done": density * 1e9, "dense": 10**9, "share": density}
            for name in ("forward", "d_input", "d_weight", "recomputed")
        },
        "traffic_bytes": 10**8,
        "arena_bytes": 1000,
        "arena_peak_bytes": 1000,
    }
    return row | values


@pytest.fixture
def result() -> dict[str, Any]:
    masks = [
        step(speed * (1 if masks == "random" else 0.5), sparsity, masks=masks, budget=budget)
        for (sparsity, speed), masks, budget in product(
            ((0.9, 4.6), (0.95, 6.0), (0.99, 12.0)), MASKS, ("global", "erk")
        )
    ]
    others = [
        step(5.0, 0.95, speedup_over_reference=spread(13.0)),
        step(9.0, 0.95, isa="avx2", kernels="avx2"),
        step(2.0, 0.95, kernels="portable", chosen_kernels=False),
        step(0.5, 0.0, model="mlp", batch_size=1),
        step(1.2, 0.5, model="mlp", batch_size=1),
        step(5.0, 0.95, memory="fast"),
        step(4.0, 0.95, memory="small", arena_peak_bytes=999),
    ]
    sides = {"before_bytes": 0, "loaded_bytes": 40 * 2**20, "peak_bytes": 240 * 2**20}
    session = {"before_bytes": 0, "loaded_bytes": 30 * 2**20, "peak_bytes": 30 * 2**20}
    arena = {"planned_bytes": 31_000_000, "arena_peak_bytes": 31_000_000}
    layer = {
        "layer": "64->128 3x3 @32x32 stride 2",
        "of_net": True,
        "sparsity": 0.95,
        "dense_seconds": {"forward": spread(0.006), "step": spread(0.02)},
        "seconds": {"forward": spread(0.0006), "step": spread(0.003)},
        "speedup": {"forward": spread(10.0), "step": spread(6.7)},
        "operator_seconds": {name: spread(0.006) for name in ("forward", "d_input", "d_weight")},
    }
    sizes = [
        {"bytes": 2**power, "load_bytes_per_second": 2e11, "copy_bytes_per_second": 1e11}
        for power in range(14, 29)
    ]
    return {
        "machine": {
            "platform": "Linux",
            "processor": "one",
            "cpu_count": 2,
            "vector_instructions": ["avx2"],
        },
        "versions": {"sparsyfed": "0.1.0", "torch": "2.13.0"},
        "environment": {},
        "date": "2026-11-21",
        "command": "python -m sparsyfed.tools.study_step --date 2026-11-21",
        "steps": masks + others,
        "trainings": [],
        "layers": [layer],
        "memory": [
            {
                "model": "resnet18",
                "batch_size": 16,
                "sparsity": 0.95,
                "memory": "fast",
                "dense": {"processes": 3, **sides},
                "session": {**session, **arena, "transient_bytes": 40 * 2**20},
                "smaller_with_model": 8.0,
                "smaller_step": 4.9,
            }
        ],
        "roofline": {
            "vector_bytes": 32,
            "peak_flops": 1e11,
            "sizes": sizes,
            "caches": {"L1": 2**15, "L2": 2**20, "L3": 2**25},
        },
    }


def verdicts(result: dict[str, Any]) -> dict[str, Verdict]:
    return {verdict.title: verdict for verdict in judge(result)}


def test_the_slowest_of_several_measurements_is_judged(result: dict[str, Any]) -> None:
    verdict = verdicts(result)["batch 16, 95%, random masks, global budget"]
    assert verdict.measured == 5.0
    assert (verdict.met(verdict.bound), verdict.met(verdict.goal)) == ("not met", "not met")
    assert by_sparsity([step(6.0, 0.95), step(5.0, 0.95)])[0.95]["speedup"]["median"] == 5.0


def test_bounds_and_goals_are_judged_apart(result: dict[str, Any]) -> None:
    found = verdicts(result)
    met = {
        title: (verdict.met(verdict.bound), verdict.met(verdict.goal))
        for title, verdict in found.items()
    }
    assert met["batch 16, 90%, random masks, global budget"] == ("met", "met")
    assert not any("trained" in title for title in met)
    assert met["batch 16, 95%, random masks, erk budget"] == ("met", "met")
    assert met["batch 16, 95%, AVX2 on both sides"] == ("met", "met")
    assert met["batch 16, 95%, 128 bits on both sides"] == ("-", "-")
    assert met["batch 16, 95%, over the published simulation's step"] == ("met", "-")
    assert met["mlp, batch 1, least at densities up to 50%"] == ("met", "-")
    assert met["mlp, batch 1, time at 100% density over dense"] == ("not met", "-")
    assert met['memory="fast", 95%: step, dense / ours'] == ("not met", "-")
    assert met['memory="fast", 95%: model and step, dense / ours'] == ("met", "-")
    assert met["multiply-adds of forward, 95%, of dense"] == ("met", "-")
    assert found['memory="small", 95%: time over "fast"'].measured == pytest.approx(1.25)
    portable = found["multiply-adds of weight gradients, 95%, portable kernels, of dense"]
    assert portable.met(portable.bound) == "not met"


def test_an_arena_that_differs_from_its_plan_is_counted(result: dict[str, Any]) -> None:
    verdict = verdicts(result)["arenas whose touched bytes differ from plan"]
    assert (verdict.measured, verdict.met(verdict.bound)) == (1, "not met")


def test_what_was_not_measured_is_neither_met_nor_missed(result: dict[str, Any]) -> None:
    empty = {**result, "steps": [], "memory": []}
    for verdict in judge(empty):
        assert (verdict.measured, verdict.met(verdict.bound)) == (None, "-")


def test_the_page_has_every_section_and_whole_tables(result: dict[str, Any]) -> None:
    page = markdown(result, draw_all(result), "Tried: nothing.")
    for heading in ("Bounds and goals", "Steps", "Layers", "Memory", "What bounds a step", "Notes"):
        assert f"\n## {heading}\n" in page
    for table in page.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    assert "| 64->128 3x3 @32x32 stride 2 \\* |" in page
    assert "--date 2026-11-21" in page
    assert page.split("## Memory")[1].count("| 3 |") == 1  # processes of dense
    assert "## Notes" not in markdown(result, [], None)


def test_without_a_compiler_the_page_says_so(result: dict[str, Any]) -> None:
    result["roofline"] = None
    assert "no C compiler" in markdown(result, draw_all(result), None)


def test_plots_stand_alone_and_repeat(result: dict[str, Any]) -> None:
    plots = draw_all(result)
    assert len({plot.file_name for plot in plots}) == 4
    for plot in plots:
        assert plot.svg.startswith("<?xml")
        assert "var(--" not in plot.svg
        assert "#0102" not in plot.svg
    assert plots == draw_all(result)


def test_the_page_is_written_anew_from_its_figures(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "step.json").write_text(json.dumps(result))
    notes = tmp_path / "notes.md"
    notes.write_text("Tried: larger tiles.\n")
    arguments = ["--date", "2026-11-21", "--out", str(tmp_path), "--page-only"]
    assert study_step.main([*arguments, "--notes", str(notes)]) == 0
    page = (tmp_path / "step.md").read_text()
    assert page.endswith("Tried: larger tiles.\n")
    for plot in draw_all(result):
        assert f"]({plot.file_name})" in page
        assert (tmp_path / plot.file_name).read_text() == plot.svg


def test_the_study_measures_what_the_goals_name() -> None:
    parts = step_parts(Extent(turns=3, trained_steps=5, data=None, memory=["fast", "small"]))
    assert all(part.turns == 3 for part in parts)
    assert parts[0].reference
    assert (parts[0].masks, parts[0].trained_steps) == (("random", "initial"), 5)
    assert {size for part in parts for size in part.batch_sizes} == {1, 4, 16, 64}
    assert {name for part in parts for name in part.models} == set(MODELS)
    assert list(parts[-1].memory) == ["fast", "small"]
    assert len(step_parts(Extent(3, 5, None, memory=[]))) == len(parts) - 1


def test_a_date_is_demanded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study_step.main([])
    assert "--date" in capsys.readouterr().err
