"""A gateway: boards on serial lines become devices of a fleet.

Each board has an agent of its own here, under the gateway's name: the board trains, the gateway carries
frames and messages.
"""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sparsyfed.devices.board import Board, BoardFacts
from sparsyfed.devices.board_training import OwnExamples, refusal_of_board, train_on_board
from sparsyfed.devices.client import DeviceClient
from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.profiles import DeviceProfile
from sparsyfed.devices.serial_link import SerialLink
from sparsyfed.devices.serial_port import open_port
from sparsyfed.devices.settings import DeviceSettings, TlsFiles
from sparsyfed.devices.signals import ended_by_signals
from sparsyfed.devices.storage import DeviceStorage
from sparsyfed.devices.training import LocalEngine
from sparsyfed.edge_runtime.errors import ConfigurationError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 16 * 1024
"""Of what the gateway pulls for a board."""


@dataclass(frozen=True, slots=True)
class AttachedBoard:
    """A board on a port, and the folder with the data that it trains on, or what it collects itself."""

    port: str
    data: Path | OwnExamples


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """A gateway and its boards.

    Its id is the beginning of theirs, `ID.1`, `ID.2` and so on, in the order of the ports. `patience_s` is the longest
    that a board may compute in one go.
    """

    gateway: str
    host: str
    port: int
    boards: Sequence[AttachedBoard]
    directory: Path
    exit_on_finish: bool = False
    tls: TlsFiles | None = None
    patience_s: float = 120.0

    def __post_init__(self) -> None:
        ports = [board.port for board in self.boards]
        if not ports:
            raise ConfigurationError("got no port, wanted one for each board")
        if len(set(ports)) != len(ports):
            raise ConfigurationError(f"got a port twice: {', '.join(sorted(ports))}")


def run_gateway(settings: GatewaySettings) -> None:
    """Run a device for each board until SIGTERM, Ctrl-C or, with `exit_on_finish`, the end of the job.

    Raises BackendError for a board that does not answer at the start, and what `run_device` raises.
    """
    stop = threading.Event()
    with ExitStack() as stack:
        clients: list[DeviceClient] = []
        for number, attached in enumerate(settings.boards, start=1):
            link = SerialLink(
                partial(open_port, attached.port),
                patience_s=settings.patience_s,
                should_stop=stop.is_set,
                name=f"{settings.gateway}.{number} on {attached.port}",
            )
            stack.enter_context(closing(link))
            clients.append(_client(settings, number, attached, Board(link), stack))

        def end() -> None:
            stop.set()
            for client in clients:
                client.stop()

        stack.enter_context(ended_by_signals(end))
        pool = stack.enter_context(ThreadPoolExecutor(len(clients), thread_name_prefix="board"))
        running = [pool.submit(_run, client) for client in clients]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            if any(future.done() and future.exception() for future in running):
                end()
        for future in running:
            future.result()


def _run(client: DeviceClient) -> None:
    """Run a device in a thread of its name, which log lines show: those of all boards are in one log."""
    thread = threading.current_thread()
    before, thread.name = thread.name, client.settings.device
    try:
        client.run()
    finally:
        thread.name = before


def _client(
    settings: GatewaySettings, number: int, attached: AttachedBoard, board: Board, stack: ExitStack
) -> DeviceClient:
    """The agent of one board, which has said hello."""
    name = f"{settings.gateway}.{number}"
    facts = board.hello()
    logger.info("%s: %s on %s, %d bytes", name, facts.name, attached.port, facts.memory_bytes)
    dataset = _data_of(attached, stack)
    own = DeviceSettings(
        device=name,
        host=settings.host,
        port=settings.port,
        data=None,
        directory=settings.directory / name,
        profile=profile_of(facts),
        memory_bytes=facts.memory_bytes,
        exit_on_finish=settings.exit_on_finish,
        tls=settings.tls,
    )
    client = DeviceClient(
        own,
        LocalEngine(),
        dataset,
        stack.enter_context(closing(DeviceStorage(own.directory))),
        threading.Event(),
        train=partial(train_on_board, board),
        refuse=refusal_of_board(facts, dataset),
    )
    return stack.enter_context(closing(client))


def _data_of(attached: AttachedBoard, stack: ExitStack) -> Dataset | OwnExamples:
    if isinstance(attached.data, OwnExamples):
        return attached.data
    dataset = stack.enter_context(closing(Dataset(attached.data)))
    dataset.require_valid_values()
    return dataset


def profile_of(facts: BoardFacts) -> DeviceProfile:
    """The profile that a board declares: what it says of itself."""
    source = dict.fromkeys(("memory_bytes", "block_bytes", "kernels"), "said by the board")
    return DeviceProfile(
        name=facts.name,
        title=facts.name,
        memory_bytes=facts.memory_bytes,
        block_bytes=BLOCK_BYTES,
        source=source,
        kernels="portable",
    )
