"""The firmware on emulated boards: the bits of the portable kernels, and its budget of memory."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from board_budget import budget, require_budget, require_table
from board_machines import require_compilers, require_tools
from model_strategies import ModelBuilder, random_state
from odd_models import every_operation

from sparsyfed.devices.board import Board
from sparsyfed.devices.board_fit import fit_on_board
from sparsyfed.devices.board_operations import NAMES, operations_of, require_operations
from sparsyfed.devices.profiles import find_profile
from sparsyfed.devices.serial_link import SerialLink
from sparsyfed.devices.serial_port import open_port
from sparsyfed.devices.serial_protocol import SerialObject
from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.errors import BackendError, FormatError, UnsupportedOperationError
from sparsyfed.edge_runtime.format import OperationKind
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.quantization import Quantization
from sparsyfed.edge_runtime.session import Session
from sparsyfed.tools.emulator import MACHINES, EmulatedBoard
from sparsyfed.tools.firmware import build_firmware, list_boards, size_of

pytestmark = pytest.mark.long

BUILT = ("stm32f746-discovery",)
"""Boards that QEMU does not have: their firmware is built, and never run here."""
STEPS = 100
BATCH = 3
HELD = 7
SPARSITY = 0.9
SPECTROGRAM = (1, 49, 20)
RATES = {"learning_rate": 0.05, "weight_decay": 1e-3}


def small_classifier() -> Artifact:
    """Convolution, rectifier, pool and two linear layers on 12x12 pixels: 9.6 thousand weights."""
    net = ModelBuilder(Tensor(1, 12, 12, 3))
    x = net.activation(net.convolution(0, 8, (3, 3), padding=(1, 1)), OperationKind.RELU)
    x = net.pool(x, OperationKind.AVERAGE_POOL, (2, 2), stride=(2, 2))
    net.linear(net.linear(net.reshape(x), 32), 10)
    return net.finish()


def keyword_spotter() -> Artifact:
    """The built-in one, with its own widths."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    export = pytest.importorskip("sparsyfed.export")
    model = export.models.kws_cnn()
    artifact: Artifact = export.compile(model, torch.zeros(1, *SPECTROGRAM)).native
    return artifact


@contextmanager
def emulated(
    board: str,
    *,
    counts_instructions: bool = False,
    operations: Sequence[str] = (),
    ram_bytes: int | None = None,
    sensors: str | None = None,
    vectors: bool = False,
) -> Iterator[Board]:
    """A board in QEMU, or a skipped test where a tool is missing."""
    require_tools(board)
    firmware = build_firmware(board, ram_bytes, operations, sensors, vectors)
    with (
        EmulatedBoard(board, firmware, counts_instructions=counts_instructions) as machine,
        closing(SerialLink(partial(open_port, machine.port), patience_s=60)) as link,
    ):
        yield Board(link)


def test_every_board_has_a_budget_and_a_profile() -> None:
    assert set(list_boards()) == set(budget()) == {*MACHINES, *BUILT}
    for board in list_boards():
        assert find_profile(board).kernels == "portable"


@pytest.mark.parametrize("board", BUILT)
def test_firmware_of_boards_without_a_machine_is_built(board: str) -> None:
    require_compilers(board)
    firmware = build_firmware(board)
    sizes = {name: size_of(board, firmware, name) for name in ("text", "data", "bss", "memory")}
    require_budget(
        board,
        {"text_bytes": sizes["text"], "static_bytes": sizes["data"] + sizes["bss"]},
    )
    require_room_of_profile(board, sizes["memory"])


def require_room_of_profile(board: str, memory_bytes: int) -> None:
    """Fail where the firmware leaves less than the board's profile says, or much more."""
    assert 0 <= memory_bytes - find_profile(board).memory_bytes < 4096


@pytest.mark.parametrize("board", MACHINES)
def test_a_hundred_steps_give_the_bits_of_the_portable_kernels(board: str) -> None:
    artifact = every_operation()
    state = random_state(artifact, np.random.default_rng(1), 0.3)
    random = np.random.default_rng(2)
    x = random.uniform(-1, 1, (HELD, *artifact.tensors[0].shape)).astype(np.float32)
    y = random.integers(0, artifact.tensors[artifact.output].size, HELD).astype(np.int32)
    places = random.integers(0, HELD, STEPS * BATCH)
    with Session.open(artifact, state, BATCH, kernels="portable") as session:
        batches = places.reshape(STEPS, BATCH)
        losses = [session.step(x[rows], y[rows], **RATES) for rows in batches]
        wanted = session.update(SPARSITY).encode()
    keep = keep_counts(artifact.parameters, SPARSITY, "global")
    with emulated(board) as device:
        facts = device.hello()
        planned = plan(artifact, state, BATCH, kernels="portable", arena_bytes=facts.memory_bytes)
        device.send(SerialObject.ARTIFACT, artifact.encode())
        device.send(SerialObject.STATE, state.encode())
        opened = device.open(BATCH, planned.layout, examples=HELD, gathered=BATCH)
        device.send(SerialObject.EXAMPLES, x.tobytes() + y.tobytes())
        assert device.train(places.tolist(), BATCH, steps_before=0, **RATES) == losses
        profile = device.profile()
        assert device.update(state.round, keep) == wanted
    assert facts.name == board
    require_room_of_profile(board, facts.memory_bytes)
    assert profile.arena_touched_bytes == opened.arena_bytes
    assert opened.arena_bytes == planned.arena_bytes
    require_budget(
        board,
        {
            "text_bytes": facts.text_bytes,
            "static_bytes": facts.data_bytes + facts.bss_bytes,
            "stack_bytes": profile.stack_touched_bytes,
            "every_operation_arena_bytes": opened.arena_bytes,
        },
    )


@pytest.mark.parametrize("board", ["mps2-an386", "rv32-virt"])
def test_instructions_of_a_step_are_counted_twice_the_same(board: str) -> None:
    artifact = small_classifier()
    state = random_state(artifact, np.random.default_rng(0), [0.6, 0.05, 0.5])
    x = np.random.default_rng(3).uniform(0, 1, (1, 1, 12, 12)).astype(np.float32)
    layout = plan(artifact, state, 1, kernels="portable").layout
    counts = []
    for _ in range(2):
        with emulated(board, counts_instructions=True) as device:
            rate = device.hello().ticks_per_second
            device.send(SerialObject.ARTIFACT, artifact.encode())
            device.send(SerialObject.STATE, state.encode())
            opened = device.open(1, layout, examples=1)
            device.send(SerialObject.EXAMPLES, x.tobytes() + np.int32(3).tobytes())
            device.evaluate(0, 1)
            device.train([0], 1, steps_before=0, **RATES)
            measured = device.profile()
        ticks = (
            measured.evaluate_ticks,
            measured.step_ticks,
            measured.step_forward_ticks,
            measured.step_backward_ticks,
            measured.step_top_k_ticks,
            measured.step_update_ticks,
        )
        counts.append([tick * 1_000_000_000 // rate for tick in ticks])
    assert counts[0] == counts[1]
    evaluation, step, *parts = counts[0]
    assert evaluation < step
    assert abs(sum(parts) - step) <= len(parts)  # each is rounded
    forward, backward, top_k, update = parts
    assert abs(evaluation - forward) < 0.02 * forward
    assert 0 < update < top_k < backward
    require_budget(
        board,
        {
            "small_classifier_instructions": step,
            "small_classifier_arena_bytes": opened.arena_bytes,
        },
    )


@pytest.mark.parametrize("board", ["mps2-an386", "rv32-virt"])
def test_a_keyword_spotter_trains_in_little_memory_on_a_firmware_of_its_own(board: str) -> None:
    artifact = keyword_spotter()
    random = np.random.default_rng(0)
    state = random_state(artifact, random, 0.05)
    x = random.uniform(-1, 1, (8, *SPECTROGRAM)).astype(np.float32)
    y = random.integers(0, 12, 8).astype(np.int32)
    operations = operations_of(artifact)
    measured: dict[str, int] = {}
    for batch, kilobytes in ((1, 96), (8, 256)):
        with (
            emulated(board, operations=operations, ram_bytes=kilobytes * 1024) as device,
            Session.open(artifact, state, batch, kernels="portable") as session,
        ):
            facts = device.hello()
            fit = fit_on_board(artifact, state.encode(), batch, facts.memory_bytes, batch)
            device.send(SerialObject.ARTIFACT, artifact.encode())
            device.send(SerialObject.STATE, state.encode())
            opened = device.open(
                *(batch, fit.plan.layout),
                examples=fit.held_examples,
                gathered=fit.gathered_examples,
            )
            device.send(SerialObject.EXAMPLES, x[:batch].tobytes() + y[:batch].tobytes())
            for step in range(3):
                wanted = session.step(x[:batch], y[:batch], **RATES)
                assert device.train(range(batch), batch, steps_before=step, **RATES) == [wanted]
            profile = device.profile()
        assert profile.arena_touched_bytes == opened.arena_bytes == fit.plan.arena_bytes
        measured[f"keyword_spotter_batch_{batch}_arena_bytes"] = opened.arena_bytes
    assert facts.operations == sum(NAMES[name] for name in operations)
    measured["keyword_spotter_text_bytes"] = facts.text_bytes
    require_budget(board, measured)


def test_a_hundred_steps_on_int8_inputs_give_the_bits_of_the_portable_kernels() -> None:
    artifact = replace(small_classifier(), quantization=Quantization(1 / 127))
    state = random_state(artifact, np.random.default_rng(1), 0.2)
    random = np.random.default_rng(2)
    x = random.integers(-128, 128, (HELD, 1, 12, 12)).astype(np.int8)
    y = random.integers(0, 10, HELD).astype(np.int32)
    places = random.integers(0, HELD, STEPS * BATCH)
    with Session.open(artifact, state, BATCH, kernels="portable") as session:
        batches = places.reshape(STEPS, BATCH)
        losses = [session.step(x[rows], y[rows], **RATES) for rows in batches]
        wanted = session.update(SPARSITY).encode()
    with emulated("mps2-an386", operations=operations_of(artifact)) as device:
        device.send(SerialObject.ARTIFACT, artifact.encode())
        device.send(SerialObject.STATE, state.encode())
        layout = plan(artifact, state, BATCH, kernels="portable").layout
        opened = device.open(BATCH, layout, examples=HELD, gathered=BATCH)
        assert opened.input_bytes == 144
        device.send(SerialObject.EXAMPLES, x.tobytes() + y.tobytes())
        assert device.train(places.tolist(), BATCH, steps_before=0, **RATES) == losses
        assert device.profile().arena_touched_bytes == opened.arena_bytes
        keep = keep_counts(artifact.parameters, SPARSITY, "global")
        assert device.update(state.round, keep) == wanted
    with emulated("mps2-an386", operations=operations_of(small_classifier())) as device:
        with pytest.raises(UnsupportedOperationError, match="built without int8"):
            require_operations(artifact, device.hello().operations)
        device.send(SerialObject.ARTIFACT, artifact.encode())
        device.send(SerialObject.STATE, state.encode())
        with pytest.raises(UnsupportedOperationError, match="does not have an operation"):
            device.open(BATCH, layout, examples=1)


def test_vectors_give_the_same_bits_in_fewer_instructions() -> None:
    artifact = every_operation()
    state = random_state(artifact, np.random.default_rng(1), 0.3)
    random = np.random.default_rng(2)
    batch = 5
    x = random.uniform(-1, 1, (batch, *artifact.tensors[0].shape)).astype(np.float32)
    y = random.integers(0, artifact.tensors[artifact.output].size, batch).astype(np.int32)
    with Session.open(artifact, state, batch, kernels="portable") as session:
        losses = [session.step(x, y, **RATES) for _ in range(STEPS)]
        wanted = session.update(SPARSITY).encode()
    keep = keep_counts(artifact.parameters, SPARSITY, "global")
    layout = plan(artifact, state, batch, kernels="portable").layout
    ticks = {}
    for vectors in (False, True):
        with emulated("mps3-an547", counts_instructions=True, vectors=vectors) as device:
            device.send(SerialObject.ARTIFACT, artifact.encode())
            device.send(SerialObject.STATE, state.encode())
            device.open(batch, layout, examples=batch)
            device.send(SerialObject.EXAMPLES, x.tobytes() + y.tobytes())
            places = list(range(batch)) * (STEPS if vectors else 1)
            got = device.train(places, batch, steps_before=0, **RATES)
            assert got == losses[: len(got)]
            ticks[vectors] = device.profile().step_ticks
            if vectors:
                assert device.update(state.round, keep) == wanted
    assert ticks[True] < 0.9 * ticks[False], ticks
    with pytest.raises(BackendError, match="VECTORS=1, which mps2-an386 does not have"):
        build_firmware("mps2-an386", vectors=True)


def test_a_firmware_without_an_operation_refuses_its_models() -> None:
    artifact = every_operation()
    state = random_state(artifact, np.random.default_rng(0), 0.3)
    with emulated("mps2-an386", operations=operations_of(keyword_spotter())) as device:
        with pytest.raises(UnsupportedOperationError, match="built without add, average_pool"):
            require_operations(artifact, device.hello().operations)
        device.send(SerialObject.ARTIFACT, artifact.encode())
        device.send(SerialObject.STATE, state.encode())
        with pytest.raises(UnsupportedOperationError, match="does not have an operation"):
            device.open(1, plan(artifact, state, 1, kernels="portable").layout, examples=1)


@pytest.mark.parametrize("board", ["mps2-an386", "rv32-virt"])
def test_an_emulated_board_trains_on_examples_of_its_test_source(board: str) -> None:
    artifact = small_classifier()
    state = random_state(artifact, np.random.default_rng(0), 0.2)
    pattern = (np.arange(2, 7)[:, None] * 31 + np.arange(144) * 17) % 64
    x = (pattern / 32 - 1).astype(np.float32).reshape(5, 1, 12, 12)
    y = np.arange(2, 7, dtype=np.int32) % 2
    with Session.open(artifact, state, BATCH, kernels="portable") as session:
        wanted = [session.step(x[rows], y[rows], **RATES) for rows in ([0, 1, 2], [3, 4])]
    with emulated(board, sensors="drivers/test_source.c") as device:
        device.send(SerialObject.ARTIFACT, artifact.encode())
        device.send(SerialObject.STATE, state.encode())
        layout = plan(artifact, state, BATCH, kernels="portable").layout
        device.open(BATCH, layout, examples=5, gathered=BATCH)
        progress = device.collect(7)
        while progress.wanted:
            progress = device.collected()
        assert (progress.held, progress.collected) == (5, 7)
        places = [number % 5 for number in range(2, 7)]
        assert device.train(places, BATCH, steps_before=0, **RATES) == wanted
    with emulated(board) as device, pytest.raises(FormatError, match="COMMAND"):
        device.collect(1)


def test_the_table_of_the_readme_has_these_numbers() -> None:
    require_table()  # the last test: `make sizes` has measured all by now
