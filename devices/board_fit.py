"""Whether a model trains on a board, and if not, what exactly is missing and what would fit."""

from collections.abc import Iterator
from dataclasses import dataclass

from sparsyfed.devices.board import MAX_PLACES
from sparsyfed.devices.feasibility import DENSITIES, evenly_spread_state
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import ArenaError, InputError, SparsyFedError
from sparsyfed.edge_runtime.format import Loss, ParameterKind
from sparsyfed.edge_runtime.plan import MemoryPlan, plan
from sparsyfed.edge_runtime.state import State

MAX_HELD = 1 << 16
"""Examples that a board can name."""
MEMORY = ("fast", "layerwise")
"""How sessions are opened, the first that fits."""


@dataclass(frozen=True, slots=True)
class BoardFit:
    """How a session uses the memory of a board, in bytes.

    `held_examples` stay on the board; `gathered_examples` is the room for batches that are put together from them.
    `arena_limit` is what is left for the arena. `memory` is how the session has to be opened: "layerwise" where nothing
    else fits.
    """

    plan: MemoryPlan
    memory: str
    memory_bytes: int
    artifact_bytes: int
    example_bytes: int
    held_examples: int
    gathered_examples: int
    arena_limit: int


def example_bytes(artifact: Artifact) -> int:
    """Bytes of one example and its target as a board holds them: float32, labels int32."""
    targets = 1 if artifact.loss is Loss.CROSS_ENTROPY else artifact.tensors[artifact.output].size
    return 4 * (artifact.tensors[0].size + targets)


def fit_on_board(
    artifact: Artifact, state: bytes, batch_size: int, memory_bytes: int, examples: int
) -> BoardFit:
    """How a board with `memory_bytes` for models and data trains this state on `examples` examples.

    All examples stay on the board if they fit beside the plan with the least work that is left then, else it
    holds a batch at a time; if that does not fit either, layers are updated one by one. Raises ArenaError that says
    what is missing, and which batch size or density would fit, InputError for a batch of more examples than one
    request can name.
    """
    if batch_size > MAX_PLACES:
        raise InputError(f"got batch size {batch_size}, a board takes up to {MAX_PLACES}")
    a_batch = min(batch_size, examples)
    choices = [(a_batch, 0)] if examples > MAX_HELD else [(examples, a_batch), (a_batch, 0)]
    missing = []
    for memory in MEMORY:
        for held, gathered in choices:
            try:
                return _fit(
                    *(artifact, state, batch_size, memory_bytes, memory),
                    held=held,
                    gathered=gathered,
                )
            except ArenaError as error:
                missing.append(error)
    last = min(missing, key=lambda error: error.wanted)
    advice = _advice(artifact, state, batch_size, memory_bytes)
    raise ArenaError(
        f"got a board with {last.got} bytes, batch size {batch_size} wants {last.wanted} at least: "
        f"{last.wanted - last.got} are missing; {advice}",
        got=last.got,
        wanted=last.wanted,
    )


def _fit(
    artifact: Artifact,
    state: bytes,
    batch_size: int,
    memory_bytes: int,
    memory: str,
    *,
    held: int,
    gathered: int,
) -> BoardFit:
    """A fit with so many examples. ArenaError has bytes of the board's whole memory."""
    size, each = len(artifact.encode()), example_bytes(artifact)
    # Each part begins at a multiple of 4.
    below_examples = (memory_bytes - size) // 4 * 4 - held * each
    limit = below_examples - gathered * each
    try:
        planned = plan(
            *(artifact, state, batch_size),
            kernels="portable",
            memory=memory,
            arena_bytes=max(1, limit),
        )
    except ArenaError as error:
        wanted = memory_bytes + error.wanted - limit
        raise ArenaError("no room for the arena", got=memory_bytes, wanted=wanted) from error
    # The state lies below the examples while the board plans, and while the session copies it into its tables.
    tables = max(planned.workspace_bytes, planned.arena_bytes - planned.transient_bytes)
    copied = tables + len(state) + 3
    if copied > below_examples:
        wanted = memory_bytes + copied - below_examples
        raise ArenaError("no room for the state", got=memory_bytes, wanted=wanted)
    return BoardFit(planned, memory, memory_bytes, size, each, held, gathered, limit)


def _advice(artifact: Artifact, state: bytes, batch_size: int, memory_bytes: int) -> str:
    """What would fit: by a smaller batch, or by a sparser state of the same batch."""
    options = []
    for smaller in _halves(batch_size):
        if _fits(artifact, state, smaller, memory_bytes):
            options.append(f"batch size {smaller} fits")
            break
    density = _density(artifact, state)
    for sparser in DENSITIES:
        if sparser < density and _fits(
            artifact, evenly_spread_state(artifact, sparser).encode(), batch_size, memory_bytes
        ):
            options.append(f"a density of {sparser:g} fits")
            break
    return ", ".join(options) or "neither a smaller batch nor a density down to 0.01 alone fits"


def _halves(batch_size: int) -> Iterator[int]:
    while batch_size > 1:
        batch_size //= 2
        yield batch_size


def _fits(artifact: Artifact, state: bytes, batch_size: int, memory_bytes: int) -> bool:
    try:
        _fit(artifact, state, batch_size, memory_bytes, MEMORY[-1], held=batch_size, gathered=0)
    except SparsyFedError:
        return False
    return True


def _density(artifact: Artifact, state: bytes) -> float:
    positions = sum(p.count for p in artifact.parameters if p.kind is ParameterKind.WEIGHT)
    return State.decode(state).nonzeros / positions
