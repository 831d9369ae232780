from dataclasses import replace

import pytest
from model_strategies import random_model

from sparsyfed.devices.feasibility import BATCH_SIZES, DENSITIES, evenly_spread_state, feasibility
from sparsyfed.devices.profiles import find_profile
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.state import SparseTensor


def test_each_pair_is_planned_and_compared(artifact: Artifact) -> None:
    needed = plan(artifact, evenly_spread_state(artifact, 0.1), 8, kernels="portable").arena_bytes
    board = replace(find_profile("cortex_m4f_256k"), memory_bytes=needed)
    host = find_profile("linux_host")
    on_board, on_host = feasibility(artifact, [board, host])
    assert [(fit.density, fit.batch_size) for fit in on_board.fits] == [
        (density, batch) for density in DENSITIES for batch in BATCH_SIZES
    ]
    for fit in on_board.fits:
        state = evenly_spread_state(artifact, fit.density)
        planned = plan(artifact, state, fit.batch_size, kernels="portable")
        assert fit.arena_bytes == planned.arena_bytes
        assert fit.fits == (planned.arena_bytes <= needed)
        assert fit.estimated_seconds == planned.macs.total / 12_800_000
    assert on_board.largest_batch(0.1) == 8
    assert {fit.fits for fit in on_board.fits} == {True, False}
    assert all(fit.fits and fit.estimated_seconds is None for fit in on_host.fits)


def test_what_does_not_fit_is_planned_smaller() -> None:
    model = random_model("residual", 8, 0.5)
    state = evenly_spread_state(model.artifact, 0.5)
    fast, small = (
        plan(model.artifact, state, 8, kernels="portable", memory=memory).arena_bytes
        for memory in ("fast", "small")
    )
    assert small < fast
    board = find_profile("cortex_m4f_256k")
    devices = [replace(board, memory_bytes=size) for size in (fast, fast - 1, small, small - 1)]
    found = feasibility(model.artifact, devices, batch_sizes=[8], densities=[0.5])
    fits = [(fit.memory, fit.arena_bytes, fit.fits) for item in found for fit in item.fits]
    assert fits == [
        ("fast", fast, True),
        ("small", small, True),
        ("small", small, True),
        ("small", small, False),
    ]


def test_nothing_fits_a_device_without_memory(artifact: Artifact) -> None:
    (result,) = feasibility(artifact, [replace(find_profile("watch"), memory_bytes=1)])
    assert result.largest_batch(0.01) is None


@pytest.mark.parametrize("density", [1.0, 0.5, 0.3, 0.05, 0.01])
def test_the_support_is_spread_evenly(artifact: Artifact, density: float) -> None:
    state = evenly_spread_state(artifact, density)
    for tensor in state.tensors:
        if isinstance(tensor, SparseTensor):
            positions = tensor.rows * tensor.columns
            assert len(tensor.column) == -(-positions * round(density * 100) // 100)
            entries = {
                end - start
                for start, end in zip(tensor.row_pointer[:-1], tensor.row_pointer[1:], strict=True)
            }
            assert max(entries) - min(entries) <= 1
            for row in range(tensor.rows):
                columns = tensor.column[tensor.row_pointer[row] : tensor.row_pointer[row + 1]]
                assert list(columns) == sorted(set(columns))


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_a_density_out_of_range_is_refused(artifact: Artifact, density: float) -> None:
    with pytest.raises(InputError, match="density"):
        evenly_spread_state(artifact, density)
