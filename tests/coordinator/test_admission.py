import re

import pytest

from sparsyfed.coordinator.admission import Engines, Needs, least_block_bytes
from sparsyfed.coordinator.bundle import EngineExport
from sparsyfed.coordinator.events import DeviceHello
from sparsyfed.coordinator.fleet import Fleet
from sparsyfed.coordinator.objects import ObjectServer
from sparsyfed.edge_runtime import Artifact, FormatError, State, plan
from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.edge_runtime.messages import MAX_BLOCKS, MIN_BLOCK_BYTES


def test_memory_is_that_of_the_smallest_plan(artifact: Artifact, dense_state: State) -> None:
    needs = Engines(native=True, exports={}).needs(artifact, dense_state, 8)["native"]
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


def engine(memory_bytes: int | None, batch_size: int | None) -> Engines:
    files = {"train.onnx": bytes(MAX_BLOCKS * 256 + 1)}
    export = EngineExport("onnxruntime", files, None, memory_bytes, batch_size)
    return Engines(native=False, exports={"onnxruntime": export})


@pytest.mark.parametrize(
    ("export", "reason"),
    [
        (engine(None, None), "is not known: it was not measured"),
        (engine(1000, 4), "measured for batches of 4, this job has 8: .*--batch-size 8"),
        (engine(1001, 8), r"needs 1001 bytes \(measured at batch 8\), the device declares 1000"),
        (engine(1000, 8), None),
    ],
)
def test_memory_of_another_engine_is_what_was_measured(
    artifact: Artifact, dense_state: State, export: Engines, reason: str | None
) -> None:
    (needs,) = export.needs(artifact, dense_state, 8).values()
    refusal = needs.refusal(1000, 512)
    assert (refusal is None) == (reason is None)
    assert re.search(reason or "", refusal or "")
    assert needs.block_bytes == 512


def test_a_device_is_admitted_by_its_own_engine() -> None:
    fleet = Fleet({"native": Needs(100, 256), "onnxruntime": Needs(1000, 256)})
    for backend in ("native", "onnxruntime", "torchscript"):
        fleet.hello(DeviceHello(backend, "boot", 500, 256, backend))
    assert fleet.eligible() == ["native"]
    assert fleet.refusal("onnxruntime") is not None
    reason = "the device trains with torchscript, this job is for native and onnxruntime"
    assert fleet.refusal("torchscript") == reason
