import pytest

from sparsyfed.coordinator.admission import Needs, least_block_bytes, needs_of
from sparsyfed.coordinator.objects import ObjectServer
from sparsyfed.edge_runtime import Artifact, FormatError, State, plan
from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.edge_runtime.messages import MAX_BLOCKS, MIN_BLOCK_BYTES


def test_memory_is_that_of_the_smallest_plan(artifact: Artifact, dense_state: State) -> None:
    needs = needs_of(artifact, dense_state, 8)
    planned = min(
        plan(artifact, dense_state, 8, kernels=kernels, memory="small").arena_bytes
        for kernels in available_kernels()
    )
    assert needs == Needs(planned, MIN_BLOCK_BYTES)
    assert needs.refusal(planned, MIN_BLOCK_BYTES) is None
    assert needs.refusal(planned - 1, MIN_BLOCK_BYTES) is not None


@pytest.mark.parametrize(
    ("size", "least"),
    [(1, 256), (MAX_BLOCKS * 256, 256), (MAX_BLOCKS * 256 + 1, 512), (MAX_BLOCKS * 512, 512)],
)
def test_blocks_are_the_smallest_in_which_an_object_can_be_offered(size: int, least: int) -> None:
    data = bytes(size)
    assert least_block_bytes(size) == least
    assert ObjectServer(data).reference(data, least).size == size
    if least > MIN_BLOCK_BYTES:
        with pytest.raises(FormatError, match="at most 16384 blocks"):
            ObjectServer(data).reference(data, least // 2)
