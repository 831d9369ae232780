"""The memory and the work that training takes, known before any of it is allocated."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from sparsyfed.edge_runtime import _native
from sparsyfed.edge_runtime.arguments import check_batch_size
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import ArenaError, InputError
from sparsyfed.edge_runtime.format import NONE
from sparsyfed.edge_runtime.kernels import kernels_name
from sparsyfed.edge_runtime.match import raise_state_error
from sparsyfed.edge_runtime.options import session_options
from sparsyfed.edge_runtime.state import State, encoded_state

PARAMETER_KINDS = ("index", "weight", "working_weight", "dense")


@dataclass(frozen=True, slots=True)
class MultiplyAdds:
    """Multiply-adds of one training step of a full batch, over the convolution and linear layers.

    With B examples and the layer's stored entries (o, c, i, j), kernel row i and kernel column j:

    * convolution: forward = B · Σ rows(i) · columns(j) over the stored entries, where rows(i) is
      the number of output rows y with 0 <= y · stride - padding + i · dilation < height, and
      columns(j) likewise: products with the zero border are not counted;
    * linear: forward = B · stored entries;
    * d_input is the same for every layer whose input depends on a trainable parameter; the others,
      such as those that read the model's input, need none;
    * d_weight is the same as forward with the vectorised kernels, which find it faster to multiply
      the zeros of a pruned input too, and where a layer keeps its whole input. Where the portable
      kernels have the largest k of e elements, only those are multiplied, and how many of them lie
      at the border depends on the data: the number is the expectation floor(forward · k / e), as if
      all places were equally likely. `Session.counters` has what was done;
    * recomputed is the forward of what is not kept for the backward but computed again.
    """

    forward: int
    d_input: int
    d_weight: int
    recomputed: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.forward + self.d_input + self.d_weight + self.recomputed


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of the schedule. The steps of a plan run in their order.

    `action` is forward, loss, restore (compute the result of an operation again), pack (the input
    of a layer, for its weight gradient), backward or update. `operation` is None for loss and
    update. An operation that a batch norm takes along has no steps of its own. `name` is that of
    the operation, or empty.
    """

    action: str
    operation: int | None
    name: str

    def __str__(self) -> str:
        return f"{self.action} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class PlannedBuffer:
    """One region of the arena, alive from `first_step` to `last_step`, both included.

    These are places in the plan's `steps`. `owner` is a parameter for the kinds index, weight,
    working_weight and dense, else an operation, or None, and `name` the owner's name, or empty.
    """

    kind: str
    owner: int | None
    name: str
    offset: int
    bytes: int
    first_step: int
    last_step: int

    @property
    def is_persistent(self) -> bool:
        """Whether it has its memory for itself, over all steps."""
        # A working weight that is not persistent is there where w is wanted, and where its gradient is.
        if self.kind == "working_weight":
            return self.first_step == 0 < self.last_step
        return self.kind == "tables" or self.kind in PARAMETER_KINDS


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a session of this artifact, state and batch size needs. All sizes are bytes.

    `arena_bytes` is exact; planning itself takes `workspace_bytes`. `transient_bytes` of the arena hold
    activations, gradients and scratch; `live_peak_bytes` is the most of them that is alive at one step,
    `live_peak_step`. `parts` splits the memory alive at that step by kind of buffer: what lives over the
    whole schedule, and what is alive just then. `kernels` is the set that it is for, `aim` what was to be
    reached: a choice of memory or a limit. `layout` is the plan as a board takes it, which does not search for one
    itself (`sfd_plan_layout`): for this artifact and batch size, and states of as many nonzeros in each layer.

    As text it is a table of the parts, one of the work, and one of all buffers that share memory
    over the steps.
    """

    batch_size: int
    kernels: str
    aim: str
    arena_bytes: int
    workspace_bytes: int
    transient_bytes: int
    live_peak_bytes: int
    live_peak_step: int
    parts: dict[str, int]
    macs: MultiplyAdds
    steps: tuple[PlannedStep, ...]
    buffers: tuple[PlannedBuffer, ...]
    layout: bytes = field(repr=False)

    def __str__(self) -> str:
        alive = sum(self.parts.values())
        rows = [(kind.replace("_", " "), size) for kind, size in self.parts.items()]
        rows += [
            (f"alive at step {self.live_peak_step}", alive),
            ("alignment and placement", self.arena_bytes - alive),
            ("arena", self.arena_bytes),
        ]
        work = [
            ("forward", self.macs.forward),
            ("input gradients", self.macs.d_input),
            ("weight gradients", self.macs.d_weight),
            ("computed again", self.macs.recomputed),
            ("step", self.macs.total),
        ]
        return (
            f"Memory in bytes, batch size {self.batch_size}, {self.kernels} kernels, {self.aim}\n"
            f"{table(rows, totals=(-3, -1))}\n"
            f"Multiply-adds of a step\n{table(work, totals=(-1,))}\n"
            f"Buffers that share memory\n{self._buffer_table()}"
        )

    def _buffer_table(self) -> str:
        rows = [("buffer", "bytes", "from step", "to step")]
        shared = [buffer for buffer in self.buffers if not buffer.is_persistent]
        for buffer in sorted(shared, key=lambda one: (one.first_step, one.last_step)):
            what = f"{buffer.kind.replace('_', ' ')} {buffer.name or 'of the input'}"
            first, last = (f"{at} {self.steps[at]}" for at in (buffer.first_step, buffer.last_step))
            rows.append((what, f"{buffer.bytes:,}", first, last))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            f"  {what:<{widths[0]}}  {size:>{widths[1]}}  {first:<{widths[2]}}  {last}".rstrip()
            for what, size, first, last in rows
        )
        return "\n".join(lines)


def table(rows: Sequence[tuple[str, int]], totals: Sequence[int]) -> str:
    """Aligned lines of names and numbers; a rule stands before the rows `totals`, from the end."""
    names = max(len(name) for name, _ in rows)
    numbers = max(len(f"{number:,}") for _, number in rows)
    lines = []
    for place, (name, number) in enumerate(rows, start=-len(rows)):
        if place in totals:
            lines.append("  " + "-" * (names + 2 + numbers))
        lines.append(f"  {name:<{names}}  {number:>{numbers},}")
    return "\n".join(lines)


def plan(
    artifact: str | Path | bytes | Artifact,
    state: State | bytes,
    batch_size: int,
    *,
    kernels: str | None = None,
    threads: int = 1,
    memory: str = "fast",
    arena_bytes: int | None = None,
) -> MemoryPlan:
    """Plan training `state` with batches of up to `batch_size` examples; allocates none of it.

    `kernels`, `threads`, `memory` and `arena_bytes` are as in `Session.open`. The vectorised sets
    all take the same memory, the portable one has scratch of its own: "portable" plans for a
    microboard.

    Raises FormatError for a malformed artifact or state, OSError for a path that can't be read,
    MismatchError when they don't belong together, ArenaError when no plan fits `arena_bytes`,
    InputError for an argument of another type or out of range, for a batch size whose arena would
    pass 4 GiB, for an unknown choice of memory, and for kernels or threads that are not available.
    """
    model = Artifact.of(artifact)
    options = session_options(kernels, threads, memory, arena_bytes)
    batch_size = check_batch_size(batch_size)
    encoded = encoded_state(state)
    with planned_workspace(model, encoded, batch_size, options) as (workspace, planned):
        steps = tuple(planned_step(workspace, i, model) for i in range(planned.step_count))
        buffers = tuple(planned_buffer(workspace, i, model) for i in range(planned.buffer_count))
        layout = planned_layout(workspace)
        workspace_bytes = workspace.size
    return MemoryPlan(
        batch_size=batch_size,
        kernels=kernels_name(options.kernels),
        aim=f'memory="{memory}"' if arena_bytes is None else f"at most {arena_bytes:,} bytes",
        arena_bytes=planned.arena_bytes,
        workspace_bytes=workspace_bytes,
        transient_bytes=planned.transient_bytes,
        live_peak_bytes=planned.live_peak_bytes,
        live_peak_step=planned.live_peak_step,
        parts=parts_alive(buffers, planned.live_peak_step),
        macs=MultiplyAdds(*(getattr(planned.step, name) for name, _ in planned.step._fields_)),
        steps=steps,
        buffers=buffers,
        layout=layout,
    )


@contextmanager
def planned_workspace(
    artifact: Artifact, state: bytes, batch_size: int, options: _native.Options
) -> Iterator[tuple[_native.Memory, _native.Plan]]:
    """The workspace that holds a plan, from which a session can be opened, and the plan's numbers.

    Raises what `plan` raises.
    """
    core = _native.library()
    problem = _native.Problem()
    structure = artifact.encode()
    place = (_native.address(memoryview(structure)), len(structure))
    size = ctypes.c_uint64()
    code = core.sfd_workspace_bytes(*place, size, problem)
    if code:
        _native.raise_error(code, "artifact", problem)
    workspace = _native.Memory(size.value)
    try:
        planned = _native.Plan()
        state_place = (_native.address(memoryview(state)), len(state))
        code = core.sfd_plan(
            *(*place, *state_place, batch_size, options),
            *(workspace.address, workspace.size, planned, problem),
        )
        if code:
            raise_plan_error(code, artifact, batch_size, problem)
        yield workspace, planned
    finally:
        workspace.close()


def raise_plan_error(
    code: int, artifact: Artifact, batch_size: int, problem: _native.Problem
) -> NoReturn:
    """Raise the exception of a plan that failed."""
    # The limits of a file name a place in it; that of the arena has none.
    if code == _native.ErrorCode.ERR_LIMIT and not problem.wanted:
        raise InputError(
            f"got batch size {batch_size}, for which the arena would pass 4 GiB: choose a smaller one"
        )
    if code == _native.ErrorCode.ERR_ARENA:
        raise ArenaError(
            f"got an arena of {problem.got} bytes, batch size {batch_size} wants {problem.wanted} "
            "at least: choose a smaller batch or a state of higher sparsity",
            got=problem.got,
            wanted=problem.wanted,
        )
    raise_state_error(code, artifact, problem)


def planned_step(workspace: _native.Memory, index: int, artifact: Artifact) -> PlannedStep:
    """Step of the plan just made in this workspace."""
    record = _native.PlannedStep()
    code = _native.library().sfd_plan_step(workspace.address, index, record)
    if code:
        _native.raise_error(code, f"planned step {index}")
    action = _native.Action(record.action).name.lower()
    if record.operation == NONE:
        return PlannedStep(action, None, "")
    return PlannedStep(action, record.operation, artifact.operations[record.operation].name)


def planned_buffer(workspace: _native.Memory, index: int, artifact: Artifact) -> PlannedBuffer:
    """Buffer of the plan just made in this workspace."""
    record = _native.Buffer()
    code = _native.library().sfd_plan_buffer(workspace.address, index, record)
    if code:
        _native.raise_error(code, f"planned buffer {index}")
    kind = _native.BufferKind(record.kind).name.lower()
    owners = artifact.parameters if kind in PARAMETER_KINDS else artifact.operations
    return PlannedBuffer(
        kind=kind,
        owner=None if record.owner == NONE else record.owner,
        name="" if record.owner == NONE else owners[record.owner].name,
        offset=record.offset,
        bytes=record.bytes,
        first_step=record.first_step,
        last_step=record.last_step,
    )


def planned_layout(workspace: _native.Memory) -> bytes:
    """The plan just made in this workspace, as a board takes it."""
    core = _native.library()
    size = ctypes.c_uint64()
    core.sfd_plan_layout(workspace.address, None, 0, size)
    layout = ctypes.create_string_buffer(size.value)
    code = core.sfd_plan_layout(workspace.address, layout, size, size)
    if code:
        _native.raise_error(code, "layout of a plan")
    return layout.raw


def parts_alive(buffers: Sequence[PlannedBuffer], step: int) -> dict[str, int]:
    """Bytes by kind of the buffers that are alive at `step`."""
    sizes: Counter[str] = Counter()
    for buffer in buffers:
        if buffer.first_step <= step <= buffer.last_step:
            sizes[buffer.kind] += buffer.bytes
    return {kind.name.lower(): sizes[kind.name.lower()] for kind in _native.BufferKind}
