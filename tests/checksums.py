"""Damaged files whose checksum fits, so that a reader looks at the fields behind it."""

import struct
import zlib


def sealed(data: bytearray) -> bytes:
    """The bytes of an artifact, state or update with the right checksum."""
    field = 12 if data.startswith(b"SFDA") else 36
    data[field : field + 4] = bytes(4)
    struct.pack_into("<I", data, field, zlib.crc32(data))
    return bytes(data)
