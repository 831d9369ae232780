import hashlib

import pytest

from sparsyfed.coordinator.objects import ObjectServer
from sparsyfed.edge_runtime import FormatError
from sparsyfed.edge_runtime.messages import HASH_LIST_INDEX, BlockRequest
from sparsyfed.edge_runtime.transfer import decode_block, verify_block

ARTIFACT, STATE = bytes(range(256)) * 3, b"state" * 500


def test_a_device_pulls_and_checks_an_object() -> None:
    server = ObjectServer(ARTIFACT, STATE)
    reference = server.reference(STATE, 300)
    assert reference.block_bytes == 256  # the power of two below
    assert reference.id == hashlib.sha256(STATE).hexdigest()
    wanted = (HASH_LIST_INDEX, *range(reference.blocks), 3)
    payloads = server.blocks(BlockRequest(reference.id, 256, wanted))
    assert len(payloads) == reference.blocks + 1  # a block that is asked for twice is sent once
    index, hashes = decode_block(payloads[0])
    verify_block(reference, b"", index, hashes)
    pieces = []
    for payload in payloads[1:]:
        index, data = decode_block(payload)
        verify_block(reference, hashes, index, data)
        pieces.append(data)
    assert b"".join(pieces) == STATE


def test_what_was_not_offered_is_refused() -> None:
    server = ObjectServer(ARTIFACT, STATE)
    reference = server.reference(ARTIFACT, 1024)
    with pytest.raises(FormatError, match="wanted what was offered"):
        server.blocks(BlockRequest("0" * 64, 1024, (0,)))
    with pytest.raises(FormatError, match="blocks of 256 bytes"):
        server.blocks(BlockRequest(reference.id, 256, (0,)))
    with pytest.raises(FormatError, match="got index 1"):
        server.blocks(BlockRequest(reference.id, 1024, (0, 1)))
