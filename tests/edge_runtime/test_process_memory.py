import pytest

from sparsyfed.edge_runtime.process_memory import peak_rss_bytes


def test_peak_memory_grows_with_what_is_touched() -> None:
    before = peak_rss_bytes()
    if before is None:
        pytest.skip("this system does not tell the peak resident set")
    block = bytearray(before + (1 << 24))
    block[::4096] = b"\1" * len(block[::4096])
    after = peak_rss_bytes()
    assert after is not None
    assert after >= before + (1 << 24)
