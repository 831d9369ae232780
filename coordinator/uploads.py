"""Updates that come up in parts: kept in the journal until they are whole, then checked."""

from sparsyfed.coordinator.aggregation import UpdateRules
from sparsyfed.coordinator.store import Store
from sparsyfed.edge_runtime import State
from sparsyfed.edge_runtime.errors import FormatError, SparsyFedError
from sparsyfed.edge_runtime.messages import MAX_MISSING, MIN_BLOCK_BYTES, Report
from sparsyfed.edge_runtime.transfer import UpdatePart, sha256_hex, update_tag


class Uploads:
    """The parts of the updates of one round.

    An update holds no more than its base, so `limit_bytes`, the size of the base's bytes, bounds what one device may
    store.
    """

    def __init__(self, store: Store, rules: UpdateRules, base: State, limit_bytes: int) -> None:
        self._store = store
        self._rules = rules
        self._base = base
        self._limit = limit_bytes

    def put(self, device: str, part: UpdatePart) -> None:
        """Keep a part. Raises FormatError if the device would store more than an update of this round can take."""
        most = -(-self._limit // MIN_BLOCK_BYTES)
        if part.parts > most:
            raise FormatError(f"update part: got {part.parts} parts, wanted at most {most}")
        held = self._store.part_bytes(device, part.tag, part.part) + len(part.data)
        if held > self._limit:
            raise FormatError(f"update: got {held} bytes in parts, wanted at most {self._limit}")
        self._store.put_part(device, part.tag, part.part, part.parts, part.data)

    def missing(self, device: str, report: Report) -> tuple[int, ...]:
        """Parts of the reported update that are not there; as many as one receipt can name."""
        there = self._store.part_numbers(device, update_tag(report.sha256), report.parts)
        absent = (number for number in range(report.parts) if number not in there)
        return tuple(number for number, _ in zip(absent, range(MAX_MISSING), strict=False))

    def assemble(self, device: str, report: Report) -> bytes | None:
        """The reported update from its parts, or None if they are not its bytes: then they are dropped."""
        data = b"".join(self._store.parts(device, update_tag(report.sha256), report.parts))
        if len(data) == report.size and sha256_hex(data) == report.sha256:
            return data
        self._store.drop_parts(device)
        return None

    def problem(self, data: bytes) -> str | None:
        """Why this update can't be averaged, or None if it can."""
        try:
            self._rules.read(data, self._base)
        except SparsyFedError as error:
            return str(error)
        return None
