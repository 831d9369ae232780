"""What a device is told when it starts."""

from dataclasses import dataclass
from pathlib import Path

from sparsyfed.devices.profiles import DeviceProfile
from sparsyfed.edge_runtime import messages
from sparsyfed.edge_runtime.errors import ConfigurationError, FormatError
from sparsyfed.edge_runtime.messages import device_topic

DEFAULT_MAX_OFFER_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What a device is.

    `memory_bytes` is what training may take: on the native core its arena, on another engine what the process grows by
    over program and engine. `backend` is the engine, as in `Session.open`.

    `boot` differs each time the device starts. An offer whose objects sum up to more than
    `max_offer_bytes` is declined before any file is made.
    Times are in seconds: a block or report without an answer is repeated after `answer_timeout_s`, then at growing
    intervals up to `answer_limit_s`; hellos on a coordinator's restart are spread over `hello_spread_s`. A device that
    has no work says hello again after `hello_interval_s`, or up to half as much more: a hello may be lost.
    """

    device: str
    boot: str
    runtime: str
    profile: str
    memory_bytes: int
    examples: int
    macs_per_second: float | None = None
    block_bytes: int = 64 * 1024
    backend: str = "native"
    max_offer_bytes: int = DEFAULT_MAX_OFFER_BYTES
    answer_timeout_s: float = 2.0
    answer_limit_s: float = 60.0
    hello_spread_s: float = 2.0
    hello_interval_s: float = 300.0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a TLS link: the broker's authority, and the device's own certificate and key."""

    authority: Path
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """One device of a fleet.

    `device` is its id, MQTT client id and, with TLS, the name in its certificate.

    `data` holds `x.npy` and `y.npy`, and is None for a device whose data is not on this machine; `directory` is for
    what the device keeps; `memory_bytes` and `backend` are as in
    `AgentSettings`. Intervals are seconds.
    """

    device: str
    host: str
    port: int
    data: Path | None
    directory: Path
    profile: DeviceProfile
    memory_bytes: int
    macs_per_second: float | None = None
    backend: str = "native"
    max_offer_bytes: int = DEFAULT_MAX_OFFER_BYTES
    exit_on_finish: bool = False
    tls: TlsFiles | None = None
    keepalive_s: int = 60
    session_expiry_s: int = 86_400
    will_delay_s: int = 30
    reconnect_base_s: float = 1.0
    reconnect_limit_s: float = 300.0

    def __post_init__(self) -> None:
        try:
            device_topic(self.device, messages.HELLO)
        except FormatError as error:
            raise ConfigurationError(str(error)) from error
        if self.memory_bytes < 1:
            raise ConfigurationError(f"got {self.memory_bytes} bytes of memory, wanted at least 1")
