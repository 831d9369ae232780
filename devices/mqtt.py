"""The link of a device to its broker, as paho-mqtt makes it (extra `agent`)."""

import logging

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from sparsyfed.devices.settings import DeviceSettings
from sparsyfed.edge_runtime import messages
from sparsyfed.edge_runtime.messages import Online, device_topic

logger = logging.getLogger(__name__)

MAX_PACKET_BYTES = 2**20
MAX_QUEUED_MESSAGES = 1000


def make_client(settings: DeviceSettings, boot: str) -> Client:
    """A client whose last will says that this start of the device, `boot`, is offline."""
    client = Client(CallbackAPIVersion.VERSION2, client_id=settings.device, protocol=MQTTv5)
    client.max_queued_messages_set(MAX_QUEUED_MESSAGES)
    if settings.tls is not None:
        client.tls_set(
            str(settings.tls.authority),
            str(settings.tls.certificate) if settings.tls.certificate else None,
            str(settings.tls.key) if settings.tls.key else None,
        )
    delay = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
    delay.WillDelayInterval = settings.will_delay_s
    offline = Online(settings.device, boot, online=False).to_json()
    topic = device_topic(settings.device, messages.STATE)
    client.will_set(topic, offline, qos=messages.QOS[messages.STATE], properties=delay)
    return client


def connect(client: Client, settings: DeviceSettings) -> bool:
    """Open the link; whether the broker can be reached. Its answer comes as a callback."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = settings.session_expiry_s
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    try:
        client.connect(
            settings.host,
            settings.port,
            settings.keepalive_s,
            clean_start=False,
            properties=properties,
        )
    except OSError as error:
        logger.warning("no link to %s:%d: %s", settings.host, settings.port, error)
        return False
    return True
