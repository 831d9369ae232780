"""The link to the broker: what arrives waits in a bounded queue, what is sent is bounded as well."""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import (
    MQTT_ERR_NO_CONN,
    MQTT_ERR_SUCCESS,
    Client,
    ConnectFlags,
    DisconnectFlags,
    MQTTMessage,
    MQTTMessageInfo,
    MQTTv5,
)
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from sparsyfed.edge_runtime.errors import BackendError, StoppedError

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 30
STOP_POLL_S = 0.1  # between looks at whether the wait for the first connection is to end
SESSION_EXPIRY_S = 24 * 3600
RECEIVE_MAXIMUM = 64  # messages of QoS 1 that the broker sends ahead of our acknowledgement
MAX_PACKET_BYTES = 1024 * 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024  # in the queue of what has arrived
MAX_UNSENT_BYTES = 16 * 1024 * 1024  # of QoS 0, handed over and not yet on the wire
MAX_UNSENT_MESSAGES = 10_000  # of QoS 1


@dataclass(frozen=True, slots=True)
class Received:
    """A message that has arrived; `topic` is empty for the notice that the link stands (again)."""

    topic: str
    payload: bytes = b""
    qos: int = 0
    packet: int = 0


CONNECTED = Received("")


class BrokerLink:
    """One MQTT 5 connection that comes back by itself, with growing pauses between the tries.

    The broker keeps the session (clean start is never asked for: mosquitto forgets such sessions when it restarts), so
    messages of QoS 1 that come while the coordinator is away are delivered later; each is acknowledged when it has been
    dealt with. paho's thread only fills the queue.
    """

    def __init__(self, host: str, port: int, *, client_id: str, subscription: str) -> None:
        self._address = f"{host}:{port}"
        self._subscription = subscription
        self._arrived: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._waiting_lock = threading.Lock()
        self._dropped = 0
        self._session_expiry_s = SESSION_EXPIRY_S
        self._unsent: deque[tuple[MQTTMessageInfo, int]] = deque()
        self._unsent_bytes = 0
        self._last: MQTTMessageInfo | None = None  # of QoS 1
        self._was_connected = threading.Event()
        client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTv5, manual_ack=True)
        client.max_queued_messages_set(MAX_UNSENT_MESSAGES)
        client.reconnect_delay_set(min_delay=1, max_delay=30)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        client.connect_async(
            host, port, keepalive=KEEP_ALIVE_S, clean_start=False, properties=properties
        )
        self._client = client

    def open(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Connect.

        Raises BackendError if the broker does not answer within `timeout_s` seconds, StoppedError once `stop` is set.
        """
        self._client.loop_start()
        end = time.monotonic() + timeout_s
        while not self._was_connected.wait(min(STOP_POLL_S, timeout_s)):
            if stop is not None and stop.is_set():
                self.close()
                raise StoppedError("stopped before the broker answered")
            if time.monotonic() >= end:
                self.close()
                raise BackendError(
                    f"broker {self._address}: no connection after {timeout_s:g} s: is it running?"
                )

    @contextmanager
    def opened(self, timeout_s: float, stop: threading.Event | None = None) -> Iterator[None]:
        """The link, open from here to the end of the block; raises what `open` raises."""
        self.open(timeout_s, stop)
        try:
            yield
        finally:
            self.close()

    def forget_session(self) -> None:
        """Let the broker drop the session on `close`: nothing that comes later is wanted."""
        self._session_expiry_s = 0

    def close(self) -> None:
        """Disconnect; the broker keeps the session for a day."""
        properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = self._session_expiry_s
        self._client.disconnect(properties=properties)
        self._client.loop_stop()
        # paho closes the sockets that wake its thread only here, or when it is collected some day.
        self._client.reinitialise()

    def receive(self, timeout_s: float) -> Received | None:
        """The next message, CONNECTED whenever the link stands again, or None after `timeout_s` seconds."""
        try:
            received = self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if received is CONNECTED:
            # What paho had not yet written when the link broke is gone.
            self._unsent.clear()
            self._unsent_bytes = 0
        with self._waiting_lock:
            self._waiting_bytes -= len(received.payload)
            dropped, self._dropped = self._dropped, 0
        if dropped:
            logger.warning("%d messages dropped: they came faster than they are handled", dropped)
        return received

    def acknowledge(self, received: Received) -> None:
        """Tell the broker that a message of QoS 1 has been dealt with."""
        if received.qos:
            self._client.ack(received.packet, received.qos)

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> bool:
        """Hand a message over; False if it was not taken, since its queue is full or, for QoS 0, the link is down.

        What is lost here is asked for again by whoever misses it.
        """
        if qos == 0 and self._unsent_after_sweep() + len(payload) > MAX_UNSENT_BYTES:
            return False
        info = self._client.publish(topic, payload, qos, retain)
        if qos:
            # Without a link paho keeps it, up to MAX_UNSENT_MESSAGES.
            self._last = info
            return info.rc in (MQTT_ERR_SUCCESS, MQTT_ERR_NO_CONN)
        if info.rc != MQTT_ERR_SUCCESS:
            return False
        self._unsent.append((info, len(payload)))
        self._unsent_bytes += len(payload)
        return True

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has acknowledged the last message of QoS 1, at most `timeout_s` seconds."""
        if self._last is not None and self._last.rc == MQTT_ERR_SUCCESS:
            self._last.wait_for_publish(timeout_s)

    def _unsent_after_sweep(self) -> int:
        while self._unsent and self._unsent[0][0].is_published():
            self._unsent_bytes -= self._unsent.popleft()[1]
        return self._unsent_bytes

    # ---- called by paho, in its thread ----

    def _on_connect(
        self,
        client: Client,
        _userdata: Any,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            logger.error("broker %s refused the connection: %s", self._address, reason)
            return
        client.subscribe(self._subscription, qos=1)
        self._was_connected.set()
        self._arrived.put(CONNECTED)
        logger.info("connected to the broker %s", self._address)

    def _on_connect_fail(self, _client: Client, _userdata: Any) -> None:
        logger.warning("broker %s can't be reached, trying again", self._address)

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: Any,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            logger.warning("lost the broker %s: %s", self._address, reason)

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        with self._waiting_lock:
            full = self._waiting_bytes + len(message.payload) > MAX_WAITING_BYTES
            if full and message.qos == 0:
                self._dropped += 1
                return
            # Messages of QoS 1 are bounded by RECEIVE_MAXIMUM.
            self._waiting_bytes += len(message.payload)
        self._arrived.put(Received(message.topic, bytes(message.payload), message.qos, message.mid))
