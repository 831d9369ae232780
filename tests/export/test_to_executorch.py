"""The ExecuTorch program trains as the eager reference does, in the runtime of the executorch package."""

from __future__ import annotations

from pathlib import Path

from engine_cases import compiled

from sparsyfed import export


def test_stock_operators_pass_the_gate(tmp_path: Path) -> None:
    record = export.to_executorch(compiled("signal_net"), tmp_path / "m.pte", kernels="stock")
    assert record["verified"]["median_gradient_error"] <= 1e-5
    assert record["verified"]["worst_gradient_error"] <= 1e-5
