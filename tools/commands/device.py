"""`sparsyfed device`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs; a device has no NumPy

import argparse
import logging
import signal
import ssl
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError
from sparsyfed.edge_runtime.session import BACKENDS
from sparsyfed.tools.commands.actions import add_action

if TYPE_CHECKING:
    from sparsyfed.devices.board_training import OwnExamples
    from sparsyfed.devices.settings import TlsFiles

SUMMARY = "be a device of a fleet: train on local data as a coordinator asks"
EXAMPLE = "sparsyfed device run --id watch-01 --broker 192.0.2.10 --data data --directory state"
GATEWAY_EXAMPLE = (
    "sparsyfed device gateway --id porch --broker 192.0.2.10 --port /dev/ttyACM0 --data data "
    "--directory state"
)
EMULATE_EXAMPLE = "sparsyfed device emulate --board mps2-an386 --count 3"
DEFAULT_PORT = 1883
MAX_BOARDS = 64
WATCH_SECONDS = 0.5


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = f"example:\n  {EXAMPLE}"
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _configure_run(actions)
    _configure_gateway(actions)
    _configure_emulate(actions)


def _configure_run(actions: Any) -> None:
    parser = add_action(
        actions,
        "run",
        summary="run until Ctrl-C",
        description="Runs one device until Ctrl-C. Needs neither NumPy nor PyTorch, unless its engine does.",
        example=EXAMPLE,
    )
    parser.add_argument("--id", required=True, help="name of this device; no two may share one")
    parser.add_argument("--data", type=Path, required=True, help="folder with x.npy and y.npy")
    parser.add_argument(
        "--profile", default="linux_host", help="kind of device (default: linux_host)"
    )
    parser.add_argument("--profiles", type=Path, help="TOML file with profiles of your own")
    parser.add_argument(
        "--memory",
        help="what training may take, such as 4MiB; KiB, MiB, GiB, kB, MB, GB (default: profile's): "
        "an arena, or with another engine what it takes beside program and engine",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="native",
        help="engine to train with; the job must offer an export for it (default: native)",
    )
    _add_fleet_arguments(parser)
    parser.set_defaults(run=run)


def _configure_gateway(actions: Any) -> None:
    parser = add_action(
        actions,
        "gateway",
        summary="make boards on serial lines devices of a fleet",
        description="Makes each board on a serial line a device: boards train, the gateway carries.",
        example=GATEWAY_EXAMPLE,
    )
    parser.add_argument("--id", required=True, help="its boards are the devices ID.1, ID.2, ...")
    parser.add_argument(
        "--port",
        action="append",
        required=True,
        help="serial port of a board, or socket://HOST:PORT; again for each board",
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        help="folder with x.npy and y.npy of a board, or sensors:COUNT for so many examples that it collects "
        "itself, in the order of the ports",
    )
    _add_fleet_arguments(parser)
    parser.set_defaults(run=run_gateway)


def _add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    """What devices of a fleet have in common: the broker, what they keep, when they end."""
    parser.add_argument("--broker", required=True, help="HOST or HOST:PORT (default port: 1883)")
    parser.add_argument("--directory", type=Path, required=True, help="what is kept over a restart")
    parser.add_argument(
        "--exit-on-finish",
        action="store_true",
        help="end when the job is over, or if its model does not take the data",
    )
    parser.add_argument("--tls-authority", type=Path, help="PEM file: who signed the broker's name")
    parser.add_argument("--tls-certificate", type=Path, help="PEM file of this device")
    parser.add_argument("--tls-key", type=Path, help="PEM file of this device")


def _configure_emulate(actions: Any) -> None:
    parser = add_action(
        actions,
        "emulate",
        summary="run boards in QEMU, with their serial lines on sockets",
        description="Builds the firmware, runs boards in QEMU and prints their ports, until Ctrl-C.",
        example=EMULATE_EXAMPLE,
    )
    parser.add_argument("--board", required=True, help="such as mps2-an386 or rv32-virt")
    parser.add_argument("--count", type=int, default=1, help="how many boards (default: 1)")
    parser.add_argument("--ram", help="bytes of RAM that it has, such as 256KiB (default: all)")
    parser.add_argument(
        "--image",
        type=Path,
        help="firmware (.elf) to run instead of building one: that of `sparsyfed export --image`",
    )
    parser.set_defaults(run=run_emulate)


def run(arguments: argparse.Namespace) -> int:
    """Runs the device until it is stopped."""
    from sparsyfed.devices.client import run_device
    from sparsyfed.devices.profiles import find_profile, parse_bytes
    from sparsyfed.devices.settings import DeviceSettings

    profile = find_profile(arguments.profile, arguments.profiles)
    memory = arguments.memory
    settings = DeviceSettings(
        **_fleet_settings(arguments),
        device=arguments.id,
        data=arguments.data,
        profile=profile,
        memory_bytes=profile.memory_bytes if memory is None else parse_bytes(memory),
        macs_per_second=profile.multiply_adds_per_second,
        backend=arguments.backend,
    )
    _log()
    run_device(settings)
    return 0


def run_gateway(arguments: argparse.Namespace) -> int:
    """Runs the gateway until it is stopped."""
    from sparsyfed.devices.gateway import AttachedBoard, GatewaySettings, run_gateway

    if len(arguments.port) != len(arguments.data):
        raise ConfigurationError(
            f"got {len(arguments.port)} of --port and {len(arguments.data)} of --data, wanted as many"
        )
    boards = [
        AttachedBoard(name, _board_data(data))
        for name, data in zip(arguments.port, arguments.data, strict=True)
    ]
    settings = GatewaySettings(**_fleet_settings(arguments), gateway=arguments.id, boards=boards)
    _log("%(threadName)s: ")
    run_gateway(settings)
    return 0


def _board_data(text: str) -> "Path | OwnExamples":
    """What --data of a gateway names. Raises ConfigurationError."""
    from sparsyfed.devices.board_training import OwnExamples

    source, colon, count = text.partition(":")
    if source != "sensors" or not colon:
        return Path(text)
    if not count.isascii() or not count.isdecimal():
        raise ConfigurationError(f"got --data {text!r}, wanted a folder or sensors:COUNT")
    return OwnExamples(int(count))


def run_emulate(arguments: argparse.Namespace) -> int:
    """Runs emulated boards until Ctrl-C or SIGTERM, or until one ends."""
    from sparsyfed.devices.profiles import parse_bytes
    from sparsyfed.tools.emulator import EmulatedBoard, find_machine
    from sparsyfed.tools.firmware import build_firmware

    if not 1 <= arguments.count <= MAX_BOARDS:
        raise ConfigurationError(f"got {arguments.count} boards, wanted 1 to {MAX_BOARDS}")
    find_machine(arguments.board)
    if arguments.image is None:
        ram = None if arguments.ram is None else parse_bytes(arguments.ram)
        firmware = build_firmware(arguments.board, ram)
    else:
        if arguments.ram is not None:
            raise ConfigurationError("--ram is for firmware that is built; an image has its own")
        arguments.image.open("rb").close()
        firmware = arguments.image
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        boards = [
            stack.enter_context(EmulatedBoard(arguments.board, firmware))
            for _ in range(arguments.count)
        ]
        for board in boards:
            print(board.port, flush=True)
        while True:
            for board in boards:
                problem = board.failed()
                if problem is not None:
                    raise BackendError(problem)
            time.sleep(WATCH_SECONDS)


def _log(source: str = "") -> None:
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s {source}%(message)s")


def _fleet_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `_add_fleet_arguments` asked for, by the names that settings have for it."""
    host, port = broker_address(arguments.broker)
    return {
        "host": host,
        "port": port,
        "directory": arguments.directory,
        "exit_on_finish": arguments.exit_on_finish,
        "tls": _tls_files(arguments),
    }


def _tls_files(arguments: argparse.Namespace) -> "TlsFiles | None":
    from sparsyfed.devices.settings import TlsFiles

    if arguments.tls_authority is not None:
        _check_tls_files(arguments)
        return TlsFiles(arguments.tls_authority, arguments.tls_certificate, arguments.tls_key)
    if arguments.tls_certificate is not None or arguments.tls_key is not None:
        raise ConfigurationError("--tls-certificate and --tls-key need --tls-authority")
    return None


def _check_tls_files(arguments: argparse.Namespace) -> None:
    """Raises OSError for a file that can't be read, ConfigurationError for one that OpenSSL refuses."""
    authority, certificate = arguments.tls_authority, arguments.tls_certificate
    for file in (authority, certificate, arguments.tls_key):
        if file is not None:
            file.open("rb").close()  # OpenSSL does not name the file
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    option = f"--tls-authority {authority}"
    try:
        context.load_verify_locations(authority)
        if certificate is not None:
            option = f"--tls-certificate {certificate}, --tls-key {arguments.tls_key}"
            context.load_cert_chain(certificate, arguments.tls_key)
    except ssl.SSLError as error:
        raise ConfigurationError(f"{option}: not what PEM files should be: {error}") from error


def broker_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST", "HOST:PORT" or "[IPv6]:PORT". Raises ConfigurationError."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ConfigurationError(f"got broker {text!r}, wanted HOST or HOST:PORT")
    return host, int(port)
