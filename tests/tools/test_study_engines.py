import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from sparsyfed.tools import bench_engines, study_engines


def row(engine: str, over_eager: float, sparsity: float = 0.95) -> dict[str, Any]:
    spread = {"median": over_eager, "low": over_eager - 0.1, "high": over_eager + 0.1}
    figures = {"base_bytes": 60_000_000, "peak_bytes": 90_000_000}
    return {
        "model": "mlp",
        "batch_size": 16,
        "sparsity": sparsity,
        "engine": engine,
        "version": f"{engine} 9.1",
        "seconds": {"median": 0.0123, "low": 0.01, "high": 0.02},
        "over_eager": spread,
        "over_native": spread,
        "memory": None if engine == "dense" else figures,
        "file_bytes": None if engine == "dense" else 1234,
    }


def test_the_page_says_what_was_measured_and_what_was_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = "onnxruntime (stock)"
    rows = [row("dense", 0.4), row(stock, 1.5), row(stock, 1.2, 0.9)]
    monkeypatch.setattr(bench_engines, "run", lambda _: {"engines": rows})
    arguments = ["--date", "2026-11-21", "--out", str(tmp_path), "--models", "mlp"]
    assert study_engines.main(arguments) == 0
    page = (tmp_path / "engines.md").read_text(encoding="utf-8")
    assert "| onnxruntime (stock) | `mlp` | 1.4 | 1.50 | missed |" in page
    cells = (
        "| 95% | onnxruntime (stock) | 12.3 | 1.50 | 1.40–1.60 | 1.50 | 60 MB | 90 MB | 1.23 kB |"
    )
    assert cells in page
    assert "; onnxruntime (stock) 9.1. " in page
    assert "2026-11-21" in page
    assert "study_engines --date 2026-11-21" in page
    measured = json.loads((tmp_path / "engines.json").read_text(encoding="utf-8"))
    assert measured["engines"] == rows
    assert study_engines.main([*arguments, "--page-only"]) == 0
    assert (tmp_path / "engines.md").read_text(encoding="utf-8") == page
