"""A mosquitto of our own: started with a generated configuration, stopped with its owner.

A broker that runs as a system service, and its configuration, are never touched.
"""

import functools
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError
from sparsyfed.tools.child_process import spawn

MINIMUM_VERSION = (2, 0, 11)
SYSTEM_FOLDERS = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/opt/homebrew/sbin",
)  # often not on a user's PATH
START_SECONDS = 10.0
STOP_SECONDS = 5.0

# Below the range that Linux gives to outgoing connections (from 32768 by default): a client that
# reconnects while the broker is down could otherwise be given this very port, and talk to itself.
FIRST_PORT = 20_000
LAST_PORT = 32_000


class BrokerError(BackendError):
    """Mosquitto was started and does not run."""


@functools.cache
def find_mosquitto() -> Path:
    """Path of the mosquitto program of this system.

    Raises ConfigurationError if there is none, or if it is older than 2.0.11.
    """
    search_path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS])
    found = shutil.which("mosquitto", path=search_path)
    if found is None:
        raise ConfigurationError(
            "the MQTT broker mosquitto is not installed: `sudo apt-get install mosquitto` "
            "(2.0.11 or newer), then try again"
        )
    # `-h` ends with status 1 or 3, by version, and names the version in its first line.
    answer = subprocess.run([found, "-h"], capture_output=True, text=True, check=False)
    version = re.search(r"version (\d+)\.(\d+)\.(\d+)", answer.stdout + answer.stderr)
    if version is None:
        raise ConfigurationError(f"{found} -h does not name a version: is it mosquitto?")
    if tuple(int(part) for part in version.groups()) < MINIMUM_VERSION:
        raise ConfigurationError(f"{found} has {version[0]}, wanted 2.0.11 or newer")
    return Path(found)


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached from this machine only.

    Raises ConfigurationError for anything but an IP address or `localhost`.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise ConfigurationError(
            f"the broker listens on an IP address or on localhost, got {host!r}"
        ) from error


def configuration(host: str, port: int, directory: Path) -> str:
    """The text of a mosquitto configuration file: one listener, its state kept in `directory`."""
    lines = [
        f"listener {port} {host}",
        "allow_anonymous true",
        "set_tcp_nodelay true",
        "max_packet_size 1048576",
        "max_inflight_messages 20",
        "max_queued_messages 1000",
        "persistent_client_expiration 1d",
        "persistence true",
        f"persistence_location {directory}/",
        "autosave_interval 30",
        "log_dest stderr",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
        "log_type error",
        "log_type warning",
        "log_type notice",
    ]
    if os.geteuid() == 0:
        # Else mosquitto becomes the user `mosquitto`, who may not write in our directory.
        lines.append("user root")
    return "\n".join(lines) + "\n"


class PrivateBroker:
    """A mosquitto process that serves one host and port and ends with its owner.

    `directory` holds its configuration, log and stored sessions; it is made if absent. Without a
    `port` a free one is chosen. Anyone who can reach the port may use the broker, so only a
    loopback host is accepted unless `open_to_network` says otherwise. Start it from a thread that
    lives as long as the broker shall: the system ends the broker with the thread that started it.

        with PrivateBroker(directory) as broker:
            client.connect(broker.host, broker.port)
    """

    def __init__(
        self,
        directory: str | Path,
        host: str = "127.0.0.1",
        port: int | None = None,
        *,
        open_to_network: bool = False,
    ) -> None:
        if not is_loopback(host) and not open_to_network:
            raise ConfigurationError(
                f"{host} can be reached from other machines and the broker asks for no password: "
                "listen on 127.0.0.1, or open it knowingly with --open-to-network"
            )
        if port is not None and not 0 < port < 65_536:
            raise ConfigurationError(f"a port lies between 1 and 65535, got {port}")
        self.directory = Path(directory).resolve()
        self.host = host
        self.port = _free_port(host) if port is None else port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """The file that holds what mosquitto says."""
        return self.directory / "mosquitto.log"

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return when the port accepts connections.

        Raises ConfigurationError if mosquitto is missing or the port is taken, BrokerError with the
        end of the log if mosquitto ends or does not listen within 10 s.
        """
        if self.is_running:
            raise BrokerError(f"the broker runs already, on port {self.port}")
        program = find_mosquitto()
        if not _can_listen(self.host, self.port):
            raise ConfigurationError(
                f"port {self.port} of {self.host} is in use, or this machine does not have that address: "
                "stop what listens there, "
                "or choose another"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "mosquitto.conf"
        file.write_text(configuration(self.host, self.port, self.directory), encoding="utf-8")
        with self.log_path.open("ab") as log:
            self._process = spawn([str(program), "-c", str(file)], log)
        try:
            self._wait_until_listening(self._process)
        except BaseException:
            self.stop()
            raise

    def _wait_until_listening(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise BrokerError(
                    f"mosquitto ended with status {process.returncode}: {self._log_end()}"
                )
            try:
                socket.create_connection((self.host, self.port), timeout=1.0).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise BrokerError(
            f"mosquitto does not listen on {self.host}:{self.port} after {START_SECONDS:.0f} s: "
            f"{self._log_end()}"
        )

    def _log_end(self) -> str:
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(lines[-3:]) or "it wrote no log"

    def stop(self) -> None:
        """End the broker, which stores its sessions first. Does nothing if it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the broker at once, as a loss of power would: what it has not stored is lost."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop and start again on the same port, with the sessions that were stored."""
        self.stop()
        self.start()

    def wait(self) -> int:
        """Block until the broker ends; returns its exit status."""
        if self._process is None:
            raise BrokerError("the broker was not started")
        return self._process.wait()


def run_broker(
    host: str = "127.0.0.1",
    port: int = 1883,
    directory: str | Path | None = None,
    *,
    open_to_network: bool = False,
) -> int:
    """Run a broker until SIGINT or SIGTERM, then return 0; or its exit status if it ends by itself.

    Without a `directory` sessions are kept in a temporary one, which is removed at the end.
    Raises what PrivateBroker raises.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="sparsyfed-broker-") as temporary:
        broker = PrivateBroker(directory or temporary, host, port, open_to_network=open_to_network)
        with broker:
            place = f"{host}:{broker.port}"
            try:  # whoever reads the line may send a signal before print has returned
                print(f"mosquitto listens on {place}; log: {broker.log_path}", flush=True)
                return broker.wait()
            except KeyboardInterrupt:
                return 0


def _can_listen(host: str, port: int) -> bool:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen()
        except OSError:
            return False
    return True


def _free_port(host: str) -> int:
    # Processes that look for a port at the same moment begin at different ones.
    ports = range(FIRST_PORT, LAST_PORT)
    begin = os.getpid() * 37
    for offset in ports:
        port = ports[(begin + offset) % len(ports)]
        if _can_listen(host, port):
            return port
    raise ConfigurationError(f"no free port between {FIRST_PORT} and {LAST_PORT} on {host}")
