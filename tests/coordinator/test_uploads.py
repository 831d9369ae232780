from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsyfed.coordinator.aggregation import UpdateRules
from sparsyfed.coordinator.store import Store
from sparsyfed.coordinator.uploads import Uploads
from sparsyfed.edge_runtime import Artifact, FormatError, Session, State
from sparsyfed.edge_runtime.messages import DeviceProfileReport, MultiplyAddsReport, Report
from sparsyfed.edge_runtime.transfer import UpdatePart, part_count, sha256_hex

PART_BYTES = 200


def report_of(data: bytes) -> Report:
    return Report(
        job="j",
        round=1,
        attempt=1,
        sha256=sha256_hex(data),
        size=len(data),
        parts=part_count(len(data), PART_BYTES),
        examples=5,
        loss=0.5,
        seconds=0.1,
        profile=DeviceProfileReport(1, 1, None, MultiplyAddsReport(1, 1, 1)),
    )


@pytest.fixture
def update(artifact: Artifact, dense_state: State) -> bytes:
    with Session.open(artifact, dense_state, batch_size=1) as session:
        return session.update(0.5, round=1).encode()


@pytest.fixture
def uploads(artifact: Artifact, dense_state: State, tmp_path: Path) -> Iterator[Uploads]:
    rules = UpdateRules.of_job(artifact, 0.5, "global", 10.0)
    with Store(tmp_path) as store:
        yield Uploads(store, rules, dense_state, len(dense_state.encode()))


def part_of(data: bytes, number: int) -> UpdatePart:
    piece = data[number * PART_BYTES : (number + 1) * PART_BYTES]
    tag = bytes.fromhex(sha256_hex(data))[:16]
    return UpdatePart(1, 1, number, part_count(len(data), PART_BYTES), tag, piece)


def test_parts_in_any_order_and_twice_make_the_update(uploads: Uploads, update: bytes) -> None:
    report = report_of(update)
    assert report.parts == 3
    assert uploads.missing("a", report) == (0, 1, 2)
    for number in (2, 0, 2):
        uploads.put("a", part_of(update, number))
    assert uploads.missing("a", report) == (1,)
    uploads.put("a", part_of(update, 1))
    assert uploads.missing("a", report) == ()
    assert uploads.assemble("a", report) == update
    assert uploads.problem(update) is None
    assert uploads.missing("b", report) == (0, 1, 2)


def test_forged_bytes_under_the_right_tag_are_dropped(uploads: Uploads, update: bytes) -> None:
    report = report_of(update)
    for number in range(3):
        part = part_of(update, number)
        if number == 1:
            part = UpdatePart(1, 1, 1, 3, part.tag, bytes(len(part.data)))
        uploads.put("a", part)
    assert uploads.assemble("a", report) is None
    assert uploads.missing("a", report) == (0, 1, 2)


def test_a_device_can_not_store_more_than_its_base(uploads: Uploads, dense_state: State) -> None:
    limit = len(dense_state.encode())
    uploads.put("a", UpdatePart(1, 1, 0, 2, b"t" * 16, bytes(limit - 10)))
    uploads.put("a", UpdatePart(1, 1, 0, 2, b"t" * 16, bytes(limit)))  # again: replaced, not added
    with pytest.raises(
        FormatError, match=f"got {limit + 1} bytes in parts, wanted at most {limit}"
    ):
        uploads.put("a", UpdatePart(1, 1, 1, 2, b"t" * 16, b"x"))
    with pytest.raises(FormatError, match="got 60000 parts, wanted at most"):
        uploads.put("a", UpdatePart(1, 1, 0, 60_000, b"t" * 16, b"x"))


def test_what_is_wrong_with_an_update_is_said(uploads: Uploads, update: bytes) -> None:
    assert uploads.problem(update[:-1]) is not None
    assert uploads.problem(b"SFDV") is not None
