"""The coordinator as a service: the round machine with a broker, a journal and a clock."""

import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from sparsyfed.coordinator import events
from sparsyfed.coordinator.admission import Engines
from sparsyfed.coordinator.aggregation import FederatedAverage, UpdateRules
from sparsyfed.coordinator.attempt import Phase
from sparsyfed.coordinator.config import Configuration
from sparsyfed.coordinator.evaluation import HeldOutData
from sparsyfed.coordinator.inbox import Inbox
from sparsyfed.coordinator.job import bundle_of, engines_of, prepare
from sparsyfed.coordinator.mqtt import BrokerLink
from sparsyfed.coordinator.outbox import Outbox
from sparsyfed.coordinator.pruning import pruned
from sparsyfed.coordinator.results import (
    JobFailedError,
    JobResult,
    RoundFinished,
    TrainingReport,
)
from sparsyfed.coordinator.rounds import RoundMachine
from sparsyfed.coordinator.store import Spent, Store
from sparsyfed.coordinator.uploads import Uploads
from sparsyfed.edge_runtime import Artifact, State
from sparsyfed.edge_runtime.errors import StoppedError
from sparsyfed.edge_runtime.messages import COORDINATOR_FILTER

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0
POLL_S = 0.05
FAREWELL_S = 5.0
WAITING_PERIOD_S = 10.0  # between lines while too few devices are there
SPENT_PERIOD_S = 5.0  # of bytes and seconds, so many at most are lost when the power is

OnRound = Callable[[RoundFinished], None]


def run(
    config: Configuration,
    on_round: OnRound | None = None,
    *,
    stop: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
    boot: str | None = None,
) -> JobResult:
    """Run a job to its end and return its result; `on_round` is called after each round.

    Whenever it is stopped, by SIGINT, SIGTERM, `stop` or a loss of power, the same call goes on where it was. A job
    that is done already gives its result at once. `boot` names this start of the coordinator to the devices.

    Raises StoppedError when stopped, ConfigurationError for settings that don't fit, BackendError without a
    broker, JobFailedError when too few devices take part.
    """
    with ExitStack() as stack:
        store = stack.enter_context(Store(config.store.directory))
        bundle = None if store.is_done() else bundle_of(config)
        artifact = prepare(config, store, bundle)
        if not store.is_done():
            asked = stack.enter_context(_stop_on_signals(stop or threading.Event()))
            link = BrokerLink(
                config.broker.host,
                config.broker.port,
                client_id=f"sparsyfed-coordinator-{config.job.name}",
                subscription=COORDINATOR_FILTER,
            )
            service = Service(
                config,
                store,
                artifact,
                engines_of(bundle),
                link,
                clock=clock,
                boot=boot or _new_boot(),
            )
            with link.opened(CONNECT_TIMEOUT_S, asked):
                service.serve(on_round, asked)
                link.forget_session()
                store.set_done()
        return JobResult(
            name=config.job.name,
            artifact=artifact,
            state=State.decode(store.state(config.job.rounds + 1)),
            rounds=store.rounds(),
            devices=store.devices(),
        )


class Service:
    """Carries out what the round machine asks for. `serve` returns when the job is done."""

    def __init__(
        self,
        config: Configuration,
        store: Store,
        artifact: Artifact,
        engines: Engines,
        link: BrokerLink,
        *,
        clock: Callable[[], float],
        boot: str,
    ) -> None:
        self._config = config
        self._store = store
        self._artifact = artifact
        self._engines = engines
        self._clock = clock
        self._on_round: OnRound | None = None
        self._held_out = HeldOutData.load(config.evaluation, artifact)
        progress = store.progress()
        self._started = self._spent_at = self._waiting_since = clock()
        self._before = store.spent(progress.round)
        state = State.decode(store.state(progress.round))
        self._machine = RoundMachine(
            config.round,
            rounds=config.job.rounds,
            seed=config.job.seed,
            round_number=progress.round,
            attempt=progress.attempt,
            needs=engines.needs(artifact, state, config.training.batch_size),
            now=clock(),
            resume=progress.open,
        )
        self._outbox = Outbox(config, link, artifact.encode(), engines.exports, boot)
        self._inbox = Inbox(config, link, self._outbox, clock)
        self._begin_round(state)

    def _begin_round(self, state: State) -> None:
        encoded = self._store.state(state.round)
        self._state = state
        config = self._config
        self._rules = UpdateRules.of_job(
            self._artifact,
            config.sparsity(state.round),
            config.job.budget,
            config.round.norm_bound,
        )
        self._uploads = Uploads(self._store, self._rules, state, len(encoded))
        self._outbox.begin_round(state.round, encoded)
        self._inbox.begin_round(self._uploads, self._machine)

    def serve(self, on_round: OnRound | None, stop: threading.Event) -> None:
        """Run the remaining rounds. Raises StoppedError once `stop` is set, JobFailedError."""
        self._on_round = on_round
        next_tick = self._clock()
        while self._machine.phase is not Phase.FINISHED:
            if stop.is_set():
                self._journal_spent()
                raise StoppedError("stopped before the last round")
            for event in self._inbox.receive(POLL_S):
                self._feed(event)
            now = self._clock()
            if now >= next_tick:
                next_tick = now + POLL_S
                self._feed(events.Tick(now))
            self._look_after(now)
        # Those that did not say hello to this start of the coordinator: the broker keeps it for them.
        for device in self._store.devices():
            if not self._outbox.knows(device.id):
                self._outbox.send(events.SendControl(device.id, "finish"))
        self._outbox.flush(FAREWELL_S)

    def _look_after(self, now: float) -> None:
        """What is due every few seconds: a line while too few devices are there, and the journal of what was spent."""
        if self._machine.phase is not Phase.WAITING:
            self._waiting_since = now
        elif now - self._waiting_since >= WAITING_PERIOD_S:
            self._waiting_since = now
            logger.info("%s", self._machine.waits_for())
        if now - self._spent_at >= SPENT_PERIOD_S:
            self._journal_spent()

    def _feed(self, event: events.Event) -> None:
        waiting = [event]
        while waiting:
            for action in self._machine.handle(waiting.pop(0)):
                answer = self._perform(action)
                if answer is not None:
                    waiting.append(answer)

    def _perform(self, action: events.Action) -> events.Event | None:
        match action:
            case events.SendOffer() | events.SendReceipt() | events.SendControl():
                self._outbox.send(action)
            case events.AnnounceRound():
                self._outbox.announce()
            case events.InspectUpdate(report):
                return self._inbox.inspect(report)
            case events.Aggregate():
                return self._aggregate(action)
            case events.RefuseDevice(device, reason):
                logger.warning("round %d: %s not admitted: %s", self._machine.round, device, reason)
                self._outbox.send(action)
            case events.FinishJob():
                logger.info("job %s: done", self._config.job.name)
            case events.FailJob(reason):
                self._journal_spent()
                raise JobFailedError(f"job {self._config.job.name}: {reason}")
            case _:
                self._journal(action)
        return None

    def _journal(self, action: events.Action) -> None:
        store = self._store
        match action:
            case events.OpenAttempt():
                store.open_attempt(action)
                text = "round %d, attempt %d: offers to %d devices for %d updates"
                logger.info(text, action.round, action.attempt, len(action.devices), action.goal)
            case events.AddOffer(round_number, attempt, device):
                store.set_offer(round_number, attempt, device, "open")
            case events.DropDevice(round_number, attempt, device, status, reason):
                store.set_offer(round_number, attempt, device, status, reason)
                logger.warning("round %d: %s %s: %s", round_number, device, status, reason)
            case events.CommitUpdate(report):
                message, data = self._inbox.inspected(report)
                store.commit(report, data, TrainingReport.of_report(message))
                self._journal_spent()
            case events.FailAttempt(round_number, attempt, reason):
                store.fail_attempt(round_number, attempt, reason)
                logger.warning("round %d, attempt %d failed: %s", round_number, attempt, reason)
            case _:
                raise AssertionError(f"no one carries out {action}")

    def _spent(self) -> Spent:
        """What the running round has taken, before a restart and since."""
        return Spent(
            self._before.bytes_down + self._outbox.bytes_sent,
            self._before.bytes_up + self._inbox.bytes_received,
            self._before.seconds + self._clock() - self._started,
        )

    def _journal_spent(self) -> None:
        self._spent_at = self._clock()
        self._store.spend(self._machine.round, self._spent())

    def _aggregate(self, action: events.Aggregate) -> events.Event:
        average = FederatedAverage(self._state)
        largest = count = 0
        # Sorted by device: the sum then has the same bits, whoever was first.
        for _, examples, data in self._store.updates(action.round, action.attempt):
            average.add(self._rules.read(data, self._state), examples)
            largest, count = max(largest, len(data)), count + 1
        state = average.state()
        job = self._config.job
        if action.round == job.dense_rounds:
            state = pruned(self._artifact, state, job.sparsity, job.budget)
        loss, accuracy = None, None
        batch_size = self._config.training.batch_size
        if self._held_out is not None:
            loss, accuracy = self._held_out.evaluate(self._artifact, state, batch_size)
        spent = self._spent()
        finished = RoundFinished(
            round=action.round,
            accuracy=accuracy,
            loss=loss,
            density_down=self._state.density,
            bytes_down=spent.bytes_down,
            bytes_up=spent.bytes_up,
            update_bytes=largest,
            devices=count,
            examples=average.examples,
            multiply_adds=self._store.multiply_adds(action.round, action.attempt),
            attempts=action.attempt,
            seconds=spent.seconds,
            learning_rate=self._config.learning_rate(action.round),
        )
        self._store.finish_round(
            action.round,
            action.attempt,
            state.encode(),
            finished,
            keep_states=self._config.store.keep_states,
        )
        self._before, self._started = Spent(), self._clock()
        self._outbox.bytes_sent = self._inbox.bytes_received = 0
        self._begin_round(state)
        if self._on_round is not None:
            self._on_round(finished)
        return events.RoundAggregated(self._engines.needs(self._artifact, state, batch_size))


def _new_boot() -> str:
    return secrets.token_hex(8)


@contextmanager
def _stop_on_signals(stop: threading.Event) -> Iterator[threading.Event]:
    """`stop`, set by SIGINT and SIGTERM as well while in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
