"""The memory of a training step over time, as one HTML page: `sparsyfed profile --html`."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sparsyfed.devices.feasibility import evenly_spread_state
from sparsyfed.devices.profiles import DeviceProfile
from sparsyfed.edge_runtime import MemoryPlan, State, plan
from sparsyfed.tools.drawing import (
    DENSE,
    FOURTH,
    GRID,
    INK,
    MUTED,
    SPARSE,
    THIRD,
    USES,
    Plot,
    draw_plot,
)
from sparsyfed.tools.page import figures, numbers, page, table
from sparsyfed.tools.profile_report import ModelProfile
from sparsyfed.tools.quantities import byte_text, count_text

COLORS = dict(zip(USES, (SPARSE, THIRD, FOURTH, DENSE), strict=True))
CHOICES = ("fast", "small")


@dataclass(frozen=True, slots=True)
class ArenaProfile:
    """The plans of one state and batch size on one device, by choice of memory."""

    profile: DeviceProfile
    density: float
    plans: dict[str, MemoryPlan]


def arena_profile(result: ModelProfile, state: State | None, density: float) -> ArenaProfile:
    """Plans for the first device of a profile, for `state` or for one of evenly spread `density`.

    Raises InputError for a density out of range and what `plan` raises.
    """
    profile = result.devices[0].profile
    if state is None:
        state = evenly_spread_state(result.artifact, density)
    else:
        density = state.density
    encoded = state.encode()
    plans = {
        memory: plan(
            result.artifact, encoded, result.batch_size, kernels=profile.kernels, memory=memory
        )
        for memory in CHOICES
    }
    return ArenaProfile(profile, density, plans)


def render(result: ModelProfile, arena: ArenaProfile) -> str:
    """The page. Same plans, same bytes."""
    kernels = arena.plans[CHOICES[0]].kernels
    name = f"{arena.profile.title}, {kernels} kernels, batch size {result.batch_size}"
    name += f", density {arena.density:.3g}"
    plots = [_plot(arena, memory) for memory in CHOICES]
    details = "".join(
        f'<details><summary>Every buffer of the plan "{memory}"</summary>{_buffers(planned)}</details>'
        for memory, planned in arena.plans.items()
    )
    return page(
        f"Training memory: {arena.profile.title}",
        "<h1>Memory of a training step, over its steps</h1>\n"
        f'<p class="muted">{escape(name)}. Model <code>{result.artifact.identity}</code>. Planned, '
        "and exact: what a session trains in. What a program has beside it is not in here.</p>\n"
        f"{numbers(_numbers(arena))}\n<h2>The arena</h2>\n{figures(plots)}\n"
        f"<h2>Buffers</h2>\n{details}",
    )


def _numbers(arena: ArenaProfile) -> list[tuple[str, str, str]]:
    memory_bytes = arena.profile.memory_bytes
    entries = []
    for memory, planned in arena.plans.items():
        spare = memory_bytes - planned.arena_bytes
        verdict = f"{byte_text(abs(spare))} {'left' if spare >= 0 else 'too much'}"
        again = planned.macs.recomputed / planned.macs.forward if planned.macs.forward else 0.0
        entries += [
            (
                byte_text(planned.arena_bytes),
                f'arena, memory="{memory}"',
                f"{planned.arena_bytes:,} bytes; the device has {byte_text(memory_bytes)}: {verdict}",
            ),
            (
                count_text(planned.macs.total),
                f'multiply-adds of a step, memory="{memory}"',
                f"{again:.0%} of the forward is computed again in the backward",
            ),
        ]
    return entries


def _plot(arena: ArenaProfile, memory: str) -> Plot:
    planned = arena.plans[memory]
    highest = max(each.arena_bytes for each in arena.plans.values())
    return draw_plot(
        f'memory="{memory}": {byte_text(planned.arena_bytes)}',
        "Each rectangle is a buffer: its place in the arena, and the steps over which it holds what "
        f"is needed. Most is alive at step {planned.live_peak_step}, {_step(planned)}.",
        lambda axes: _draw_arena(axes, planned, highest),
        size=(7.4, 5.0),
    )


def _step(planned: MemoryPlan) -> str:
    return str(planned.steps[planned.live_peak_step])


def _draw_arena(axes: Axes, planned: MemoryPlan, highest: int) -> None:
    for use, kinds in USES.items():
        for buffer in planned.buffers:
            if buffer.kind in kinds and buffer.bytes:
                axes.broken_barh(
                    [(buffer.first_step, buffer.last_step + 1 - buffer.first_step)],
                    (buffer.offset, buffer.bytes),
                    facecolor=COLORS[use],
                    edgecolor=GRID,
                    linewidth=0.4,
                )
    loss = next(at for at, step in enumerate(planned.steps) if step.action == "loss")
    axes.axvline(loss + 0.5, color=INK, linestyle=":", linewidth=1)
    axes.annotate(
        "loss", (loss + 0.5, 1.02 * highest), (4, 0), textcoords="offset points", color=MUTED
    )
    axes.set_xlim(0, len(planned.steps))
    axes.set_ylim(0, 1.08 * highest)
    axes.set_xlabel("step")
    axes.set_ylabel("place in the arena")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_text(value)))
    axes.grid(visible=False)
    axes.legend(
        handles=[Patch(color=color, label=use) for use, color in COLORS.items()],
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        fontsize=10,
    )


def _buffers(planned: MemoryPlan) -> str:
    rows: list[Sequence[str]] = [
        [
            f"{buffer.kind.replace('_', ' ')} {buffer.name}".rstrip(),
            f"{buffer.bytes:,}",
            f"{buffer.offset:,}",
            f"{buffer.first_step} {planned.steps[buffer.first_step]}",
            f"{buffer.last_step} {planned.steps[buffer.last_step]}",
        ]
        for buffer in sorted(planned.buffers, key=lambda each: (each.first_step, each.offset))
    ]
    return table(["buffer", "bytes", "offset", "from step", "to step"], rows)
