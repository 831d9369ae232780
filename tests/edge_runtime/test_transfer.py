import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsyfed.edge_runtime import transfer
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.messages import HASH_LIST_INDEX, MAX_BLOCKS
from sparsyfed.edge_runtime.transfer import UpdatePart

DATA = bytes(i * 7 % 251 for i in range(1000))


@given(st.binary(min_size=1, max_size=3000), st.integers(256, 1024))
def test_the_blocks_of_an_object_make_it_again_and_verify(data: bytes, block_bytes: int) -> None:
    reference = transfer.object_reference(data, block_bytes)
    hashes = transfer.object_block(data, block_bytes, HASH_LIST_INDEX)
    transfer.verify_block(reference, b"", HASH_LIST_INDEX, hashes)
    blocks = [transfer.object_block(data, block_bytes, i) for i in range(reference.blocks)]
    for index, block in enumerate(blocks):
        transfer.verify_block(reference, hashes, index, block)
        assert len(block) == transfer.block_size(reference, index)
    assert b"".join(blocks) == data
    assert hashlib.sha256(data).hexdigest() == reference.id


def test_a_changed_short_or_misplaced_block_is_refused() -> None:
    reference = transfer.object_reference(DATA, 256)
    hashes = transfer.hash_list(DATA, 256)
    block = DATA[:256]
    for index, data in [(0, b"x" + block[1:]), (0, block[:-1]), (1, block), (4, block)]:
        with pytest.raises(FormatError, match="block"):
            transfer.verify_block(reference, hashes, index, data)
    with pytest.raises(FormatError):
        transfer.verify_block(reference, b"", HASH_LIST_INDEX, hashes[:-1] + b"\0")


def test_no_block_lies_past_the_last_one() -> None:
    for index in (-1, 4):
        with pytest.raises(FormatError, match="wanted an index below 4"):
            transfer.object_block(DATA, 256, index)


def test_an_empty_object_has_no_reference() -> None:
    with pytest.raises(FormatError, match="size"):
        transfer.object_reference(b"", 256)


@given(st.integers(0, MAX_BLOCKS - 1) | st.just(HASH_LIST_INDEX), st.binary(min_size=1))
def test_a_block_message_comes_back(index: int, data: bytes) -> None:
    assert transfer.decode_block(transfer.encode_block(index, data)) == (index, data)


def test_a_block_message_is_an_index_and_bytes() -> None:
    assert transfer.encode_block(258, b"ab") == b"\x02\x01\x00\x00ab"


@given(st.binary(max_size=64))
def test_any_bytes_give_a_block_or_a_format_error(data: bytes) -> None:
    try:
        index, _ = transfer.decode_block(data)
    except FormatError:
        return
    assert index < MAX_BLOCKS or index == HASH_LIST_INDEX


def test_a_part_has_a_header_of_32_bytes() -> None:
    part = UpdatePart(round=1, attempt=2, part=3, parts=4, tag=bytes(range(16)), data=b"data")
    encoded = part.encode()
    assert encoded[:4] == b"SFDP"
    assert encoded[4:16] == bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 4, 0])
    assert encoded[16:32] == part.tag
    assert encoded[32:] == b"data"
    assert UpdatePart.decode(encoded) == part


@given(st.binary(max_size=80))
def test_any_bytes_give_a_part_or_a_format_error(data: bytes) -> None:
    for candidate in (data, b"SFDP" + data):
        try:
            part = UpdatePart.decode(candidate)
        except FormatError:
            continue
        assert part.encode() == candidate


def test_a_part_past_the_last_and_an_empty_part_are_refused() -> None:
    part = UpdatePart(0, 0, 4, 4, bytes(16), b"x").encode()
    with pytest.raises(FormatError, match="number 4 of 4"):
        UpdatePart.decode(part)
    with pytest.raises(FormatError, match="32 bytes"):
        UpdatePart.decode(part[:32])


def test_parts_are_numbered_by_16_bits() -> None:
    assert transfer.part_count(65_535 * 256, 256) == 65_535
    for size in (0, 65_535 * 256 + 1):
        with pytest.raises(FormatError, match="parts"):
            transfer.part_count(size, 256)
