"""Blocks of an object and parts of an update: what travels as bytes.

An object (an artifact or a state) is named by its sha256 and is pulled in blocks; its hash list,
the concatenated sha256 of each block, makes each block checkable on arrival. An update is pushed in
parts.
"""

import hashlib
import struct
from dataclasses import dataclass

from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.messages import (
    HASH_LIST_INDEX,
    MAX_BLOCK_BYTES,
    MAX_BLOCKS,
    MAX_PARTS,
    ObjectReference,
)

HASH_BYTES = 32
PART_MAGIC = b"SFDP"
PART_HEADER_BYTES = 32
TAG_BYTES = 16

_INDEX = struct.Struct("<I")
_PART_HEADER = struct.Struct("<4sIIHH16s")


def sha256_hex(data: bytes | memoryview) -> str:
    """sha256 of `data` in lower-case hexadecimal: the identity of an object or an update."""
    return hashlib.sha256(data).hexdigest()


def update_tag(sha256: str) -> bytes:
    """What the parts of the update with this sha256 (hex) carry: its first 16 bytes."""
    return bytes.fromhex(sha256)[:TAG_BYTES]


def hash_list(data: bytes, block_bytes: int) -> bytes:
    """Concatenated sha256 of each block of `data`, 32 bytes a block."""
    view = memoryview(data)
    starts = range(0, len(view), block_bytes)
    return b"".join(hashlib.sha256(view[start : start + block_bytes]).digest() for start in starts)


def object_reference(data: bytes, block_bytes: int) -> ObjectReference:
    """Reference with which a device can pull and check `data`.

    Raises FormatError if it is empty or too large.
    """
    hashes = hash_list(data, block_bytes)
    return ObjectReference(
        id=sha256_hex(data), size=len(data), block_bytes=block_bytes, hashes=sha256_hex(hashes)
    )


def object_block(data: bytes, block_bytes: int, index: int) -> bytes:
    """Block `index` of an object; HASH_LIST_INDEX gives its hash list.

    Raises FormatError past the last block.
    """
    if index == HASH_LIST_INDEX:
        return hash_list(data, block_bytes)
    if not 0 <= index * block_bytes < len(data):
        wanted = f"an index below {-(-len(data) // block_bytes)}"
        raise FormatError(f"block: got index {index}, wanted {wanted}")
    return bytes(data[index * block_bytes : (index + 1) * block_bytes])


def block_size(reference: ObjectReference, index: int) -> int:
    """Bytes of block `index` of the referenced object, or of its hash list for HASH_LIST_INDEX."""
    if index == HASH_LIST_INDEX:
        return reference.blocks * HASH_BYTES
    if not 0 <= index < reference.blocks:
        raise FormatError(f"block: got index {index}, wanted an index below {reference.blocks}")
    return min(reference.block_bytes, reference.size - index * reference.block_bytes)


def encode_block(index: int, data: bytes) -> bytes:
    """Payload of a block message: u32 index, then the bytes."""
    return _INDEX.pack(index) + data


def decode_block(payload: bytes | bytearray) -> tuple[int, bytes]:
    """Index and bytes of a block message.

    Raises FormatError; the bytes are not checked against a hash here.
    """
    limit = _INDEX.size + max(MAX_BLOCK_BYTES, MAX_BLOCKS * HASH_BYTES)
    if not _INDEX.size < len(payload) <= limit:
        raise FormatError(f"block: got {len(payload)} bytes, wanted {_INDEX.size + 1} to {limit}")
    (index,) = _INDEX.unpack_from(payload)
    if index >= MAX_BLOCKS and index != HASH_LIST_INDEX:
        raise FormatError(
            f"block: got index {index}, wanted below {MAX_BLOCKS} or {HASH_LIST_INDEX}"
        )
    return index, bytes(payload[_INDEX.size :])


def verify_block(reference: ObjectReference, hashes: bytes, index: int, data: bytes) -> None:
    """Check the length and the sha256 of a block (or of the hash list itself). Raises FormatError.

    `hashes` is the verified hash list; it is not read for HASH_LIST_INDEX.
    """
    wanted_size = block_size(reference, index)
    if len(data) != wanted_size:
        raise FormatError(f"block {index}: got {len(data)} bytes, wanted {wanted_size}")
    got = hashlib.sha256(data).digest()
    if index == HASH_LIST_INDEX:
        wanted = bytes.fromhex(reference.hashes)
    else:
        wanted = hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
    if got != wanted:
        raise FormatError(f"block {index}: got sha256 {got.hex()}, wanted {wanted.hex()}")


@dataclass(frozen=True, slots=True)
class UpdatePart:
    """One part of an update. `tag` is the `update_tag` of the whole update."""

    round: int
    attempt: int
    part: int
    parts: int
    tag: bytes
    data: bytes

    def encode(self) -> bytes:
        """32-byte header, then the bytes."""
        header = _PART_HEADER.pack(
            PART_MAGIC, self.round, self.attempt, self.part, self.parts, self.tag
        )
        return header + self.data

    @classmethod
    def decode(cls, payload: bytes | bytearray) -> "UpdatePart":
        """The part that `payload` holds. Raises FormatError."""
        limit = PART_HEADER_BYTES + MAX_BLOCK_BYTES
        if not PART_HEADER_BYTES < len(payload) <= limit:
            wanted = f"{PART_HEADER_BYTES + 1} to {limit}"
            raise FormatError(f"update part: got {len(payload)} bytes, wanted {wanted}")
        magic, round_, attempt, part, parts, tag = _PART_HEADER.unpack_from(payload)
        if magic != PART_MAGIC:
            raise FormatError(f"update part magic: got {magic!r}, wanted {PART_MAGIC!r}")
        if part >= parts:
            raise FormatError(
                f"update part: got number {part} of {parts}, wanted a number below {parts}"
            )
        return cls(round_, attempt, part, parts, tag, bytes(payload[PART_HEADER_BYTES:]))


def part_count(size: int, part_bytes: int) -> int:
    """Number of parts of an update of `size` bytes. Raises FormatError if a u16 cannot number them."""
    parts = -(-size // part_bytes)
    if not 1 <= parts <= MAX_PARTS:
        raise FormatError(
            f"update: got {size} bytes in parts of {part_bytes}, wanted 1 to {MAX_PARTS} parts"
        )
    return parts
