"""Serial ports by pyserial: devices such as /dev/ttyACM0, and socket://HOST:PORT."""

from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError

try:
    import serial
except ImportError as error:
    raise BackendError(
        "a line to a board needs pyserial: pip install 'sparsyfed-edge[gateway]'"
    ) from error

BITS_PER_SECOND = 115_200
WRITE_SECONDS = 10.0


class SerialPort:
    """A port of pyserial, as `serial_link.Port` wants it.

    Raises ConfigurationError for a name that pyserial does not know, OSError for a port that is not there.
    """

    def __init__(self, name: str, bits_per_second: int = BITS_PER_SECOND) -> None:
        try:
            self._serial = serial.serial_for_url(
                name, baudrate=bits_per_second, timeout=0, write_timeout=WRITE_SECONDS
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
