"""Which batch sizes and densities of a model fit a device, before anything is flashed."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from sparsyfed.devices.profiles import DeviceProfile
from sparsyfed.edge_runtime.artifact import Artifact, Parameter
from sparsyfed.edge_runtime.errors import ArenaError, InputError
from sparsyfed.edge_runtime.format import ParameterKind
from sparsyfed.edge_runtime.plan import MemoryPlan, MultiplyAdds, plan
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True, slots=True)
class Fit:
    """One batch size at one density, by the plan that a session on the device trains by.

    That is the plan with the least work that fits the device, or else the smallest one, for the set
    `kernels`. `arena_bytes` is exact, `parts` is what is alive at the fullest step. The results of
    `computed_again` operations are not kept for the backward. `estimated_seconds` a step is
    multiply-adds over the profile's estimate of their rate; None where it has none.
    """

    batch_size: int
    density: float
    nonzeros: int
    kernels: str
    arena_bytes: int
    fits: bool
    parts: dict[str, int]
    computed_again: int
    multiply_adds: MultiplyAdds
    estimated_seconds: float | None


class DevicePlans:
    """The plans of one state and batch size, made where a device needs them."""

    def __init__(self, artifact: Artifact, state: bytes, batch_size: int) -> None:
        self._model = (artifact, state, batch_size)
        self._smallest: dict[str | None, MemoryPlan] = {}
        self._fitting: dict[tuple[str | None, int], MemoryPlan] = {}

    def of(self, kernels: str | None, memory_bytes: int) -> MemoryPlan:
        """The plan with the least work that fits the memory, or the smallest one where none does."""
        smallest = self._smallest.get(kernels)
        if smallest is not None and memory_bytes < smallest.arena_bytes:
            return smallest
        device = (kernels, memory_bytes)
        try:
            if device not in self._fitting:
                self._fitting[device] = plan(
                    *self._model, kernels=kernels, arena_bytes=memory_bytes
                )
            return self._fitting[device]
        except ArenaError:
            self._smallest[kernels] = plan(*self._model, kernels=kernels, memory="small")
            return self._smallest[kernels]


@dataclass(frozen=True, slots=True)
class Feasibility:
    """All batch sizes and densities of one model on one device."""

    profile: DeviceProfile
    fits: tuple[Fit, ...]

    def largest_batch(self, density: float) -> int | None:
        """Largest batch size that fits at this density, or None."""
        return max(
            (fit.batch_size for fit in self.fits if fit.fits and fit.density == density),
            default=None,
        )


def feasibility(
    artifact: str | Path | bytes | Artifact,
    profiles: Sequence[DeviceProfile],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    densities: Sequence[float] = DENSITIES,
) -> tuple[Feasibility, ...]:
    """Plan the model at each batch size and density, and compare with the memory of each device.

    The plans are those of `evenly_spread_state`, in the order of `densities`, then `batch_sizes`.
    """
    structure = Artifact.of(artifact)
    states = [(density, evenly_spread_state(structure, density)) for density in densities]
    return feasibility_of_states(structure, states, profiles, batch_sizes=batch_sizes)


def feasibility_of_states(
    artifact: Artifact,
    states: Sequence[tuple[float, State]],
    profiles: Sequence[DeviceProfile],
    *,
    batch_sizes: Sequence[int],
) -> tuple[Feasibility, ...]:
    """Plan each state, given with its density, at each batch size, as each device trains it."""
    fits: list[list[Fit]] = [[] for _ in profiles]
    for density, state in states:
        encoded = state.encode()
        for batch_size in batch_sizes:
            plans = DevicePlans(artifact, encoded, batch_size)
            for found, profile in zip(fits, profiles, strict=True):
                planned = plans.of(profile.kernels, profile.memory_bytes)
                found.append(_fit(planned, profile, density, state.nonzeros))
    return tuple(
        Feasibility(profile, tuple(found)) for found, profile in zip(fits, profiles, strict=True)
    )


def _fit(planned: MemoryPlan, profile: DeviceProfile, density: float, nonzeros: int) -> Fit:
    rate = profile.multiply_adds_per_second
    return Fit(
        batch_size=planned.batch_size,
        density=density,
        nonzeros=nonzeros,
        kernels=planned.kernels,
        arena_bytes=planned.arena_bytes,
        fits=planned.arena_bytes <= profile.memory_bytes,
        parts=planned.parts,
        computed_again=sum(step.action == "restore" for step in planned.steps),
        multiply_adds=planned.macs,
        estimated_seconds=planned.macs.total / rate if rate else None,
    )


def evenly_spread_state(artifact: Artifact, density: float) -> State:
    """A state whose layers store ceil(density · positions) entries each, spread evenly; values 1.

    Row r of a layer with R rows, C columns and k entries stores floor((r + 1)k / R) - floor(rk / R) of them, entry i
    of n in a row at column floor(iC / n). A real support is not even: layers keep different shares, and a convolution
    with more entries at the middle of its kernel does more multiply-adds. The memory depends on the counts alone.

    Raises InputError for a density outside (0, 1].
    """
    if not 0.0 < density <= 1.0:
        raise InputError(f"got density {density}, wanted above 0 and at most 1")
    exact = Fraction(str(density))
    return State(
        tuple(
            _evenly_spread(parameter, exact)
            if parameter.kind is ParameterKind.WEIGHT
            else DenseTensor(parameter.name, parameter.kind, array("f", [1.0]) * parameter.count)
            for parameter in artifact.parameters
        )
    )


def _evenly_spread(parameter: Parameter, density: Fraction) -> SparseTensor:
    rows, columns = parameter.rows, parameter.columns
    count = -(-parameter.count * density.numerator // density.denominator)
    row_pointer = array("I", (row * count // rows for row in range(rows + 1)))
    typecode = "H" if columns <= 65536 else "I"
    patterns: dict[int, array[int]] = {}  # a row has one of two numbers of entries
    column: array[int] = array(typecode)
    for row in range(rows):
        entries = row_pointer[row + 1] - row_pointer[row]
        if entries not in patterns:
            patterns[entries] = array(typecode, (i * columns // entries for i in range(entries)))
        column.extend(patterns[entries])
    value = array("f", [1.0]) * count
    return SparseTensor(parameter.name, rows, columns, row_pointer, column, value)
