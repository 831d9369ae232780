"""Pieces of text that the sections of the page on keywords share."""

from collections.abc import Sequence

from sparsyfed.tools.keyword_points import Point

KIB = 1024


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its first column to the left."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def kibibytes(count: int) -> str:
    """Such as 128 KiB."""
    return f"{count // KIB} KiB"


def joined(numbers: Sequence[int]) -> str:
    """Such as 8-12-16."""
    return "-".join(map(str, numbers))


def strides(point: Point) -> str:
    """Those of the first convolution in time and bands, then those of the others."""
    return " ".join(["x".join(map(str, point.stem_strides)), *map(str, point.strides)])


def described(point: Point) -> str:
    """A point in words."""
    how = f"{point.sparsity:.1%} sparse" if point.is_sparse else "dense, β = 1"
    after = " after dense rounds" if point.dense_share else ""
    return f"widths {joined(point.widths)}, strides {strides(point)}, {how}{after}"
