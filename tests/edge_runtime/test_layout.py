"""The layout of a plan: planned again as it is, and refused where it is none."""

import ctypes
from typing import Any

import numpy as np
import pytest
from clear_cases import states_of
from model_strategies import Model
from odd_models import odd_model
from plan_cases import residual_chain

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.errors import SparsyFedError
from sparsyfed.edge_runtime.options import session_options
from sparsyfed.edge_runtime.plan import MemoryPlan, plan, planned_buffer, planned_workspace

CHOICES: list[dict[str, Any]] = [
    {"memory": "fast"},
    {"memory": "small"},
    {"memory": "layerwise"},
]
HEADER = 2
"""Bytes before the choices."""


def replanned(model: Model, batch_size: int, layout: bytes) -> list[tuple[int, ...]]:
    """Offset, size and lifetime of each buffer of the plan that follows from a layout."""
    options = session_options("portable", 1, "fast", None)
    options.layout = ctypes.cast(ctypes.c_char_p(layout), ctypes.c_void_p)
    options.layout_bytes = len(layout)
    state = model.state.encode()
    with planned_workspace(model.artifact, state, batch_size, options) as (workspace, planned):
        buffers = [
            planned_buffer(workspace, i, model.artifact) for i in range(planned.buffer_count)
        ]
    return [(one.offset, one.bytes, one.first_step, one.last_step) for one in buffers]


def places(planned: MemoryPlan) -> list[tuple[int, ...]]:
    """The same of a plan."""
    return [(one.offset, one.bytes, one.first_step, one.last_step) for one in planned.buffers]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice["memory"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_layout_gives_its_plan_again(choice: dict[str, Any], batch_size: int) -> None:
    for artifact in (residual_chain(2), odd_model(1), odd_model(4)):
        model = states_of(artifact, 0.3)(0)
        planned = plan(model.artifact, model.state, batch_size, kernels="portable", **choice)
        assert replanned(model, batch_size, planned.layout) == places(planned)


def test_no_layout_makes_buffers_share_memory_at_a_time() -> None:
    model = states_of(residual_chain(2), 0.3)(0)
    planned = plan(model.artifact, model.state, 2, kernels="portable", memory="small")
    random = np.random.default_rng(0)
    taken = 0
    for _ in range(500):
        layout = bytearray(planned.layout)
        for place in random.integers(0, len(layout), random.integers(1, 4)):
            layout[place] = random.integers(0, 256)
        try:
            buffers = replanned(model, 2, bytes(layout))
        except SparsyFedError:
            continue
        taken += 1
        for i, (offset, size, first, last) in enumerate(buffers):
            for other, other_size, other_first, other_last in buffers[:i]:
                apart = last < other_first or other_last < first
                assert apart or offset + size <= other or other + other_size <= offset
    assert 0 < taken < 500  # some change a place that is free anyway


@pytest.mark.parametrize("change", ["shorter", "longer", "empty", "channel", "unaligned", "high"])
def test_what_is_no_layout_of_the_model_is_refused(change: str) -> None:
    model = states_of(residual_chain(1), 0.3)(0)
    good = plan(model.artifact, model.state, 2, kernels="portable").layout
    offsets = HEADER + len(model.artifact.operations)
    changed = {
        "shorter": good[:-4],
        "longer": good + bytes(4),
        "empty": b"",
        "channel": good[: offsets - 1] + b"\3" + good[offsets:],  # nothing normalises the output
        "unaligned": good[:offsets] + bytes([good[offsets] | 1]) + good[offsets + 1 :],
        "high": good[:offsets] + b"\xff\xff\xff\xff" + good[offsets + 4 :],
    }
    with pytest.raises(SparsyFedError):
        replanned(model, 2, changed[change])


def test_a_layout_wants_room_for_all_of_it() -> None:
    model = states_of(residual_chain(1), 0.3)(0)
    options = session_options("portable", 1, "fast", None)
    with planned_workspace(model.artifact, model.state.encode(), 1, options) as (workspace, _):
        size = ctypes.c_uint64()
        core = _native.library()
        short = ctypes.create_string_buffer(10)
        code = core.sfd_plan_layout(workspace.address, short, 10, size)
        assert (code, short.raw) == (_native.ErrorCode.ERR_CAPACITY, bytes(10))
        assert size.value > 10
