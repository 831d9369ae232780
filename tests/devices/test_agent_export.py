"""The agent of a device with another engine: which work it takes, and how the export comes to it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from agent_bench import (
    ARTIFACT,
    BLOCK,
    OFFER,
    RESULT,
    SETTINGS,
    STATE,
    Bench,
    published,
    without_answer,
)

from sparsyfed.devices import events
from sparsyfed.devices.events import StartTraining
from sparsyfed.edge_runtime import messages, transfer
from sparsyfed.edge_runtime.messages import Export, ExportFile, Hello, Offer, OfferAnswer

FILES = {"model.sfd": ARTIFACT, "train.onnx": b"train" * 300, "manifest.json": b"{}"}
PHONE = replace(SETTINGS, backend="onnxruntime")


def offer_of(files: dict[str, bytes], opened: str | None, memory_bytes: int = 1 << 20) -> Offer:
    named = tuple(
        ExportFile(name, transfer.object_reference(data, BLOCK)) for name, data in files.items()
    )
    return replace(OFFER, export=Export("onnxruntime", named, opened, memory_bytes))


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "phone", PHONE)
    bench.objects |= {transfer.sha256_hex(data): data for data in FILES.values()}
    yield bench
    bench.storage.close()


def test_hello_names_the_engine(phone: Bench) -> None:
    (hello,) = published(phone.send(events.Connected()), messages.HELLO)
    assert Hello.from_json(hello).backend == "onnxruntime"


@pytest.mark.parametrize("opened", [None, "train.onnx"])
def test_an_export_is_pulled_and_laid_out_by_name(phone: Bench, opened: str | None) -> None:
    phone.refusal = "no native plan fits"  # which is nothing to this device
    phone.send(events.Connected())
    (started,) = phone.pull(without_answer(phone.offer(offer_of(FILES, opened))))
    assert isinstance(started, StartTraining)
    folder = started.artifact if opened is None else started.artifact.parent
    assert started.artifact.name == (opened or "export")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert started.state.read_bytes() == STATE
    # The next round brings the state alone.
    phone.send(events.TrainingFinished(started.offer, RESULT))
    newer = b"newer" * 100
    phone.objects[transfer.sha256_hex(newer)] = newer
    reference = transfer.object_reference(newer, BLOCK)
    phone.requested.clear()
    again = replace(offer_of(FILES, opened), round=4, state=reference)
    (started,) = phone.pull(without_answer(phone.offer(again)))
    assert isinstance(started, StartTraining)
    assert started.state.read_bytes() == newer
    assert sorted(phone.requested) == [0, 1, messages.HASH_LIST_INDEX]


@pytest.mark.parametrize(
    ("settings", "offer", "reason"),
    [
        (SETTINGS, offer_of(FILES, None), "work for onnxruntime, this device trains with native"),
        (PHONE, OFFER, "work for native, this device trains with onnxruntime"),
        (PHONE, offer_of(FILES, None, 2**20 + 1), "measured to take 1048577 bytes on onnxruntime"),
        (
            replace(PHONE, max_offer_bytes=len(STATE) + 4000),  # which each object is below
            offer_of(FILES, None),
            "objects of 16847 bytes are over this device's limit of 16345",
        ),
    ],
)
def test_work_that_it_can_not_do_is_declined(
    settings: object, offer: Offer, reason: str, tmp_path: Path
) -> None:
    bench = Bench(tmp_path / "device", settings)  # type: ignore[arg-type]
    bench.send(events.Connected())
    (answer,) = published(bench.offer(offer), messages.ANSWER)
    declined = OfferAnswer.from_json(answer)
    assert not declined.accept
    assert reason in declined.reason
    bench.storage.close()


def test_work_in_hand_is_given_up_when_the_engine_has_changed(phone: Bench) -> None:
    phone.send(events.Connected())
    phone.offer(offer_of(FILES, None))
    phone.settings = SETTINGS
    phone.restart()
    assert phone.agent.work is None
    assert phone.storage.work is None
    (started,) = phone.pull(without_answer(phone.offer()))
    assert isinstance(started, StartTraining)
    assert started.offer == OFFER


def test_work_in_hand_is_given_up_when_there_is_less_memory(phone: Bench) -> None:
    phone.send(events.Connected())
    phone.offer(offer_of(FILES, None))
    phone.settings = replace(PHONE, memory_bytes=2**20 - 1)
    phone.restart()
    assert phone.agent.work is None


def test_the_offer_of_another_export_takes_the_place_of_the_work_in_hand(phone: Bench) -> None:
    phone.send(events.Connected())
    phone.offer(offer_of(FILES, None))
    better = FILES | {"train.onnx": b"better" * 300}
    phone.objects |= {transfer.sha256_hex(data): data for data in better.values()}
    (started,) = phone.pull(without_answer(phone.offer(offer_of(better, None))))
    assert isinstance(started, StartTraining)
    assert (started.artifact / "train.onnx").read_bytes() == better["train.onnx"]
