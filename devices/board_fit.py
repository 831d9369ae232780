"""Whether a model trains on a board, and if not, what exactly is missing and what would fit."""

from collections.abc import Callable
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

    `held_examples` stay on the board; `gathered_examples` is the room for batches that are put together from them;
    `examples_bytes` is what both take.
    `arena_limit` is what is left for the arena. `artifact_bytes` is 0 for an artifact in flash. `memory` is how the
    session has to be opened: "layerwise" where nothing else fits.
    """

    plan: MemoryPlan
    memory: str
    memory_bytes: int
    artifact_bytes: int
    examples_bytes: int
    held_examples: int
    gathered_examples: int
    arena_limit: int


def examples_bytes(artifact: Artifact, count: int) -> int:
    """Bytes of so many examples and their targets as a board holds them: labels int32, all else float32.

    Inputs of an artifact with a quantization are int8, and end at a multiple of 4.
    """
    each = 4 if artifact.quantization is None else 1
    inputs = -(-count * artifact.tensors[0].size * each // 4) * 4
    targets = 1 if artifact.loss is Loss.CROSS_ENTROPY else artifact.tensors[artifact.output].size
    return inputs + count * 4 * targets


@dataclass(frozen=True, slots=True)
class _Board:
    """A board and a model for it. `state_at` gives the state of a density, to try a sparser one."""

    artifact: Artifact
    artifact_bytes: int
    memory_bytes: int
    state_at: Callable[[float], bytes]

    def fit(
        self, state: bytes, batch_size: int, memory: str, *, held: int, gathered: int
    ) -> BoardFit:
        """A fit with so many examples. ArenaError has bytes of the board's whole memory."""
        room = [examples_bytes(self.artifact, count) for count in (held, gathered)]
        # Each part begins at a multiple of 4.
        below_examples = (self.memory_bytes - self.artifact_bytes) // 4 * 4 - room[0]
        limit = below_examples - room[1]
        given = (self.artifact, state, batch_size)
        try:
            planned = plan(*given, kernels="portable", memory=memory, arena_bytes=max(1, limit))
        except ArenaError as error:
            wanted = self.memory_bytes + error.wanted - limit
            raise ArenaError(
                "no room for the arena", got=self.memory_bytes, wanted=wanted
            ) from error
        copied = _while_opening(planned, state)
        if copied > below_examples and memory == MEMORY[-1]:
            # The lowest plan does more work, and keeps less from step to step.
            planned = plan(*given, kernels="portable", memory=memory)
            copied = _while_opening(planned, state)
        if copied > below_examples:
            wanted = self.memory_bytes + copied - below_examples
            raise ArenaError("no room for the state", got=self.memory_bytes, wanted=wanted)
        return BoardFit(
            *(planned, memory, self.memory_bytes, self.artifact_bytes),
            *(sum(room), held, gathered, limit),
        )

    def fits(self, state: bytes, batch_size: int) -> bool:
        """Whether a batch at a time does, in whatever way."""
        try:
            self.fit(state, batch_size, MEMORY[-1], held=batch_size, gathered=0)
        except SparsyFedError:
            return False
        return True

    def advice(self, state: bytes, batch_size: int) -> str:
        """What would fit: a smaller batch, or a sparser state of the same batch."""
        options = []
        smaller = self._largest_batch(state, batch_size)
        if smaller:
            options.append(f"batch size {smaller} fits")
        density = _density(self.artifact, state)
        for sparser in DENSITIES:
            if sparser < density and self.fits(self.state_at(sparser), batch_size):
                options.append(f"a density of {sparser:g} fits")
                break
        return ", ".join(options) or self._both(density)

    def _both(self, density: float) -> str:
        """What a batch of one takes at lower densities, where neither alone is enough."""
        least = 0
        for sparser in [each for each in DENSITIES if each < density] or [density]:
            try:
                self.fit(self.state_at(sparser), 1, MEMORY[-1], held=1, gathered=0)
            except ArenaError as error:
                least = error.wanted
            else:
                return f"batch size 1 at a density of {sparser:g} fits"
        return f"batch size 1 at a density of {sparser:g} still wants {least}"

    def _largest_batch(self, state: bytes, too_large: int) -> int:
        """The largest batch size below `too_large` that fits, as long as memory grows with it; 0 for none."""
        fitting = 0
        while too_large - fitting > 1:
            middle = (fitting + too_large) // 2
            if self.fits(state, middle):
                fitting = middle
            else:
                too_large = middle
        return fitting


def _while_opening(planned: MemoryPlan, state: bytes) -> int:
    """Bytes below the examples while a session is opened.

    The state lies there while the board plans, with the layout below it, and while the session copies it.
    """
    planning = planned.workspace_bytes + len(planned.layout) + 3
    return max(planning, planned.arena_bytes - planned.transient_bytes) + len(state) + 3


def fit_on_board(
    artifact: Artifact,
    state: bytes,
    batch_size: int,
    memory_bytes: int,
    examples: int,
    *,
    in_flash: bool = False,
    state_at: Callable[[float], bytes] | None = None,
) -> BoardFit:
    """How a board with `memory_bytes` for models and data trains this state on `examples` examples.

    All examples stay on the board if they fit beside the plan with the least work that is left then, else it
    holds a batch at a time; if that does not fit either, layers are updated one by one. An artifact `in_flash` takes
    nothing of that memory.

    Raises ArenaError that says what is missing, and which batch size or density would fit: that of states that
    `state_at` gives for a density, by default of evenly spread ones. InputError for a batch of more examples than one
    request can name.
    """
    if batch_size > MAX_PLACES:
        raise InputError(f"got batch size {batch_size}, a board takes up to {MAX_PLACES}")
    board = _Board(
        artifact,
        0 if in_flash else len(artifact.encode()),
        memory_bytes,
        state_at or (lambda density: evenly_spread_state(artifact, density).encode()),
    )
    a_batch = min(batch_size, examples)
    choices = [(a_batch, 0)] if examples > MAX_HELD else [(examples, a_batch), (a_batch, 0)]
    missing = []
    for memory in MEMORY:
        for held, gathered in choices:
            try:
                return board.fit(state, batch_size, memory, held=held, gathered=gathered)
            except ArenaError as error:
                missing.append(error)
    last = min(missing, key=lambda error: error.wanted)
    raise ArenaError(
        f"got a board with {last.got} bytes, batch size {batch_size} wants {last.wanted} at least, with "
        f'memory="{MEMORY[-1]}": {last.wanted - last.got} are missing; {board.advice(state, batch_size)}',
        got=last.got,
        wanted=last.wanted,
    )


def _density(artifact: Artifact, state: bytes) -> float:
    positions = sum(p.count for p in artifact.parameters if p.kind is ParameterKind.WEIGHT)
    return State.decode(state).nonzeros / positions
