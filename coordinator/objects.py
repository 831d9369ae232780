"""The objects that devices pull in blocks: the artifact and the state of the running round."""

from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.messages import HASH_LIST_INDEX, BlockRequest, ObjectReference
from sparsyfed.edge_runtime.transfer import (
    encode_block,
    hash_list,
    object_block,
    object_reference,
    sha256_hex,
)


class ObjectServer:
    """Answers requests for blocks of these objects."""

    def __init__(self, *objects: bytes) -> None:
        self._objects = {sha256_hex(data): data for data in objects}
        self._references: dict[tuple[str, int], ObjectReference] = {}
        self._hash_lists: dict[tuple[str, int], bytes] = {}

    def reference(self, data: bytes, block_bytes: int) -> ObjectReference:
        """What a device needs to pull this object in blocks of at most `block_bytes`.

        The size is taken down to a power of two, so that many devices share few hash lists.
        """
        size = 1 << (block_bytes.bit_length() - 1)
        object_id = next(key for key, value in self._objects.items() if value == data)
        key = (object_id, size)
        if key not in self._references:
            self._references[key] = object_reference(data, size)
            self._hash_lists[key] = hash_list(data, size)
        return self._references[key]

    def has_offered(self, request: BlockRequest) -> bool:
        """Whether there is a reference for this object in blocks of this size."""
        return (request.object, request.block_bytes) in self._references

    def blocks(self, request: BlockRequest) -> list[bytes]:
        """Payloads of the requested blocks, each once.

        Raises FormatError for an object or a block size that was not offered, and for a block past the end.
        """
        if not self.has_offered(request):
            raise FormatError(
                f"request: got object {request.object[:8]} in blocks of {request.block_bytes} "
                "bytes, wanted what was offered in this round"
            )
        data = self._objects[request.object]
        payloads = []
        for index in dict.fromkeys(request.blocks):
            if index == HASH_LIST_INDEX:
                payloads.append(
                    encode_block(index, self._hash_lists[request.object, request.block_bytes])
                )
            else:
                payloads.append(encode_block(index, object_block(data, request.block_bytes, index)))
        return payloads
