"""Ports by name: a serial device such as /dev/ttyACM0, or socket://HOST:PORT."""

import re
import select
import socket

from sparsyfed.devices.serial_link import Port
from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError

BITS_PER_SECOND = 115_200
WRITE_SECONDS = 10.0
_ADDRESS = re.compile(r"socket://(\[[0-9a-fA-F:]+\]|[^:/\[\]]+):(\d{1,5})")


def open_port(name: str) -> Port:
    """The port of this name; its bytes go at 115,200 bits a second where that means something.

    Raises ConfigurationError for a name that is none, OSError for a port that is not there, BackendError for a serial
    device without pyserial.
    """
    if not name.startswith("socket:"):
        return SerialPort(name)
    match = _ADDRESS.fullmatch(name)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise ConfigurationError(f"got port {name!r}, wanted socket://HOST:PORT")
    return SocketPort(match[1].strip("[]"), int(match[2]))


class SocketPort:
    """A serial line on TCP, as QEMU and terminal servers have it.

    Pyserial's own forgets to close a socket whose other end has gone.
    """

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), WRITE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """What `select` takes."""
        return self._socket.fileno()

    def read(self) -> bytes:
        """What has come, up to 4 KiB. Raises OSError at the end of the line."""
        if not select.select([self._socket], [], [], 0)[0]:
            return b""
        data = self._socket.recv(4096)
        if not data:
            raise ConnectionResetError("the other end has closed the line")
        return data

    def write(self, data: bytes) -> None:
        """Send all of it. Raises OSError if that is not possible."""
        self._socket.sendall(data)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


class SerialPort:
    """A serial device, by pyserial."""

    def __init__(self, name: str) -> None:
        try:
            import serial  # noqa: PLC0415 - a line on a socket does not need it
        except ImportError as error:
            raise BackendError(
                "a serial device needs pyserial: pip install 'sparsyfed-edge[gateway]'"
            ) from error
        try:
            self._serial = serial.Serial(
                name, BITS_PER_SECOND, timeout=0, write_timeout=WRITE_SECONDS
            )
        except ValueError as error:
            raise ConfigurationError(f"got port {name!r}: {error}") from error

    def fileno(self) -> int:
        """What `select` takes."""
        number: int = self._serial.fileno()
        return number

    def read(self) -> bytes:
        """What has come, up to 4 KiB. Raises OSError at the end of the line."""
        data: bytes = self._serial.read(4096)
        return data

    def write(self, data: bytes) -> None:
        """Send all of it. Raises OSError if that is not possible."""
        self._serial.write(data)

    def close(self) -> None:
        """Give the port back."""
        self._serial.close()
