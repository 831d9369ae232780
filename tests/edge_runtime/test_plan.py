import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_strategies import ModelBuilder, random_state

from sparsyfed.edge_runtime.arguments import MAX_BATCH_SIZE
from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.plan import MemoryPlan, plan
from sparsyfed.edge_runtime.state import State


def alive(planned: MemoryPlan, step: int) -> int:
    """Bytes of the buffers alive at a step."""
    return sum(b.bytes for b in planned.buffers if b.first_step <= step <= b.last_step)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_buffers_lie_in_the_arena_and_never_share_bytes_while_alive(
    classifier: Artifact, dense_state: State, batch_size: int
) -> None:
    planned = plan(classifier, dense_state, batch_size)
    assert all(b.offset + b.bytes <= planned.arena_bytes for b in planned.buffers)
    assert max(b.offset + b.bytes for b in planned.buffers) == planned.arena_bytes
    for one, other in itertools.combinations([b for b in planned.buffers if b.bytes], 2):
        together = one.first_step <= other.last_step and other.first_step <= one.last_step
        overlap = one.offset < other.offset + other.bytes and other.offset < one.offset + one.bytes
        assert not (together and overlap), (one, other)


def test_parts_are_what_is_alive_at_the_peak(classifier: Artifact, sparse_state: State) -> None:
    planned = plan(classifier, sparse_state, 4)
    steps = range(len(planned.steps))
    assert sum(planned.parts.values()) == alive(planned, planned.live_peak_step)
    assert sum(planned.parts.values()) == max(alive(planned, step) for step in steps)
    assert sum(planned.parts.values()) <= planned.arena_bytes
    assert planned.live_peak_bytes <= planned.transient_bytes < planned.arena_bytes
    assert planned.parts["weight"] == 4 * sparse_state.nonzeros


def test_memory_and_work_fall_with_the_density(
    classifier: Artifact, dense_state: State, sparse_state: State
) -> None:
    dense, sparse = plan(classifier, dense_state, 8), plan(classifier, sparse_state, 8)
    assert sparse.arena_bytes < dense.arena_bytes
    assert sparse.macs.total < dense.macs.total


def test_table_shows_every_part_and_its_total(classifier: Artifact, sparse_state: State) -> None:
    planned = plan(classifier, sparse_state, 4)
    lines = str(planned).splitlines()
    titles = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    memory, work, buffers = (
        lines[start + 1 : end] for start, end in itertools.pairwise([*titles, len(lines)])
    )
    numbers = [int(line.split()[-1].replace(",", "")) for line in memory if "---" not in line]
    parts, (live, placement, arena) = numbers[:-3], numbers[-3:]
    assert parts == list(planned.parts.values())
    assert live == sum(parts)
    assert live + placement == arena == planned.arena_bytes
    assert int(work[-1].split()[-1].replace(",", "")) == planned.macs.total
    assert len({len(line) for line in memory}) == 1
    assert lines[0] == f'Memory in bytes, batch size 4, {planned.kernels} kernels, memory="fast"'
    assert len(buffers) == 1 + sum(not buffer.is_persistent for buffer in planned.buffers)
    for kind in planned.parts:
        assert kind.replace("_", " ") in str(planned)


def test_artifact_may_be_a_path_bytes_or_itself(
    classifier: Artifact, sparse_state: State, tmp_path: Path
) -> None:
    path = tmp_path / "model.sfd"
    classifier.save(path)
    expected = plan(classifier, sparse_state, 2)
    for source in (path, str(path), classifier.encode()):
        assert plan(source, sparse_state.encode(), 2) == expected


@pytest.mark.parametrize("batch_size", [-1, 0, 65_536, 2**32 + 1])
def test_batch_size_out_of_range_is_refused(
    classifier: Artifact, sparse_state: State, batch_size: int
) -> None:
    with pytest.raises(InputError, match=f"got batch size {batch_size}, wanted 1 to 65535"):
        plan(classifier, sparse_state, batch_size)


@pytest.mark.parametrize("batch_size", [2.5, "4", True, None])
def test_batch_size_that_is_no_whole_number_is_refused(
    classifier: Artifact, sparse_state: State, batch_size: Any
) -> None:
    message = f"got batch size {batch_size!r}, wanted 1 to 65535, a whole number"
    with pytest.raises(InputError, match=message):
        plan(classifier, sparse_state, batch_size)


def test_integers_of_numpy_are_whole_numbers(classifier: Artifact, sparse_state: State) -> None:
    wanted = plan(classifier, sparse_state, 3, threads=2)
    examples: Any = np.int64(3)
    threads: Any = np.uint8(2)
    assert plan(classifier, sparse_state, examples, threads=threads) == wanted


def test_the_core_has_the_same_limit_of_the_batch_size(
    monkeypatch: pytest.MonkeyPatch, classifier: Artifact, sparse_state: State
) -> None:
    monkeypatch.setattr("sparsyfed.edge_runtime.arguments.MAX_BATCH_SIZE", 2**31)
    with pytest.raises(InputError, match=rf"\(got {MAX_BATCH_SIZE + 1}, wanted {MAX_BATCH_SIZE}\)"):
        plan(classifier, sparse_state, MAX_BATCH_SIZE + 1)


def test_batch_size_whose_arena_has_no_addresses_is_refused() -> None:
    net = ModelBuilder(Tensor(100_000, 1, 1, 1))
    net.linear(0, 2)
    artifact = net.finish()
    state = random_state(artifact, np.random.default_rng(0), 0.1)
    with pytest.raises(InputError, match="batch size 60000, for which the arena would pass 4 GiB"):
        plan(artifact, state, 60_000)
