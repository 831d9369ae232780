import json
from dataclasses import MISSING, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsyfed.edge_runtime import messages
from sparsyfed.edge_runtime.errors import FormatError
from sparsyfed.edge_runtime.json_message import MAX_CONTROL_BYTES, Message
from sparsyfed.edge_runtime.messages import (
    BlockRequest,
    Control,
    DeviceProfileReport,
    Export,
    ExportFile,
    HeldUpdate,
    Hello,
    MultiplyAddsReport,
    ObjectReference,
    Offer,
    OfferAnswer,
    Online,
    Receipt,
    Report,
    RoundNotice,
)

ID = "ab" * 32
REFERENCE = ObjectReference(id=ID, size=70_000, block_bytes=4096, hashes="cd" * 32)
PROFILE = DeviceProfileReport(4096, 4000, None, MultiplyAddsReport(3, 2, 1))
ENGINE = DeviceProfileReport(None, None, 2**27, None, 2**26, "onnxruntime", "onnxruntime 1.31")
FILES = (ExportFile("train.onnx", REFERENCE), ExportFile("model.sfd", REFERENCE))
EXPORT = Export("onnxruntime", FILES, None, 2**20)
EXAMPLES: list[Message] = [
    Hello("watch-1", "b0", "0.1.0", "watch", 2**22, None, 140, 65536),
    Hello("w", "b0", "0.1.0", "watch", 1, 1e6, 0, 256, HeldUpdate("job", 1, 0, ID)),
    Online("watch-1", "b0", online=False),
    RoundNotice("job", 3, "c1"),
    Offer("job", 3, 1, REFERENCE, REFERENCE, 16, 1, 0.1, 0.001, 0.95, "global", 2**40, 60.0),
    Offer("job", 3, 1, REFERENCE, REFERENCE, 1, 2, 0.1, 0.0, 0.0, {"fc": 10, "été": 2}, 0, 0.5),
    Offer("j", 1, 1, REFERENCE, REFERENCE, 1, 1, 0.1, 0.0, 0.0, "erk", 0, 0.5, EXPORT),
    OfferAnswer("job", 3, 1, accept=False, reason="training takes 5 bytes"),
    BlockRequest(ID, 4096, (messages.HASH_LIST_INDEX, 0, 17)),
    Report("job", 3, 1, ID, 1000, 4, 140, 1.25, 0.75, PROFILE),
    Report("job", 3, 1, ID, 1000, 4, 140, 1.25, 0.75, ENGINE),
    Receipt("job", 3, 1, ID, "missing", (0, 3)),
    Receipt("job", 3, 1, ID, "rejected", reason="outside the support"),
    Control("finish", "job"),
    Control("abort", "job", 3, 1, "the round has its updates"),
]
KINDS = sorted({type(example) for example in EXAMPLES}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_json_gives_the_same_message_and_the_same_bytes(message: Message) -> None:
    data = message.to_json()
    again = type(message).from_json(data)
    assert again == message
    assert again.to_json() == data
    assert list(json.loads(data)) == sorted(json.loads(data))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_unknown_fields_are_ignored(message: Message) -> None:
    content = json.loads(message.to_json())
    content["of_a_newer_version"] = {"x": [1]}
    assert type(message).from_json(json.dumps(content).encode()) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_each_field_without_a_default_is_required(message: Message) -> None:
    content = json.loads(message.to_json())
    required = {field.name for field in fields(message) if field.default is MISSING}
    for name in set(content) & required:
        left = {key: value for key, value in content.items() if key != name}
        with pytest.raises(FormatError, match=rf"{name}: the field is missing"):
            type(message).from_json(json.dumps(left).encode())


def changed_offer(**fields: object) -> bytes:
    content = json.loads(EXAMPLES[4].to_json())
    content.update(fields)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("job", ""),
        ("job", "a/b"),
        ("job", "x" * 65),
        ("job", 7),
        ("round", -1),
        ("round", 2**32),
        ("round", 1.0),
        ("round", True),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", "0.1"),
        ("learning_rate", 10**400),
        ("weight_decay", -0.1),
        ("sparsity", 1.0),
        ("sparsity", -0.5),
        ("budget", "largest"),
        ("budget", {}),
        ("budget", {"fc": -1}),
        ("budget", {"f\u001bc": 1}),
        ("seed", 2**63),
        ("deadline_s", None),
        ("artifact", None),
        ("artifact", [1]),
        ("artifact", {"id": ID}),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(name: str, value: object) -> None:
    with pytest.raises(FormatError, match=rf"Offer\.{name}"):
        Offer.from_json(changed_offer(**{name: value}))


def test_the_error_names_the_path_of_a_nested_field() -> None:
    reference = {**json.loads(REFERENCE.to_json()), "size": "big"}
    with pytest.raises(FormatError, match=r"Offer\.state\.size: got 'big', wanted an integer"):
        Offer.from_json(changed_offer(state=reference))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(text: str) -> None:
    data = changed_offer(learning_rate="here").replace(b'"here"', text.encode())
    with pytest.raises(FormatError, match="learning_rate"):
        Offer.from_json(data)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 60_000, b"1" * 5_000, b'{"a":1}' + b"x"]
)
def test_other_than_one_json_object_is_refused(data: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(FormatError):
            kind.from_json(data)


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
def test_no_depth_of_nesting_gives_another_error(opened: str, closed: str) -> None:
    for depth in range(850, 1010):  # the parser's limit lies among these
        nested = opened * depth + "1" + closed * depth
        with pytest.raises(FormatError):
            Online.from_json(f'{{"device":{nested},"boot":"b","online":true}}'.encode())


def test_a_message_over_64_kib_is_neither_read_nor_written() -> None:
    with pytest.raises(FormatError, match="65536"):
        Online.from_json(b" " * (MAX_CONTROL_BYTES + 1))
    budget = {f"layer{i:04}" + "x" * 50: 1 for i in range(2000)}
    offer = Offer("job", 1, 0, REFERENCE, REFERENCE, 1, 1, 0.1, 0.0, 0.0, budget, 0, 1.0)
    with pytest.raises(FormatError, match="65536"):
        offer.to_json()


def test_an_object_of_too_many_blocks_is_refused() -> None:
    with pytest.raises(FormatError, match="16384 blocks"):
        ObjectReference(ID, 16_384 * 256 + 1, 256, ID)
    assert ObjectReference(ID, 16_384 * 256, 256, ID).blocks == 16_384


def test_a_request_holds_one_to_sixteen_known_indices() -> None:
    for blocks in [(), tuple(range(17)), (messages.MAX_BLOCKS,), (-1,)]:
        with pytest.raises(FormatError, match="blocks"):
            BlockRequest(ID, 4096, blocks)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_format_error(kind: type[Message], data: bytes) -> None:
    try:
        kind.from_json(data)
    except FormatError:
        return


@given(st.sampled_from(EXAMPLES), st.data())
def test_any_change_of_a_field_gives_a_message_or_a_format_error(
    message: Message, data: st.DataObject
) -> None:
    content = json.loads(message.to_json())
    name = data.draw(st.sampled_from(sorted(content)))
    content[name] = data.draw(json_values)
    try:
        changed = type(message).from_json(json.dumps(content).encode())
    except FormatError:
        return
    assert type(message).from_json(changed.to_json()) == changed


def test_topics_are_those_of_the_protocol() -> None:
    assert messages.device_topic("watch-1", messages.HELLO) == "sparsyfed/v1/d/watch-1/up/hello"
    assert messages.block_topic("w", ID) == "sparsyfed/v1/d/w/down/blk/abababab"
    assert messages.device_filter("w") == "sparsyfed/v1/d/w/down/#"
    assert messages.parse_topic("sparsyfed/v1/d/w/down/blk/abababab") == ("w", "down/blk/abababab")


@pytest.mark.parametrize("device", ["", "+", "#", "a/b", "a b", "-a", "x" * 65, "é"])
def test_a_device_id_that_could_change_a_topic_is_refused(device: str) -> None:
    with pytest.raises(FormatError, match="device"):
        messages.device_topic(device, messages.HELLO)


@pytest.mark.parametrize("topic", ["", "sparsyfed/v1/d", "sparsyfed/v1/d/w", "other/d/w/up/hello"])
def test_other_topics_are_refused(topic: str) -> None:
    with pytest.raises(FormatError, match="topic"):
        messages.parse_topic(topic)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"files": [{"name": "../x"}]}, "object: the field is missing"),
        ({"files": [{"name": "../x", "object": REFERENCE.plain()}]}, "name: got '../x'"),
        ({"files": [{"name": ".x", "object": REFERENCE.plain()}]}, "name: got '.x'"),
        ({"files": [EXPORT.plain()["files"][0]] * 2}, "each once"),  # type: ignore[index]
        ({"files": [1]}, r"files\[0\]: got 1"),
        ({"files": [EXPORT.plain()["files"][0]] * 65}, "at most 64"),  # type: ignore[index]
        ({"opened": "evaluate.onnx"}, "wanted one of these files"),
        ({"backend": "a b"}, "backend: got"),
    ],
)
def test_an_export_names_files_of_one_folder(change: dict[str, object], complaint: str) -> None:
    content = EXPORT.plain() | change
    with pytest.raises(FormatError, match=complaint):
        Offer.from_json(changed_offer(export=content))
