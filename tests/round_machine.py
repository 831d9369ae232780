"""A round machine for tests, and the events of the devices that it deals with."""

from collections.abc import Iterable
from typing import Any, TypeVar

from sparsyfed.coordinator.admission import Needs
from sparsyfed.coordinator.config import RoundConfig
from sparsyfed.coordinator.events import (
    Action,
    DeviceHello,
    Event,
    InspectUpdate,
    OpenRound,
    Tick,
    UpdateInspected,
    UpdateReported,
)
from sparsyfed.coordinator.rounds import RoundMachine

NEEDED = 1000
BLOCK = 512
NEEDS = {"native": Needs(NEEDED, BLOCK)}
T = TypeVar("T")


class Machine(RoundMachine):
    """The machine, with actions whose fields a test may read without asking for their type."""

    def handle(self, event: Event) -> list[Any]:
        return list(super().handle(event))


def machine_of(now: float = 0.0, resume: OpenRound | None = None, **settings: Any) -> Machine:
    defaults: dict[str, Any] = {
        "minimum_devices": 3, "quorum": 0.6, "deadline_s": 60.0, "offer_timeout_s": 9.0,
        "register_timeout_s": 30.0, "retry_delay_s": 2.0, "maximum_attempts": 3,
    }  # fmt: skip
    return Machine(
        RoundConfig(**defaults | settings),
        rounds=2,
        seed=7,
        round_number=1,
        attempt=1,
        needs=NEEDS,
        now=now,
        resume=resume,
    )


def hello(
    device: str, boot: str = "b", memory: int = NEEDED, block_bytes: int = BLOCK
) -> DeviceHello:
    return DeviceHello(device, boot, memory, block_bytes)


def report_of(
    device: str, round_number: int = 1, attempt: int = 1, text: str = "update"
) -> UpdateReported:
    return UpdateReported(device, round_number, attempt, f"{text} of {device}", 10)


def of_type(actions: Iterable[Action], kind: type[T]) -> list[T]:
    return [action for action in actions if isinstance(action, kind)]


def start(machine: Machine, devices: Iterable[str]) -> list[Any]:
    actions = [action for device in devices for action in machine.handle(hello(device))]
    return actions + machine.handle(Tick(0.0))


def commit(machine: Machine, device: str, round_number: int = 1, attempt: int = 1) -> list[Any]:
    (inspect,) = machine.handle(report_of(device, round_number, attempt))
    assert isinstance(inspect, InspectUpdate)
    return machine.handle(UpdateInspected(inspect.report))
