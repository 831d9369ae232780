"""A device over TLS with a certificate of its own, against a broker that asks for one."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sparsyfed.devices.client import run_device
from sparsyfed.devices.profiles import find_profile
from sparsyfed.devices.settings import DeviceSettings, TlsFiles
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.tools.broker import find_mosquitto

PATIENCE = 20.0


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)  # noqa: S607


def make_pair(folder: Path, name: str, authority: Path | None) -> None:
    """A key and a certificate for `name`, signed by the authority or by itself."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    common = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    common += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", f"/CN={name}"]
    if authority is None:
        openssl("req", "-x509", *common)
        return
    signer = ["-CA", f"{authority}.crt", "-CAkey", f"{authority}.key"]
    extension = ["-addext", "subjectAltName=IP:127.0.0.1"]
    openssl("req", "-x509", *common, *signer, *extension, "-addext", "basicConstraints=CA:FALSE")


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates of this test")
    folder = tmp_path / "certificates"
    folder.mkdir()
    make_pair(folder, "authority", None)
    for name in ("broker", "watch-1"):
        make_pair(folder, name, folder / "authority")
    make_pair(folder, "stranger", None)
    return folder


@pytest.fixture
def broker_port(tmp_path: Path, certificates: Path) -> Iterator[int]:
    """Port of a broker that takes only clients of our authority, and their name from the certificate."""
    try:
        mosquitto = find_mosquitto()
    except ConfigurationError as error:
        pytest.skip(str(error))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines = [
        f"listener {port} 127.0.0.1",
        f"cafile {certificates}/authority.crt",
        f"certfile {certificates}/broker.crt",
        f"keyfile {certificates}/broker.key",
        "require_certificate true",
        "use_identity_as_username true",
        "allow_anonymous false",
        "log_type all",
        "user root",
    ]
    (tmp_path / "tls.conf").write_text("\n".join(lines) + "\n")
    with (tmp_path / "tls.log").open("w") as log:
        process = subprocess.Popen([mosquitto, "-c", tmp_path / "tls.conf"], stderr=log)
        yield port
        process.terminate()
        process.wait()


def run_until_logged(settings: DeviceSettings, log: Path, text: str) -> None:
    """Run the device until the broker has logged a line with this text."""
    stop = threading.Event()
    thread = threading.Thread(target=run_device, args=(settings, stop))
    thread.start()
    until = time.monotonic() + PATIENCE
    while text not in log.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    stop.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert text in log.read_text()


def test_a_device_shows_its_certificate(
    tmp_path: Path, broker_port: int, certificates: Path, data_directory: Path
) -> None:
    settings = DeviceSettings(
        device="watch-1",
        host="127.0.0.1",
        port=broker_port,
        data=data_directory,
        directory=tmp_path / "device",
        profile=find_profile("watch"),
        memory_bytes=1 << 20,
        reconnect_base_s=0.2,
        tls=TlsFiles(
            certificates / "authority.crt",
            certificates / "watch-1.crt",
            certificates / "watch-1.key",
        ),
    )
    log = tmp_path / "tls.log"
    run_until_logged(settings, log, "sparsyfed/v1/d/watch-1/up/hello")
    assert "u'watch-1'" in log.read_text()

    stranger = TlsFiles(
        certificates / "authority.crt", certificates / "stranger.crt", certificates / "stranger.key"
    )
    run_until_logged(replace(settings, device="stranger", tls=stranger), log, "SSL routines")
    assert "d/stranger/up" not in log.read_text()
