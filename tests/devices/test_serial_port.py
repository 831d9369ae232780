"""Ports by name."""

import os
import select
import socket
from contextlib import closing

import pytest

from sparsyfed.devices.serial_port import open_port
from sparsyfed.edge_runtime.errors import ConfigurationError


def test_a_line_on_a_socket_carries_bytes_and_says_when_it_ends() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        closing(open_port(f"socket://127.0.0.1:{server.getsockname()[1]}")) as port,
    ):
        other, _ = server.accept()
        with other:
            assert port.read() == b""
            port.write(b"asked")
            assert other.recv(100) == b"asked"
            other.sendall(b"answered")
            assert select.select([port], [], [], 5)[0]
            assert port.read() == b"answered"
        assert select.select([port], [], [], 5)[0]
        with pytest.raises(OSError, match="closed"):
            port.read()


def test_a_serial_device_carries_bytes_and_says_when_it_ends() -> None:
    pytest.importorskip("serial")
    master, slave = os.openpty()
    with closing(open_port(os.ttyname(slave))) as port:
        assert port.read() == b""
        port.write(b"asked\n")
        assert os.read(master, 100) == b"asked\n"
        os.write(master, b"answered\n")
        assert select.select([port], [], [], 5)[0]
        assert port.read() == b"answered\n"
        os.close(slave)
        os.close(master)
        assert select.select([port], [], [], 5)[0]
        with pytest.raises(OSError, match=r"disconnected|Input/output"):
            port.read()


@pytest.mark.parametrize("name", ["socket://", "socket://host", "socket://h:0", "socket://h:99999"])
def test_names_that_are_no_address_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="wanted socket://HOST:PORT"):
        open_port(name)


def test_a_device_that_is_not_there_is_an_error() -> None:
    pytest.importorskip("serial")
    with pytest.raises(OSError, match="missing-port"):
        open_port("/dev/missing-port")
