"""The devices that have said hello, and which of them may take part in the running round."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sparsyfed.coordinator.admission import Needs
from sparsyfed.coordinator.events import DeviceHello, RefuseDevice


@dataclass(slots=True)
class Device:
    """A device that has said hello."""

    boot: str
    memory_bytes: int
    block_bytes: int
    backend: str
    online: bool = True
    told: bool = False  # that it is refused
    left_out: bool = False  # it took work and could not do it


class Fleet:
    """Keeps the devices. `needs` is what training today's state takes on one of them, by engine."""

    def __init__(self, needs: Mapping[str, Needs]) -> None:
        self.needs = needs
        self._devices: dict[str, Device] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._devices

    def names(self) -> list[str]:
        """All that have said hello, sorted."""
        return sorted(self._devices)

    def hello(self, event: DeviceHello) -> None:
        """Take a device in, or back in; what it declared before is forgotten."""
        known = self._devices.get(event.device)
        device = Device(event.boot, event.memory_bytes, event.block_bytes, event.backend)
        device.told = known is not None and known.told and known.boot == event.boot
        self._devices[event.device] = device

    def boot(self, name: str) -> str:
        """The start of its program that the device last told."""
        return self._devices[name].boot

    def is_online(self, name: str) -> bool:
        """Whether the device is known and not known to be away."""
        return name in self._devices and self._devices[name].online

    def set_online(self, name: str, *, online: bool) -> None:
        """Note that something, or nothing when it should have, was heard of a device."""
        if name in self._devices:
            self._devices[name].online = online

    def offline(self, name: str, boot: str) -> None:
        """Take a device's will: it may arrive after the device's next program has said hello."""
        if name in self._devices and self._devices[name].boot == boot:
            self._devices[name].online = False

    def leave_out(self, name: str) -> None:
        """Offer a device nothing more until it says hello again."""
        if name in self._devices:
            self._devices[name].left_out = True

    def eligible(self) -> list[str]:
        """Those that may be offered work."""
        return [
            name
            for name, device in self._devices.items()
            if device.online and not device.left_out and self.refusal(name) is None
        ]

    def refusal(self, name: str) -> str | None:
        """Why a device is not admitted, or None."""
        device = self._devices[name]
        needs = self.needs.get(device.backend)
        if needs is None:
            return (
                f"the device trains with {device.backend}, this job is for "
                f"{' and '.join(sorted(self.needs))}"
            )
        return needs.refusal(device.memory_bytes, device.block_bytes)

    def new_refusals(self, names: Iterable[str]) -> list[RefuseDevice]:
        """Those among these that are refused and have not been told since they were last admitted.

        The bytes that a state needs change with each round: a device is told once, not each time.
        """
        refused: list[RefuseDevice] = []
        for name in names:
            reason = self.refusal(name)
            if reason is not None and not self._devices[name].told:
                refused.append(RefuseDevice(name, reason))
            self._devices[name].told = reason is not None
        return refused

    def summary(self) -> str:
        """How many are there and what keeps the others out, for the log."""
        online = sum(device.online for device in self._devices.values())
        parts = [f"{online} online"]
        refused = [(name, reason) for name in self._devices if (reason := self.refusal(name))]
        if refused:
            parts.append(f"{len(refused)} refused, such as {refused[0][0]}: {refused[0][1]}")
        left_out = [name for name, device in self._devices.items() if device.left_out]
        if left_out:
            parts.append(f"{len(left_out)} left out after a failure, such as {left_out[0]}")
        return "; ".join(parts)
