"""A device on MQTT 5: one thread for the link and the agent, one for training.

The agent decides (`sparsyfed.devices.agent`); this module carries messages, keeps time and runs the
training it asks for. Only this module and `mqtt` need paho-mqtt (extra `agent`).
"""

import logging
import secrets
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import sparsyfed
from sparsyfed.devices import events
from sparsyfed.devices.agent import Agent
from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.events import Action, Event, StartTraining
from sparsyfed.devices.pull import full_jitter
from sparsyfed.devices.refusal import refusal_of_data, refusal_of_plan
from sparsyfed.devices.settings import AgentSettings, DeviceSettings
from sparsyfed.devices.signals import ended_by_signals
from sparsyfed.devices.storage import DeviceStorage
from sparsyfed.devices.training import (
    LocalEngine,
    LocalResult,
    LocalRound,
    TrainingStopped,
    train_locally,
)
from sparsyfed.edge_runtime import messages
from sparsyfed.edge_runtime.errors import (
    BackendError,
    ConfigurationError,
    FormatError,
    SparsyFedError,
)
from sparsyfed.edge_runtime.messages import Online, device_topic

try:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
    from paho.mqtt.enums import MQTTErrorCode
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode
    from paho.mqtt.subscribeoptions import SubscribeOptions

    from sparsyfed.devices import mqtt
except ImportError as error:
    raise BackendError(
        "a device on MQTT needs paho-mqtt: pip install 'sparsyfed-edge[agent]'"
    ) from error

logger = logging.getLogger(__name__)

MAX_PARTS_IN_FLIGHT = 16
MAX_SLEEP_SECONDS = 1.0
BUSY_SLEEP_SECONDS = 0.02
FAREWELL_SECONDS = 2.0
STEADY_LINK_SECONDS = 10.0  # a link that lasted as long was no mistake: the next pause is short


def run_device(settings: DeviceSettings, stop: threading.Event | None = None) -> None:
    """Run a device until SIGTERM, Ctrl-C, `stop`, or, with `exit_on_finish`, the end of the job.

    In the main thread it takes the two signals over until it returns. Raises ConfigurationError for data or a
    directory that can't be used, with `exit_on_finish` also for data that the job's model does not take, BackendError
    for an engine that is not there; a broker that can't be reached is tried again for ever.
    """
    if settings.data is None:
        raise ConfigurationError("got no folder of data, which a device that trains here needs")
    engine = LocalEngine.load(settings.backend)
    logger.info("%s", engine)
    with closing(Dataset(settings.data)) as dataset:
        dataset.require_valid_values()
        with (
            closing(DeviceStorage(settings.directory)) as storage,
            closing(
                DeviceClient(
                    settings,
                    engine,
                    dataset,
                    storage,
                    stop or threading.Event(),
                    train=partial(train_locally, engine=engine),
                )
            ) as client,
            ended_by_signals(client.stop),
        ):
            client.run()


class DeviceClient:
    """The loop around an agent.

    `train` makes its local rounds and `refuse` says what does not fit, as `train_locally` and
    `refusal_of_plan` do. `run` is called once; `stop` may come from any thread or signal handler.
    """

    def __init__(
        self,
        settings: DeviceSettings,
        engine: LocalEngine,
        dataset: Sized,
        storage: DeviceStorage,
        stop: threading.Event,
        *,
        train: Callable[..., LocalResult] = train_locally,
        refuse: Callable[[Path, Path, int, int], str | None] = refusal_of_plan,
    ) -> None:
        self.settings = settings
        self._train_round = train
        self._dataset = dataset
        self._stop = stop
        self._misfit: str | None = None
        self._random = Random(secrets.randbits(64))  # noqa: S311 - spreads retries, guards nothing
        self._boot = secrets.token_hex(8)
        self._agent = Agent(
            AgentSettings(
                device=settings.device,
                boot=self._boot,
                runtime=sparsyfed.__version__,
                profile=settings.profile.name,
                memory_bytes=settings.memory_bytes,
                macs_per_second=settings.macs_per_second,
                examples=len(dataset),
                block_bytes=settings.profile.block_bytes,
                backend=engine.backend,
                max_offer_bytes=settings.max_offer_bytes,
            ),
            storage,
            self._random,
            now=time.monotonic(),
            refuse=refuse,
            refuse_data=self._refuse_data,
        )
        self._events: deque[Event | Future[Event | None]] = deque()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"{settings.device} training")
        self._training_stop = threading.Event()
        self._waker, self._waked = socket.socketpair()
        self._waker.setblocking(False)
        self._waked.setblocking(False)
        self._in_flight: set[int] = set()
        self._mqtt = self._make_client()

    def _make_client(self) -> Client:
        client = mqtt.make_client(self.settings, self._boot)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def stop(self) -> None:
        """End `run` soon; what was received and trained stays on disk."""
        self._stop.set()
        self._wake()

    def _refuse_data(self, artifact: Path) -> str | None:
        """Why the data are not what a model takes, or None; a device that is there for one job ends then."""
        reason = refusal_of_data(artifact, self._dataset)
        if reason is not None and self.settings.exit_on_finish:
            self._misfit = reason
            self._stop.set()
        return reason

    def close(self) -> None:
        """End the training thread and give the sockets back."""
        self._training_stop.set()
        self._worker.shutdown()
        self._waker.close()
        self._waked.close()

    def run(self) -> None:
        """Connect, and carry events and actions until stopped.

        The link is made again whenever it breaks. Raises ConfigurationError if the data are not what
        the model takes and the device is there for one job, `exit_on_finish`.
        """
        attempt = 0
        while not self._stop.is_set():
            began = time.monotonic()
            accepted = mqtt.connect(self._mqtt, self.settings) and self._serve()
            attempt += 1
            if time.monotonic() - began >= STEADY_LINK_SECONDS:
                attempt = 0
            elif accepted and attempt > 1 and not self._stop.is_set():
                # mosquitto does not say that a session was taken over: it only closes the link.
                logger.warning(
                    "the broker ended the link at once, again: does another device use the id %s?",
                    self.settings.device,
                )
            if not self._stop.is_set():
                base, limit = self.settings.reconnect_base_s, self.settings.reconnect_limit_s
                pause = full_jitter(self._random, attempt, base, limit)
                self._serve_offline(time.monotonic() + pause)
        if self._misfit is not None:
            raise ConfigurationError(self._misfit)

    def _serve(self) -> bool:
        """Carry messages until the link breaks or `stop`; whether the broker accepted the device."""
        accepted = False
        while self._carry():
            self._drain()
            accepted = accepted or self._mqtt.is_connected()
            if self._stop.is_set():
                self._say_farewell()
                return accepted
        self._drain()
        return accepted

    def _serve_offline(self, until: float) -> None:
        """Go on with training and time while there is no link."""
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            self._sleep([], [], min(left, self._patience()))
            self._drain()

    def _carry(self) -> bool:
        """Wait for the network, the training thread or the next deadline, then read and write.

        False: link lost.
        """
        link: Any = self._mqtt.socket()
        if link is None:
            return False
        pending = link.pending() if hasattr(link, "pending") else 0
        writers = [link] if self._mqtt.want_write() else []
        readable, writable = self._sleep([link], writers, 0.0 if pending else self._patience())
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        if link in readable or pending:
            code = self._mqtt.loop_read()
        if not code and link in writable:
            code = self._mqtt.loop_write()
        if not code:
            code = self._mqtt.loop_misc()
        return not code

    def _sleep(
        self, readers: list[Any], writers: list[Any], seconds: float
    ) -> tuple[list[Any], list[Any]]:
        readable, writable, _ = select.select([*readers, self._waked], writers, [], seconds)
        if self._waked in readable:
            with suppress(BlockingIOError):
                self._waked.recv(4096)
        return readable, writable

    def _patience(self) -> float:
        """Seconds until the agent wants its next tick, within bounds."""
        if self._events:
            return 0.0
        now = time.monotonic()
        at = self._agent.wake_at(now)
        if at is None:
            return MAX_SLEEP_SECONDS
        return min(MAX_SLEEP_SECONDS, max(BUSY_SLEEP_SECONDS, at - now))

    def _drain(self) -> None:
        """Hand all events to the agent, then a tick."""
        while self._events:
            event = self._events.popleft()
            if isinstance(event, Future):
                finished = event.result()  # raises what the training thread did not expect
                if finished is not None:
                    self._handle(finished)
            else:
                self._handle(event)
        self._handle(events.Tick(room=max(0, MAX_PARTS_IN_FLIGHT - len(self._in_flight))))

    def _handle(self, event: Event) -> None:
        for action in self._agent.handle(event, time.monotonic()):
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case events.Publish(topic, payload, qos):
                info = self._mqtt.publish(topic, payload, qos)
                if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                    logger.warning(
                        "the queue to the broker is full: a message on %s is left out", topic
                    )
                elif qos:
                    self._in_flight.add(info.mid)
            case StartTraining():
                stop = self._training_stop = threading.Event()
                self._worker.submit(self._train, action, stop).add_done_callback(self._put)
            case events.StopTraining():
                self._training_stop.set()
            case events.JobFinished(job):
                logger.info("job %s is over", job or "in hand")
                if self.settings.exit_on_finish:
                    self._stop.set()

    def _train(self, action: StartTraining, stop: threading.Event) -> Event | None:
        """One local round, in the training thread."""
        offer = action.offer
        try:
            result = self._train_round(
                action.artifact,
                action.state.read_bytes(),
                self._dataset,
                LocalRound.of_offer(offer, self.settings.device),
                memory_bytes=self.settings.memory_bytes,
                should_stop=stop.is_set,
            )
        except TrainingStopped:
            return None
        except (SparsyFedError, OSError, MemoryError) as error:
            return events.TrainingFailed(offer, f"{type(error).__name__}: {error}")
        return events.TrainingFinished(offer, result)

    def _put(self, event: "Event | Future[Event | None]") -> None:
        """Take an event from any thread."""
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        # A full pipe wakes as well as a fuller one; a closed one has nobody left to wake.
        with suppress(BlockingIOError, OSError):
            self._waker.send(b"\0")

    def _say_farewell(self) -> None:
        """Tell that the device goes, and disconnect once the broker has taken what is in flight."""
        offline = Online(self.settings.device, self._boot, online=False).to_json()
        topic = device_topic(self.settings.device, messages.STATE)
        info = self._mqtt.publish(topic, offline, messages.QOS[messages.STATE])
        until = time.monotonic() + FAREWELL_SECONDS
        if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            while not info.is_published() and time.monotonic() < until and self._carry():
                pass
        self._mqtt.disconnect()

    # ---- callbacks of the link, in the thread of `run` ----

    def _on_connect(
        self,
        client: Client,
        _data: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            logger.error("the broker refuses the link: %s", reason)
            return
        logger.info("connected to %s:%d", self.settings.host, self.settings.port)
        topics = (messages.device_filter(self.settings.device), messages.ROUND_TOPIC)
        client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics])
        self._events.append(events.Connected())

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        logger.info("disconnected from %s:%d: %s", self.settings.host, self.settings.port, reason)
        self._events.append(events.Disconnected())

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        try:
            self._events.append(
                events.received(self.settings.device, message.topic, message.payload)
            )
        except FormatError as error:
            logger.warning("message dropped: %s", error)

    def _on_publish(
        self,
        _client: Client,
        _data: object,
        mid: int,
        _reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._in_flight.discard(mid)
