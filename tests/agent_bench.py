"""A device agent on a bench: what it is offered, its clock, and a link that the test controls."""

from dataclasses import replace
from pathlib import Path
from random import Random

from sparsyfed.devices import events
from sparsyfed.devices.agent import Agent
from sparsyfed.devices.events import Action, Event, Publish, StartTraining
from sparsyfed.devices.settings import AgentSettings
from sparsyfed.devices.storage import DeviceStorage
from sparsyfed.devices.training import LocalResult
from sparsyfed.edge_runtime import messages, transfer
from sparsyfed.edge_runtime.messages import (
    BlockRequest,
    DeviceProfileReport,
    MultiplyAddsReport,
    Offer,
    Receipt,
    Report,
)
from sparsyfed.edge_runtime.transfer import UpdatePart

BLOCK = 256
ARTIFACT = bytes(Random(1).randbytes(3000))
STATE = bytes(Random(2).randbytes(12_345))
UPDATE = bytes(Random(3).randbytes(1000))
RESULT = LocalResult(
    UPDATE, 0.5, 40, 1.5, DeviceProfileReport(100, 90, None, MultiplyAddsReport(3, 2, 1))
)
SETTINGS = AgentSettings(
    device="watch-1",
    boot="boot-1",
    runtime="0.1.0",
    profile="watch",
    memory_bytes=1 << 20,
    examples=40,
    block_bytes=BLOCK,
)
OFFER = Offer(
    job="job",
    round=3,
    attempt=0,
    artifact=transfer.object_reference(ARTIFACT, BLOCK),
    state=transfer.object_reference(STATE, BLOCK),
    batch_size=8,
    epochs=1,
    learning_rate=0.1,
    weight_decay=0.001,
    sparsity=0.5,
    budget="global",
    seed=7,
    deadline_s=600.0,
)
ANSWER = Receipt("job", 3, 0, transfer.sha256_hex(UPDATE), "commit")


class Bench:
    """A device on a bench: its agent, a clock, and what it has said and been told."""

    def __init__(self, directory: Path, settings: AgentSettings = SETTINGS, seed: int = 0) -> None:
        self.directory = directory
        self.settings = settings
        self.now = 0.0
        self.objects = {OFFER.artifact.id: ARTIFACT, OFFER.state.id: STATE}
        self.refusal: str | None = None
        self.data_refusal: str | None = None
        self.requested: list[int] = []
        self._random = Random(seed)
        self.start()

    def start(self) -> None:
        self.storage = DeviceStorage(self.directory)
        self.agent = Agent(
            self.settings,
            self.storage,
            self._random,
            now=self.now,
            refuse=lambda _artifact, _state, _batch, _memory: self.refusal,
            refuse_data=lambda _artifact: self.data_refusal,
        )

    def restart(self) -> list[Action]:
        """Pull the plug, switch on again and connect; the clock starts anew."""
        self.storage.close()
        self.now = 0.0
        self.start()
        return self.send(events.Connected())

    def send(self, event: Event) -> list[Action]:
        return self.agent.handle(event, self.now)

    def tick(self, seconds: float = 0.0, room: int = 16) -> list[Action]:
        self.now += seconds
        return self.send(events.Tick(room))

    def offer(self, offer: Offer = OFFER) -> list[Action]:
        return self.send(events.OfferReceived(offer))

    def answers(self, actions: list[Action]) -> list[Event]:
        """The blocks that the coordinator sends for the requests among these actions."""
        blocks: list[Event] = []
        for payload in published(actions, messages.GET):
            request = BlockRequest.from_json(payload)
            self.requested += request.blocks
            for index in request.blocks:
                data = self.objects[request.object]
                block = transfer.object_block(data, request.block_bytes, index)
                blocks.append(events.BlockReceived(request.object[:8], index, block))
        return blocks

    def pull(
        self, actions: list[Action], link: "Link | None" = None, rounds: int = 5000
    ) -> list[Action]:
        """Serve requests until something else than a request is asked for; those actions.

        Gives up, with no actions, after `rounds` exchanges.
        """
        for _ in range(rounds):
            others = [action for action in actions if not is_request(action)]
            if others:
                return others
            blocks = self.answers(actions)
            actions = []
            for event in blocks if link is None else link.carry(blocks):
                actions += self.send(event)
            actions += self.tick(0.25)
        return []

    def train(self) -> Report:
        """Take the offer through to a finished update with all parts sent; the report."""
        (started,) = self.pull(without_answer(self.offer()))
        assert isinstance(started, StartTraining)
        self.send(events.TrainingFinished(started.offer, RESULT))
        return Report.from_json(published(self.tick(), messages.REPORT)[0])


class Link:
    """A link that loses, repeats, reorders and damages messages."""

    def __init__(self, random: Random, *, lose: float = 0.0, damage: float = 0.0) -> None:
        self._random = random
        self._lose = lose
        self._damage = damage
        self._late: list[Event] = []

    def carry(self, blocks: list[Event]) -> list[Event]:
        arriving, self._late = self._late, []
        for event in blocks:
            assert isinstance(event, events.BlockReceived)
            chance = self._random.random()
            if chance < self._lose:
                continue
            if chance < self._lose + self._damage:
                bad = bytes([event.data[0] ^ 1]) + event.data[1:]
                arriving.append(replace(event, data=bad))
                continue
            arriving.append(event)
            if self._random.random() < 0.2:
                self._late.append(event)
        self._random.shuffle(arriving)
        return arriving


def is_request(action: Action) -> bool:
    return isinstance(action, Publish) and action.topic.endswith(messages.GET)


def without_answer(actions: list[Action]) -> list[Action]:
    return [
        a for a in actions if not (isinstance(a, Publish) and a.topic.endswith(messages.ANSWER))
    ]


def published(actions: list[Action], leaf: str) -> list[bytes]:
    topic = messages.device_topic("watch-1", leaf)
    return [a.payload for a in actions if isinstance(a, Publish) and a.topic == topic]


def is_idle(bench: Bench) -> bool:
    """Whether nothing is due before the next hello, some minutes from now."""
    at = bench.agent.wake_at(bench.now)
    return at is not None and at - bench.now > SETTINGS.hello_interval_s / 3


def receipt(answer: Receipt = ANSWER) -> events.ReceiptReceived:
    return events.ReceiptReceived(answer)


def missing(*parts: int) -> events.ReceiptReceived:
    return receipt(replace(ANSWER, status="missing", missing=parts))


def part_numbers(actions: list[Action]) -> list[int]:
    return [UpdatePart.decode(p).part for p in published(actions, messages.UPDATE)]
