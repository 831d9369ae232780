"""A coordinator of a test, on a real broker: it serves blocks and keeps what a device says."""

import queue
import threading
import time

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from sparsyfed.edge_runtime import messages, transfer
from sparsyfed.edge_runtime.messages import (
    BlockRequest,
)
from sparsyfed.tools.broker import PrivateBroker

PATIENCE = 20.0


class Coordinator:
    """Serves blocks and keeps what devices say, by leaf of the topic."""

    def __init__(self, broker: PrivateBroker, objects: dict[str, bytes]) -> None:
        self._objects = objects
        self._said: queue.Queue[tuple[str, bytes | bytearray]] = queue.Queue()
        self.blocks_served = 0
        self._client = Client(CallbackAPIVersion.VERSION2, "coordinator", protocol=MQTTv5)
        self._client.on_message = self._on_message
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_connect = lambda client, *_: client.subscribe(
            messages.COORDINATOR_FILTER, qos=1
        )
        lasting = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        lasting.SessionExpiryInterval = 600
        self._client.connect(broker.host, broker.port, clean_start=False, properties=lasting)
        self._client.loop_start()
        assert subscribed.wait(PATIENCE)

    def _on_message(self, client: Client, _data: object, message: MQTTMessage) -> None:
        device, leaf = messages.parse_topic(message.topic)
        if leaf != messages.GET:
            self._said.put((leaf, message.payload))
            return
        request = BlockRequest.from_json(message.payload)
        data = self._objects[request.object]
        for index in request.blocks:
            self.blocks_served += 1
            block = transfer.object_block(data, request.block_bytes, index)
            topic = messages.block_topic(device, request.object)
            client.publish(topic, transfer.encode_block(index, block))

    def wait_for(self, leaf: str) -> bytes | bytearray:
        """Payload of the next message on this leaf; others before it are dropped."""
        until = time.monotonic() + PATIENCE
        while True:
            said, payload = self._said.get(timeout=max(0.01, until - time.monotonic()))
            if said == leaf:
                return payload

    def send(self, leaf: str, payload: bytes) -> None:
        self._client.publish(messages.device_topic("watch-1", leaf), payload, qos=1)

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1, retain=True)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client.reinitialise()  # closes the sockets that woke its thread
