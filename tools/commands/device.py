"""`sparsyfed device`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs; a device has no NumPy

import argparse
import logging
import ssl
from pathlib import Path

from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.session import BACKENDS

SUMMARY = "be a device of a fleet: train on local data as a coordinator asks"
EXAMPLE = "sparsyfed device run --id watch-01 --broker 192.0.2.10 --data data --directory state"
DEFAULT_PORT = 1883


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = f"example:\n  {EXAMPLE}"
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    start = actions.add_parser(
        "run",
        help="run until Ctrl-C",
        description="Runs one device until Ctrl-C. Needs neither NumPy nor PyTorch, unless its engine does.",
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    start.add_argument("--id", required=True, help="name of this device; no two may share one")
    start.add_argument("--broker", required=True, help="HOST or HOST:PORT (default port: 1883)")
    start.add_argument("--data", type=Path, required=True, help="folder with x.npy and y.npy")
    start.add_argument(
        "--directory", type=Path, required=True, help="what the device keeps over a restart"
    )
    start.add_argument(
        "--profile", default="linux_host", help="kind of device (default: linux_host)"
    )
    start.add_argument("--profiles", type=Path, help="TOML file with profiles of your own")
    start.add_argument(
        "--memory",
        help="what training may take, such as 4MiB; KiB, MiB, GiB, kB, MB, GB (default: profile's): "
        "an arena, or with another engine what it takes beside program and engine",
    )
    start.add_argument(
        "--backend",
        choices=BACKENDS,
        default="native",
        help="engine to train with; the job must offer an export for it (default: native)",
    )
    start.add_argument("--exit-on-finish", action="store_true", help="end when the job is over")
    start.add_argument("--tls-authority", type=Path, help="PEM file: who signed the broker's name")
    start.add_argument("--tls-certificate", type=Path, help="PEM file of this device")
    start.add_argument("--tls-key", type=Path, help="PEM file of this device")
    start.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the device until it is stopped."""
    from sparsyfed.devices.client import run_device
    from sparsyfed.devices.profiles import find_profile, parse_bytes
    from sparsyfed.devices.settings import DeviceSettings, TlsFiles

    host, port = broker_address(arguments.broker)
    profile = find_profile(arguments.profile, arguments.profiles)
    tls = None
    if arguments.tls_authority is not None:
        _check_tls_files(arguments)
        tls = TlsFiles(arguments.tls_authority, arguments.tls_certificate, arguments.tls_key)
    elif arguments.tls_certificate is not None or arguments.tls_key is not None:
        raise ConfigurationError("--tls-certificate and --tls-key need --tls-authority")
    memory = arguments.memory
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = DeviceSettings(
        device=arguments.id,
        host=host,
        port=port,
        data=arguments.data,
        directory=arguments.directory,
        profile=profile,
        memory_bytes=profile.memory_bytes if memory is None else parse_bytes(memory),
        macs_per_second=profile.multiply_adds_per_second,
        backend=arguments.backend,
        exit_on_finish=arguments.exit_on_finish,
        tls=tls,
    )
    run_device(settings)
    return 0


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
