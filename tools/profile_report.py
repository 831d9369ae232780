"""What fits where: plans of a model against the profiles of devices, as text or JSON."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sparsyfed.devices.feasibility import (
    BATCH_SIZES,
    DENSITIES,
    Feasibility,
    Fit,
    feasibility,
    feasibility_of_states,
)
from sparsyfed.devices.profiles import DeviceProfile, find_profile, list_profiles, parse_bytes
from sparsyfed.edge_runtime import Artifact, State
from sparsyfed.tools.quantities import byte_text, count_text


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A model on some devices. `batch_size` is the one whose memory and work are shown in detail."""

    artifact: Artifact
    batch_size: int
    devices: tuple[Feasibility, ...]


def profile_model(
    artifact: str | Path,
    device: str,
    *,
    batch_size: int = 16,
    state: str | Path | None = None,
    profiles: str | Path | None = None,
    memory: str | None = None,
) -> ModelProfile:
    """Plans the model at all batch sizes, for this state or for evenly spread densities.

    `device` names a profile, or is "all"; `memory`, such as "256KiB", replaces the profile's.
    Raises ConfigurationError for an unknown device, FormatError for a malformed file.
    """
    chosen = list_profiles(profiles) if device == "all" else (find_profile(device, profiles),)
    if memory is not None:
        chosen = tuple(_with_memory(item, parse_bytes(memory)) for item in chosen)
    model = Artifact.load(artifact)
    sizes = sorted({*BATCH_SIZES, batch_size})
    if state is None:
        return ModelProfile(
            model, batch_size, feasibility(model, chosen, batch_sizes=sizes, densities=DENSITIES)
        )
    trained = State.load(state)
    states = [(trained.density, trained)]
    return ModelProfile(
        model, batch_size, feasibility_of_states(model, states, chosen, batch_sizes=sizes)
    )


def _with_memory(profile: DeviceProfile, memory_bytes: int) -> DeviceProfile:
    source = {**profile.source, "memory_bytes": "given by --memory"}
    return replace(profile, memory_bytes=memory_bytes, source=source)


def profile_json(result: ModelProfile) -> str:
    """Every number of the profile. Bytes and multiply-adds are integers; null is unknown."""
    devices = []
    for item in result.devices:
        fits = [
            {
                **asdict(fit),
                "multiply_adds": {**asdict(fit.multiply_adds), "total": fit.multiply_adds.total},
            }
            for fit in item.fits
        ]
        devices.append({"device": item.profile.name, **asdict(item.profile), "fits": fits})
    return json.dumps({"artifact": result.artifact.identity, "devices": devices}, indent=2)


def profile_text(result: ModelProfile) -> str:
    """The profile for people: what fits, then memory by use and work at the chosen batch size."""
    prunable = sum(result.artifact.parameters[index].count for index in result.artifact.prunable)
    head = f"{prunable:,} prunable weights; v, gradients and activations are 32-bit floats."
    one = len(result.devices) == 1
    fit_table = _one_device(result.devices[0]) if one else _all_devices(result.devices)
    parts = [head, fit_table, _memory_by_use(result), _work(result), _time(result)]
    return "\n\n".join(part for part in parts if part is not None)


def _one_device(item: Feasibility) -> str:
    profile = item.profile
    sizes = sorted({fit.batch_size for fit in item.fits})
    by_place = {(fit.density, fit.batch_size): fit for fit in item.fits}
    rows = [
        [
            _density(density),
            *(_arena(by_place[density, size]) for size in sizes),
            _largest(item.largest_batch(density)),
        ]
        for density in _densities(item)
    ]
    heading = ["density", *(f"batch {size}" for size in sizes), "largest that fits"]
    memory = f"{profile.title} ({profile.name}): {profile.memory_bytes:,} bytes for training, "
    return (
        f"{memory}{profile.source['memory_bytes']}.\n"
        f"Arena by density and batch size, {item.fits[0].kernels} kernels, by the plan with the least "
        "work that fits; what does not fit stands in brackets. With * activations are computed again "
        "to fit.\n"
        f"{_table(heading, rows)}"
    )


def _all_devices(devices: Sequence[Feasibility]) -> str:
    densities = _densities(devices[0])
    rows = [
        [
            item.profile.name,
            byte_text(item.profile.memory_bytes),
            *(_largest(item.largest_batch(density)) for density in densities),
        ]
        for item in devices
    ]
    heading = ["device", "memory", *map(_density, densities)]
    tried = ", ".join(str(size) for size in sorted({fit.batch_size for fit in devices[0].fits}))
    return f"Largest batch size that fits, by density (tried: {tried}).\n{_table(heading, rows)}"


def _memory_by_use(result: ModelProfile) -> str:
    fits = _detailed(result)
    kinds = list(fits[0].parts)
    rows = [
        [kind.replace("_", " "), *(f"{fit.parts.get(kind, 0):,}" for fit in fits)]
        for kind in kinds
        if any(fit.parts.get(kind, 0) for fit in fits)
    ]
    rows.append(
        [
            "alignment, placement",
            *(f"{fit.arena_bytes - sum(fit.parts.values()):,}" for fit in fits),
        ]
    )
    rows.append(["arena", *(f"{fit.arena_bytes:,}" for fit in fits)])
    heading = ["bytes by use", *(_density(fit.density) for fit in fits)]
    return (
        f"Memory at the fullest step, batch size {result.batch_size}, by density, on "
        f"{_device_name(result)}.\n"
        f"{_table(heading, rows)}"
    )


def _work(result: ModelProfile) -> str:
    fits = _detailed(result)
    kinds: dict[str, Callable[[Fit], int]] = {
        "forward": lambda fit: fit.multiply_adds.forward,
        "gradients of inputs": lambda fit: fit.multiply_adds.d_input,
        "gradients of weights": lambda fit: fit.multiply_adds.d_weight,
        "computed again": lambda fit: fit.multiply_adds.recomputed,
        "step": lambda fit: fit.multiply_adds.total,
    }
    rows = [[name, *(count_text(count(fit)) for fit in fits)] for name, count in kinds.items()]
    heading = ["multiply-adds", *(_density(fit.density) for fit in fits)]
    table = _table(heading, rows)
    return (
        f"Work of one step, batch size {result.batch_size}, by density, on "
        f"{_device_name(result)}.\n{table}"
    )


def _time(result: ModelProfile) -> str | None:
    """Seconds of a step, at the batch size shown or the largest below it that fits."""
    densities = _densities(result.devices[0])
    rows = [
        [
            item.profile.name,
            *(_step_time(item, density, result.batch_size) for density in densities),
        ]
        for item in result.devices
        if item.profile.multiply_adds_per_second
    ]
    if not rows:
        return None
    heading = ["device", *map(_density, densities)]
    return (
        "Estimated seconds of one step, by density: multiply-adds by the profile's rate, at the "
        f"largest batch size (in brackets) that fits, up to {result.batch_size}.\n"
        f"{_table(heading, rows)}"
    )


def _step_time(item: Feasibility, density: float, largest: int) -> str:
    seconds = {
        fit.batch_size: fit.estimated_seconds
        for fit in item.fits
        if fit.fits and fit.density == density and fit.batch_size <= largest
    }
    return f"{seconds[max(seconds)]:.3g} ({max(seconds)})" if seconds else "-"


def _detailed(result: ModelProfile) -> list[Fit]:
    """The fits at the chosen batch size, on the first device."""
    return [fit for fit in result.devices[0].fits if fit.batch_size == result.batch_size]


def _device_name(result: ModelProfile) -> str:
    """The device that the details are of, with what its plans depend on."""
    first = result.devices[0]
    memory = byte_text(first.profile.memory_bytes)
    return f"{first.profile.name} ({first.fits[0].kernels} kernels, {memory} for training)"


def _densities(item: Feasibility) -> list[float]:
    return list(dict.fromkeys(fit.density for fit in item.fits))


def _density(density: float) -> str:
    return f"{100 * density:.3g}%"


def _arena(fit: Fit) -> str:
    text = byte_text(fit.arena_bytes) + ("*" if fit.computed_again else "")
    return text if fit.fits else f"({text})"


def _largest(batch_size: int | None) -> str:
    return "-" if batch_size is None else str(batch_size)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        texts = [first.ljust(widths[0])]
        texts += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        return "  " + "  ".join(texts)

    rule = "  " + "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(heading), rule, *map(line, rows)])
