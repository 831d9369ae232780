from dataclasses import replace

import pytest
from model_strategies import random_model

from sparsyfed.devices.feasibility import BATCH_SIZES, DENSITIES, evenly_spread_state, feasibility
from sparsyfed.devices.profiles import find_profile
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.state import SparseTensor


def least_arena(artifact: Artifact, density: float, batch_size: int) -> int:
    state = evenly_spread_state(artifact, density)
    return plan(artifact, state, batch_size, kernels="portable", memory="small").arena_bytes


def test_each_pair_is_planned_and_compared(artifact: Artifact) -> None:
    needed = least_arena(artifact, 0.1, 8)
    board = replace(find_profile("cortex_m4f_256k"), memory_bytes=needed)
    host = find_profile("linux_host")
    on_board, on_host = feasibility(artifact, [board, host])
    assert [(fit.density, fit.batch_size) for fit in on_board.fits] == [
        (density, batch) for density in DENSITIES for batch in BATCH_SIZES
    ]
    for fit in on_board.fits:
        state = evenly_spread_state(artifact, fit.density)
        assert fit.fits == (least_arena(artifact, fit.density, fit.batch_size) <= needed)
        choice = {"arena_bytes": needed} if fit.fits else {"memory": "small"}
        planned = plan(artifact, state, fit.batch_size, kernels="portable", **choice)
        assert fit.arena_bytes == planned.arena_bytes
        assert fit.estimated_seconds == planned.macs.total / 12_800_000
    assert on_board.largest_batch(0.1) == 8
    assert {fit.fits for fit in on_board.fits} == {True, False}
    assert all(fit.fits and fit.estimated_seconds is None for fit in on_host.fits)


def test_what_does_not_fit_is_planned_smaller() -> None:
    artifact = random_model("residual", 8, 0.5).artifact
    state = evenly_spread_state(artifact, 0.5)
    board = find_profile("cortex_m4f_256k")
    whole = plan(artifact, state, 8, kernels="portable", arena_bytes=1 << 30).arena_bytes
    least = least_arena(artifact, 0.5, 8)
    assert least < whole
    sizes = (whole, whole - 1, least, least - 1)
    devices = [replace(board, memory_bytes=size) for size in sizes]
    found = [
        item.fits[0] for item in feasibility(artifact, devices, batch_sizes=[8], densities=[0.5])
    ]
    assert [fit.fits for fit in found] == [True, True, True, False]
    assert all(fit.arena_bytes <= size for fit, size in zip(found[:3], sizes[:3], strict=True))
    assert [fit.arena_bytes for fit in found[2:]] == [least, least]
    assert found[0].computed_again == 0
    assert found[2].computed_again > 0


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
