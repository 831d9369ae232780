"""What the coordinator sends: offers, blocks, receipts, orders, the notice of the round."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from sparsyfed.coordinator.bundle import EngineExport
from sparsyfed.coordinator.config import Configuration
from sparsyfed.coordinator.events import RefuseDevice, SendControl, SendOffer, SendReceipt
from sparsyfed.coordinator.mqtt import BrokerLink
from sparsyfed.coordinator.objects import ObjectServer
from sparsyfed.edge_runtime import messages
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.messages import (
    BlockRequest,
    Control,
    Export,
    ExportFile,
    Offer,
    Receipt,
    Report,
    RoundNotice,
    block_topic,
    device_topic,
    printable_reason,
)

logger = logging.getLogger(__name__)

MAX_DEVICES = 100_000


@dataclass(frozen=True, slots=True)
class Receiver:
    """What a device takes: the bytes of the largest block, and the engine that it trains with."""

    block_bytes: int
    backend: str


class Outbox:
    """Turns the actions of the round machine into messages, and counts their bytes in `bytes_sent`."""

    def __init__(
        self,
        config: Configuration,
        link: BrokerLink,
        artifact: bytes,
        exports: Mapping[str, EngineExport],
        boot: str,
    ) -> None:
        self._config = config
        self._link = link
        self._artifact = artifact
        self._exports = exports
        files = (data for export in exports.values() for data in export.files.values())
        self._constants = ObjectServer(artifact, *files)
        self._boot = boot
        self._devices: dict[str, Receiver] = {}
        self.bytes_sent = 0

    def begin_round(self, round_number: int, state: bytes) -> None:
        """Serve this state from now on, beside the artifact and the exports."""
        self._round = round_number
        self._state = state
        self._states = ObjectServer(state)

    def know_device(self, device: str, block_bytes: int, backend: str) -> int:
        """The bytes of the largest block that the device will be sent; its engine, too, is remembered.

        Raises FormatError if too many devices are known already.
        """
        if device not in self._devices and len(self._devices) >= MAX_DEVICES:
            raise FormatError(f"device {device}: {MAX_DEVICES} devices have said hello already")
        most = min(block_bytes, self._config.transfer.block_bytes)
        self._devices[device] = Receiver(most, backend)
        return most

    def knows(self, device: str) -> bool:
        """Whether this device has said hello since the coordinator started."""
        return device in self._devices

    def send(self, action: SendOffer | SendReceipt | SendControl | RefuseDevice) -> None:
        """Send what the round machine asks for."""
        match action:
            case SendOffer():
                self._publish(action.device, messages.OFFER, self._offer(action).to_json())
            case SendReceipt():
                receipt = Receipt(
                    job=self._config.job.name,
                    round=action.round,
                    attempt=action.attempt,
                    sha256=action.sha256,
                    status=action.status,
                    missing=action.missing,
                    reason=printable_reason(action.reason),
                )
                self._publish(action.device, messages.RECEIPT, receipt.to_json())
            case SendControl():
                control = Control(
                    kind=action.kind,
                    job=self._config.job.name,
                    round=action.round,
                    attempt=action.attempt,
                    reason=printable_reason(action.reason),
                )
                self._publish(action.device, messages.CONTROL, control.to_json())
            case RefuseDevice():
                control = Control(
                    kind="wait",
                    job=self._config.job.name,
                    round=self._round,
                    reason=printable_reason(action.reason),
                )
                self._publish(action.device, messages.CONTROL, control.to_json())

    def _offer(self, action: SendOffer) -> Offer:
        job, training = self._config.job, self._config.training
        receiver = self._devices[action.device]
        block_bytes = receiver.block_bytes
        return Offer(
            job=job.name,
            round=action.round,
            attempt=action.attempt,
            artifact=self._constants.reference(self._artifact, block_bytes),
            state=self._states.reference(self._state, block_bytes),
            batch_size=training.batch_size,
            epochs=training.epochs,
            learning_rate=self._config.learning_rate(action.round),
            weight_decay=training.weight_decay,
            sparsity=self._config.sparsity(action.round),
            budget=job.budget,
            seed=job.seed,
            deadline_s=action.deadline_s,
            export=self._export(receiver),
        )

    def _export(self, receiver: Receiver) -> Export | None:
        """The files that a device with another engine than the native core trains with."""
        export = self._exports.get(receiver.backend)
        if export is None:
            return None
        assert export.memory_bytes is not None  # else no such device is admitted
        files = tuple(
            ExportFile(name, self._constants.reference(data, receiver.block_bytes))
            for name, data in sorted(export.files.items())
        )
        return Export(export.backend, files, export.opened, export.memory_bytes)

    def refuse_foreign(self, device: str, report: Report) -> None:
        """Tell a device that its update belongs to a job that is not run here."""
        receipt = Receipt(
            job=report.job,
            round=report.round,
            attempt=report.attempt,
            sha256=report.sha256,
            status="late",
            reason=f"the job that runs here is {self._config.job.name}",
        )
        self._publish(device, messages.RECEIPT, receipt.to_json())

    def send_blocks(self, device: str, request: BlockRequest) -> None:
        """Send the requested blocks, as far as the link takes them: the device asks again for the others.

        Raises FormatError for blocks that were not offered.
        """
        topic = block_topic(device, request.object)
        constant = self._constants.has_offered(request)
        for payload in (self._constants if constant else self._states).blocks(request):
            if not self._link.publish(topic, payload, messages.QOS[messages.BLOCK]):
                return
            self.bytes_sent += len(payload)

    def announce(self) -> None:
        """Publish the retained notice of the running round."""
        notice = RoundNotice(job=self._config.job.name, round=self._round, boot=self._boot)
        payload = notice.to_json()
        self._link.publish(messages.ROUND_TOPIC, payload, 1, retain=True)
        self.bytes_sent += len(payload)

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has what was sent, at most `timeout_s` seconds."""
        self._link.flush(timeout_s)

    def _publish(self, device: str, leaf: str, payload: bytes) -> None:
        if self._link.publish(device_topic(device, leaf), payload, messages.QOS[leaf]):
            self.bytes_sent += len(payload)
        else:
            logger.warning("%s to %s not sent: the queue to the broker is full", leaf, device)
