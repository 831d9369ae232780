"""Which batch sizes and densities of a model fit a device, before anything is flashed."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from sparsyfed.devices.profiles import DeviceProfile
from sparsyfed.edge_runtime.artifact import Artifact, Parameter
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.format import ParameterKind
from sparsyfed.edge_runtime.plan import MemoryPlan, MultiplyAdds, plan
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True, slots=True)
class Fit:
    """One batch size at one density.

    `memory` is the plan's choice of what is computed again: "fast", or "small" where that does not
    fit the device. `arena_bytes` is exact, `parts` is what is alive at the fullest step.
    `estimated_seconds` a step is multiply-adds over the profile's estimate of their rate; None where
    it has none.
    """

    batch_size: int
    density: float
    nonzeros: int
    memory: str
    arena_bytes: int
    fits: bool
    parts: dict[str, int]
    multiply_adds: MultiplyAdds
    estimated_seconds: float | None


@dataclass(frozen=True, slots=True)
class PlanPair:
    """The plans of a state and batch size; `small` is `fast` where no device needs it."""

    density: float
    nonzeros: int
    fast: MemoryPlan
    small: MemoryPlan

    def fit(self, profile: DeviceProfile) -> Fit:
        """How it fits a device: the fast plan, or the small one where that does not."""
        is_fast = self.fast.arena_bytes <= profile.memory_bytes
        planned = self.fast if is_fast else self.small
        rate = profile.multiply_adds_per_second
        return Fit(
            batch_size=planned.batch_size,
            density=self.density,
            nonzeros=self.nonzeros,
            memory="fast" if is_fast else "small",
            arena_bytes=planned.arena_bytes,
            fits=planned.arena_bytes <= profile.memory_bytes,
            parts=planned.parts,
            multiply_adds=planned.macs,
            estimated_seconds=planned.macs.total / rate if rate else None,
        )


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
    """Plan each state, given with its density, at each batch size, with the kernels that each device runs.

    A device gets the fast plan, or the small one where that does not fit. Devices that run the same
    kernels share their plans.
    """
    pairs = {
        kernels: _plan_pairs(artifact, states, devices, batch_sizes)
        for kernels, devices in _by_kernels(profiles).items()
    }
    return tuple(
        Feasibility(profile, tuple(pair.fit(profile) for pair in pairs[profile.kernels]))
        for profile in profiles
    )


def _by_kernels(profiles: Sequence[DeviceProfile]) -> dict[str | None, list[DeviceProfile]]:
    groups: dict[str | None, list[DeviceProfile]] = {}
    for profile in profiles:
        groups.setdefault(profile.kernels, []).append(profile)
    return groups


def _plan_pairs(
    artifact: Artifact,
    states: Sequence[tuple[float, State]],
    devices: Sequence[DeviceProfile],
    batch_sizes: Sequence[int],
) -> list[PlanPair]:
    """Plans for devices that run the same kernels."""
    kernels = devices[0].kernels
    least = min(device.memory_bytes for device in devices)
    pairs = []
    for density, state in states:
        encoded = state.encode()
        for batch_size in batch_sizes:
            fast = small = plan(artifact, encoded, batch_size, kernels=kernels)
            if fast.arena_bytes > least:
                small = plan(artifact, encoded, batch_size, kernels=kernels, memory="small")
            pairs.append(PlanPair(density, state.nonzeros, fast, small))
    return pairs


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
