"""Frames on a serial line."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsyfed.devices import serial_protocol
from sparsyfed.devices.serial_protocol import (
    MAX_PAYLOAD,
    Command,
    Frame,
    FrameReader,
    SerialObject,
    Status,
    stuff,
    unstuff,
)
from sparsyfed.edge_runtime.errors import FormatError, InputError

ROOT = Path(__file__).parents[2]

# Zeros and runs near 254 bytes are where stuffing has cases.
zeros = st.sampled_from([b"", b"\0", b"\0\0", b"\1"])
runs = st.sampled_from([0, 1, 2, 253, 254, 255, 508, 509]).map(lambda size: b"\x07" * size)
blocks = st.lists(st.one_of(zeros, runs, st.binary(max_size=20)), max_size=6).map(b"".join)


@given(blocks)
def test_what_was_stuffed_has_no_zeros_and_comes_back(data: bytes) -> None:
    assert 0 not in stuff(data)
    assert unstuff(stuff(data)) == data


def test_stuffing_gives_the_bytes_of_its_authors() -> None:
    assert stuff(bytes.fromhex("45 00 00 2c 4c 79 00 00 40")) == bytes.fromhex(
        "02 45 01 04 2c 4c 79 01 02 40"
    )


@given(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=MAX_PAYLOAD))
def test_a_frame_comes_back(command: int, sequence: int, payload: bytes) -> None:
    frame = Frame(command, sequence, payload, status=-7)
    assert list(FrameReader().feed(frame.encode())) == [frame]


def test_a_payload_that_no_board_takes_is_refused() -> None:
    with pytest.raises(InputError, match="got a payload of 1025 bytes, wanted up to 1024"):
        Frame(3, 9, bytes(MAX_PAYLOAD + 1)).encode()


@given(st.binary(max_size=40), st.data())
def test_a_frame_with_a_changed_byte_is_noticed(payload: bytes, data: st.DataObject) -> None:
    encoded = bytearray(Frame(3, 9, payload).encode())
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != encoded[place]))
    whole = Frame(3, 9, payload)
    read = list(FrameReader().feed(bytes(encoded) + b"\0"))
    # A changed zero at either end takes nothing from the frame; inside it all is lost.
    assert whole not in read or place in {0, len(encoded) - 1}
    assert all(frame in {None, whole} for frame in read)


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_noise_before_a_frame_costs_no_frame(noise: list[bytes]) -> None:
    reader = FrameReader()
    for piece in noise:
        assert all(frame is None for frame in reader.feed(piece))
    frame = Frame(1, 2, b"hello")
    assert list(reader.feed(frame.encode()))[-1] == frame


def test_an_endless_frame_takes_bounded_memory() -> None:
    reader = FrameReader()
    for _ in range(100):
        assert list(reader.feed(b"\x01" * 10_000)) == []
    assert len(reader._pending) < 2 * MAX_PAYLOAD
    assert list(reader.feed(b"\0")) == [None]


@pytest.mark.parametrize("stuffed", [b"\x05ab", b"\x00", b"\x02"])
def test_cut_stuffing_is_refused(stuffed: bytes) -> None:
    with pytest.raises(FormatError, match="ends within"):
        unstuff(stuffed)


def test_firmware_host_and_document_have_the_same_numbers(tmp_path: Path) -> None:
    program = tmp_path / "print_serial"
    source = ROOT / "tests" / "c" / "print_serial.c"
    command = ["cc", "-std=c99", f"-I{ROOT / 'devices' / 'boards'}", str(source)]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=60)
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    groups: dict[str, dict[str, int]] = {}
    for line in printed.splitlines():
        group, name, number = line.split()
        groups.setdefault(group, {})[name] = int(number)
    for enumeration in (Command, SerialObject, Status):
        assert groups[enumeration.__name__] == {item.name: int(item) for item in enumeration}
    assert groups["constant"] == {
        "VERSION": serial_protocol.VERSION,
        "MAX_PAYLOAD": MAX_PAYLOAD,
        "HEADER": serial_protocol.HEADER.size,
        "ANSWER": serial_protocol.ANSWER,
    }
    document = (ROOT / "docs" / "serial.md").read_text(encoding="utf-8")
    for enumeration in (Command, Status):
        for item in enumeration:
            assert f"| {int(item)} | {item.name} |" in document
