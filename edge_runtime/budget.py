"""How many entries each prunable weight keeps in an update."""

import bisect
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from sparsyfed.edge_runtime.arguments import check_sparsity
from sparsyfed.edge_runtime.artifact import Parameter
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.format import ParameterKind


def keep_counts(
    parameters: Sequence[Parameter], sparsity: float, budget: str | Mapping[str, int]
) -> list[int]:
    """Entries to keep: `[K]` for one ranking over all layers, else a count per parameter.

    A dense parameter's count is 0. With N prunable positions, K = N - round(sparsity · N), Python's
    round (half to even).

    * `"global"`: the K largest |v| of the model (SparsyFed, arXiv 2504.05153).
    * `"erk"`: layer densities by the Erdős-Rényi kernel (arXiv 1911.11134), see
      `erdos_renyi_kernel`.
    * a mapping of layer names to counts: those counts; layers that it does not name stay whole, and
      the sparsity is only checked.

    Raises InputError for a sparsity outside [0, 1), one that keeps nothing, and a budget that can't
    be met.
    """
    sparsity = check_sparsity(sparsity)
    layers = [parameter for parameter in parameters if parameter.kind is ParameterKind.WEIGHT]
    positions = sum(layer.count for layer in layers)
    kept = positions - round(sparsity * positions)
    if isinstance(budget, Mapping):
        counts = mapped(layers, budget)
    elif kept == 0:
        raise InputError(
            f"sparsity {sparsity} keeps none of {positions} positions: choose a lower one"
        )
    elif budget == "global":
        return [kept]
    elif budget == "erk":
        counts = erdos_renyi_kernel(layers, kept)
    else:
        raise InputError(f"got budget {budget!r}, wanted 'global', 'erk' or a mapping")
    by_layer = iter(counts)
    return [next(by_layer) if p.kind is ParameterKind.WEIGHT else 0 for p in parameters]


def mapped(layers: Sequence[Parameter], budget: Mapping[str, int]) -> list[int]:
    """The counts of a mapping, checked."""
    unknown = sorted(set(budget) - {layer.name for layer in layers})
    if unknown:
        known = ", ".join(layer.name for layer in layers)
        raise InputError(f"budget for unknown layers {', '.join(unknown)}: the layers are {known}")
    counts = [budget.get(layer.name, layer.count) for layer in layers]
    for layer, count in zip(layers, counts, strict=True):
        if not 1 <= count <= layer.count:
            raise InputError(f"{layer.name}: got budget {count}, wanted 1 to {layer.count}")
    return counts


def erdos_renyi_kernel(layers: Sequence[Parameter], kept: int) -> list[int]:
    """Counts with density = scale · (out + in + kh + kw) / (out · in · kh · kw), `kept` in all.

    `in` is that of one group. The one scale is chosen so that the counts meet the sum while each
    layer keeps at least one entry and at most all of its own; fractions go to the largest
    remainders, the earlier layer first.
    """
    if kept < len(layers):
        raise InputError(
            f"a budget of {kept} entries is less than one for each of {len(layers)} layers: "
            "choose a lower sparsity"
        )
    weights = [sum(layer.dimensions) for layer in layers]
    sizes = [layer.count for layer in layers]

    def shares(scale: Fraction) -> list[Fraction]:
        return [
            min(max(scale * weight, Fraction(1)), Fraction(size))
            for weight, size in zip(weights, sizes, strict=True)
        ]

    def total(scale: Fraction) -> Fraction:
        return sum(shares(scale), start=Fraction(0))

    # Between these points the sum of the shares is linear in the scale, so that it can be solved
    # exactly: the same counts on every machine.
    bounds = {Fraction(1, weight) for weight in weights}
    bounds |= {Fraction(size, weight) for weight, size in zip(weights, sizes, strict=True)}
    points = sorted(bounds)
    place = bisect.bisect_right(points, Fraction(kept), key=total) - 1
    low = points[place]
    moving = sum(
        weight for weight, size in zip(weights, sizes, strict=True) if 1 <= low * weight < size
    )
    exact = shares(low + (kept - total(low)) / moving if moving else low)
    counts = [math.floor(share) for share in exact]
    order = sorted(range(len(layers)), key=lambda layer: (counts[layer] - exact[layer], layer))
    for layer in order[: kept - sum(counts)]:
        counts[layer] += 1
    return counts
