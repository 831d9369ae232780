from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from agent_bench import Bench
from board_firmware import HostBoard, build_host_firmware
from board_task import MEMORY, WORK, BoardTask

from sparsyfed.devices import events
from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.training import LocalResult, train_locally
from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter, Tensor
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State

EXAMPLES = 37


@pytest.fixture(scope="session")
def host_firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The firmware of boards on this host, under sanitizers; compiling it takes a while."""
    return build_host_firmware(tmp_path_factory.mktemp("firmware") / "firmware")


@pytest.fixture
def host_board(host_firmware: Path) -> Iterator[HostBoard]:
    """A board on this host."""
    board = HostBoard(host_firmware)
    yield board
    board.stop()


@pytest.fixture
def artifact() -> Artifact:
    """Two linear layers with a ReLU between: 6 features, 3 classes."""
    weight, dense = ParameterKind.WEIGHT, ParameterKind.DENSE
    return Artifact(
        parameters=(
            Parameter(weight, 2, (8, 6, 1, 1), "hidden.weight"),
            Parameter(dense, 1, (8, 1, 1, 1), "hidden.bias"),
            Parameter(weight, 2, (3, 8, 1, 1), "head.weight"),
            Parameter(dense, 1, (3, 1, 1, 1), "head.bias"),
        ),
        tensors=(Tensor(6, 1, 1, 1), Tensor(8, 1, 1, 1), Tensor(8, 1, 1, 1), Tensor(3, 1, 1, 1)),
        operations=(
            Operation(OperationKind.LINEAR, (0,), 1, "hidden", weight=0, bias=1),
            Operation(OperationKind.RELU, (1,), 2, "relu"),
            Operation(OperationKind.LINEAR, (2,), 3, "head", weight=2, bias=3),
        ),
        loss=Loss.CROSS_ENTROPY,
        output=3,
        beta=1.25,
    )


@pytest.fixture
def state(artifact: Artifact) -> State:
    """A dense state of seeded values."""
    random = np.random.default_rng(0)
    tensors: list[SparseTensor | DenseTensor] = []
    for parameter in artifact.parameters:
        values = random.normal(0, 0.5, parameter.count).astype(np.float32)
        if parameter.kind is ParameterKind.WEIGHT:
            matrix = values.reshape(parameter.rows, parameter.columns)
            tensors.append(
                SparseTensor.from_dense(
                    parameter.name, parameter.rows, parameter.columns, matrix, keep_zeros=True
                )
            )
        else:
            tensors.append(DenseTensor(parameter.name, parameter.kind, array("f", values)))
    return State(tuple(tensors), round=1)


@pytest.fixture
def data_directory(tmp_path: Path) -> Path:
    """Three clusters of 6 features, one class each."""
    random = np.random.default_rng(1)
    labels = np.arange(EXAMPLES, dtype=np.int32) % 3
    centres = random.normal(0, 2, (3, 6))
    x = (centres[labels] + random.normal(0, 0.3, (EXAMPLES, 6))).astype(np.float32)
    directory = tmp_path / "data"
    directory.mkdir()
    np.save(directory / "x.npy", x)
    np.save(directory / "y.npy", labels)
    return directory


@pytest.fixture
def dataset(data_directory: Path) -> Iterator[Dataset]:
    with closing(Dataset(data_directory)) as opened:
        yield opened


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A connected device that has been offered nothing yet."""
    bench = Bench(tmp_path / "device")
    bench.send(events.Connected())
    yield bench
    bench.storage.close()


@pytest.fixture
def task(artifact: Artifact, state: State, dataset: Dataset) -> BoardTask:
    return BoardTask(artifact, state.encode(), dataset)


@pytest.fixture
def expected(task: BoardTask, monkeypatch: pytest.MonkeyPatch) -> LocalResult:
    """The same round by the portable kernels of this process."""
    monkeypatch.setenv("SPARSYFED_KERNELS", "portable")
    return train_locally(task.artifact, task.state, task.dataset, WORK, memory_bytes=MEMORY)
