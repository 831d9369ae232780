"""What a session of the core has taken, as measured: memory and work."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """Memory of a session as measured, in bytes.

    `arena_peak_bytes` is the highest byte of the arena that has changed since it was painted.
    `stack_peak_bytes` is measured on boards only.
    """

    arena_bytes: int
    arena_peak_bytes: int
    stack_peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Counters:
    """Multiply-adds done by the convolution and linear layers, and steps applied.

    The portable kernels and the vectorised convolutions over 16 images count in their loops. For
    other batches and for linear layers the vectorised kernels report what follows from the layer's
    nonzeros; products with the zeros beside an image are not counted.

    `forward`, `d_input`, `d_weight` and `recomputed` are those of training (see
    `plan.MultiplyAdds` for the formula), `evaluation` those of `Session.evaluate`.
    """

    forward: int
    d_input: int
    d_weight: int
    recomputed: int
    steps: int
    evaluation: int
