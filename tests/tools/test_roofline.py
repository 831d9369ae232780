import shutil
from typing import Any

import pytest

from sparsyfed.tools import roofline


def measured(largest: int) -> dict[str, Any]:
    sizes = [
        {"bytes": 2**power, "load_bytes_per_second": 2.0**-power, "copy_bytes_per_second": 1e9}
        for power in range(14, largest + 1)
    ]
    caches = {"L1": 2**15, "L2": 2**20, "L3": 2**25}
    return {"peak_flops": 1e10, "sizes": sizes, "caches": caches}


def test_a_level_is_measured_at_half_of_its_cache() -> None:
    sizes = {name: rates["bytes"] for name, rates in roofline.levels(measured(28)).items()}
    assert sizes == {"L1": 2**14, "L2": 2**19, "L3": 2**24, "memory": 2**28}


def test_a_cache_as_large_as_what_was_touched_leaves_no_figure_for_memory() -> None:
    assert "memory" not in roofline.levels(measured(26))


def test_without_known_caches_only_memory_is_left() -> None:
    assert roofline.levels({**measured(28), "caches": {}}).keys() == {"memory"}


def test_parts_of_a_step_at_the_ceilings() -> None:
    figures = measured(28)
    for size in figures["sizes"]:
        size["load_bytes_per_second"] = 4e9
    parts = roofline.floors(figures, multiply_adds=1e9, traffic_bytes=2e9)
    assert parts == {
        "multiply-adds in registers": 0.2,
        "multiply-adds, each with a load from L1": 1.0,
        "multiply-adds, each with a load from L2": 1.0,
        "traffic at the rate of L3": 2.0,
        "traffic at the rate of memory": 2.0,
    }


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_this_machine_is_measured() -> None:
    figures = roofline.measure_roofline()
    assert figures is not None
    assert figures["peak_flops"] > 1e8
    rates = [size["load_bytes_per_second"] for size in figures["sizes"]]
    assert min(rates) > 1e7
    # No processor multiplies faster with a load each than without one.
    assert max(rates) / 4 * 2 < 1.25 * figures["peak_flops"]


def test_without_a_compiler_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert roofline.measure_roofline() is None
