import pytest

from sparsyfed.tools.quantities import byte_text, count_text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (388_096, "388 kB"), (2_900_000, "2.9 MB")],
)
def test_bytes_have_three_digits_and_a_decimal_prefix(count: float, text: str) -> None:
    assert byte_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7"), (1_234, "1.23 k"), (22_400_000_000, "22.4 G")]
)
def test_counts_have_three_digits_and_a_decimal_prefix(count: float, text: str) -> None:
    assert count_text(count) == text
