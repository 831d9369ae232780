"""The journal of a job: one SQLite file, written before anything is sent because of it.

Whatever instant the coordinator dies at, the file holds a state, the attempt that was open on it and the updates that
count; a restart goes on from there. The average and the step to the next round are one transaction.
"""

import fcntl
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sparsyfed.coordinator.attempt import COMMITTED, OPEN
from sparsyfed.coordinator.events import OpenAttempt, OpenRound, UpdateReported
from sparsyfed.coordinator.results import DeviceResult, RoundFinished, TrainingReport
from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError, FormatError

SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE job (only INTEGER PRIMARY KEY CHECK (only = 1), identity TEXT NOT NULL, artifact BLOB NOT NULL,
    done INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE state (round INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE attempt (
    round INTEGER, attempt INTEGER, goal INTEGER NOT NULL, quorum INTEGER NOT NULL,
    status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (round, attempt)
) WITHOUT ROWID;
CREATE TABLE offer (
    round INTEGER, attempt INTEGER, device TEXT, status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (round, attempt, device)
) WITHOUT ROWID;
CREATE TABLE part (
    device TEXT, tag BLOB, part INTEGER, parts INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (device, part)
);
CREATE TABLE committed (
    round INTEGER, attempt INTEGER, device TEXT, sha256 TEXT NOT NULL, examples INTEGER NOT NULL,
    training TEXT NOT NULL, data BLOB, PRIMARY KEY (round, attempt, device)
);
CREATE TABLE spent (round INTEGER PRIMARY KEY, down INTEGER NOT NULL, up INTEGER NOT NULL, seconds REAL NOT NULL);
CREATE TABLE metric (round INTEGER PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE device (
    device TEXT PRIMARY KEY, planned INTEGER NOT NULL, peak TEXT NOT NULL, latest TEXT NOT NULL
) WITHOUT ROWID;
"""

_DEVICE_REPORT = """
INSERT INTO device VALUES (?, ?, ?, ?) ON CONFLICT (device) DO UPDATE SET
    latest = excluded.latest,
    peak = CASE WHEN excluded.planned > planned THEN excluded.peak ELSE peak END,
    planned = max(planned, excluded.planned)
"""

# An update of an attempt that failed was committed and does not count.
_DEVICE_RESULTS = """
SELECT device, count(*), peak, latest FROM device JOIN committed USING (device) JOIN attempt USING (round, attempt)
WHERE status = 'done' GROUP BY device ORDER BY device
"""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a round has taken so far: payload bytes sent and received, and seconds."""

    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands: the round to run, the number of its next attempt, or the attempt that is open."""

    round: int
    attempt: int
    open: OpenRound | None


class Store:
    """The journal in a directory. One coordinator at a time may hold it; one thread may use it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_new = not directory.exists()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = (directory / "lock").open("w")
        except OSError as error:
            raise ConfigurationError(f"[store] directory: {error}") from error
        path = directory / "job.sqlite"
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._database = _connect(path)
        except BlockingIOError:
            self._lock.close()
            raise ConfigurationError(
                f"{directory}: got a store that another coordinator uses, wanted one that is free"
            ) from None
        except (sqlite3.Error, ConfigurationError) as error:
            self._lock.close()
            raise ConfigurationError(f"{path}: {error}") from error

    def close(self) -> None:
        """Close the file and let others have it. A directory made for a job that never began is removed."""
        unused = self._is_new and self.job() is None
        self._database.close()
        if unused:
            shutil.rmtree(self._directory)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield self._database
            self._database.execute("COMMIT")
        except BaseException as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise BackendError(f"store: {error}") from error
            raise

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(self._database.execute(query, values)) as cursor:
            return cursor.fetchall()

    # ---- the job ----

    def job(self) -> tuple[dict[str, Any], bytes] | None:
        """Identity (settings that may not change) and artifact of the job, or None in a new store."""
        rows = self._rows("SELECT identity, artifact FROM job")
        return (json.loads(rows[0][0]), rows[0][1]) if rows else None

    def begin_job(self, identity: Mapping[str, Any], artifact: bytes, state: bytes) -> None:
        """Journal a new job and the state of its first round."""
        with self._transaction() as database:
            text = json.dumps(identity, sort_keys=True)
            database.execute(
                "INSERT INTO job (only, identity, artifact) VALUES (1, ?, ?)", (text, artifact)
            )
            database.execute("INSERT INTO state VALUES (1, ?)", (state,))

    def is_done(self) -> bool:
        """Whether all rounds are finished and the devices have been told."""
        return self._rows("SELECT done FROM job") == [(1,)]

    def set_done(self) -> None:
        """Journal that nothing is left to do."""
        with self._transaction() as database:
            database.execute("UPDATE job SET done = 1")

    def progress(self) -> Progress:
        """Where the job stands. The round is that of the newest state."""
        (newest,) = self._rows("SELECT max(round) FROM state")[0]
        attempts = self._rows(
            "SELECT attempt, goal, quorum, status FROM attempt WHERE round = ? ORDER BY attempt DESC",
            newest,
        )
        if not attempts:
            return Progress(newest, 1, None)
        attempt, goal, quorum, status = attempts[0]
        if status != OPEN:
            return Progress(newest, attempt + 1, None)
        key = (newest, attempt)
        where = "WHERE round = ? AND attempt = ?"
        offers = dict(self._rows(f"SELECT device, status FROM offer {where}", *key))  # noqa: S608
        counted = dict(self._rows(f"SELECT device, sha256 FROM committed {where}", *key))  # noqa: S608
        return Progress(newest, attempt, OpenRound(newest, attempt, goal, quorum, offers, counted))

    def state(self, round_number: int) -> bytes:
        """Bytes of the state that is trained in this round."""
        rows = self._rows("SELECT data FROM state WHERE round = ?", round_number)
        if not rows:
            raise FormatError(f"store: got no state of round {round_number}, wanted one")
        data: bytes = rows[0][0]
        return data

    # ---- an attempt ----

    def open_attempt(self, attempt: OpenAttempt) -> None:
        """Journal an attempt and its offers."""
        key = (attempt.round, attempt.attempt)
        with self._transaction() as database:
            database.execute(
                "INSERT INTO attempt (round, attempt, goal, quorum, status) VALUES (?, ?, ?, ?, ?)",
                (*key, attempt.goal, attempt.quorum, OPEN),
            )
            database.execute("DELETE FROM part")
            database.executemany(
                "INSERT INTO offer (round, attempt, device, status) VALUES (?, ?, ?, ?)",
                [(*key, device, OPEN) for device in attempt.devices],
            )

    def set_offer(
        self, round_number: int, attempt: int, device: str, status: str, reason: str = ""
    ) -> None:
        """Journal an offer to one more device, or what became of one."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO offer VALUES (?, ?, ?, ?, ?)",
                (round_number, attempt, device, status, reason),
            )

    def fail_attempt(self, round_number: int, attempt: int, reason: str) -> None:
        """Journal that an attempt is given up, with its updates and parts."""
        with self._transaction() as database:
            database.execute(
                "UPDATE attempt SET status = 'failed', reason = ? WHERE round = ? AND attempt = ?",
                (reason, round_number, attempt),
            )
            database.execute("UPDATE committed SET data = NULL")
            database.execute("DELETE FROM part")

    # ---- updates ----

    def put_part(self, device: str, tag: bytes, part: int, parts: int, data: bytes) -> None:
        """Keep a part of the update with this tag; parts of another update of the device are dropped."""
        with self._transaction() as database:
            database.execute(
                "DELETE FROM part WHERE device = ? AND (tag != ? OR parts != ?)",
                (device, tag, parts),
            )
            database.execute(
                "INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?, ?)",
                (device, tag, part, parts, data),
            )

    def part_bytes(self, device: str, tag: bytes, but: int) -> int:
        """Bytes kept of the update with this tag, without part number `but`."""
        query = "SELECT sum(length(data)) FROM part WHERE device = ? AND tag = ? AND part != ?"
        (total,) = self._rows(query, device, tag, but)[0]
        return int(total or 0)

    def part_numbers(self, device: str, tag: bytes, parts: int) -> set[int]:
        """Numbers of the parts that are there of the update with this tag that is cut into `parts`."""
        query = "SELECT part FROM part WHERE device = ? AND tag = ? AND parts = ?"
        return {number for (number,) in self._rows(query, device, tag, parts)}

    def parts(self, device: str, tag: bytes, parts: int) -> list[bytes]:
        """The parts that are there, in order."""
        query = "SELECT data FROM part WHERE device = ? AND tag = ? AND parts = ? ORDER BY part"
        return [data for (data,) in self._rows(query, device, tag, parts)]

    def drop_parts(self, device: str) -> None:
        """Forget the parts that a device has sent."""
        with self._transaction() as database:
            database.execute("DELETE FROM part WHERE device = ?", (device,))

    def commit(self, report: UpdateReported, data: bytes, training: TrainingReport) -> None:
        """Journal an update that counts, and what its training took on the device; drops its parts."""
        key = (report.round, report.attempt, report.device)
        with self._transaction() as database:
            text = json.dumps(training.to_mapping(), sort_keys=True)
            database.execute(
                "INSERT INTO committed VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*key, report.sha256, report.examples, text, data),
            )
            database.execute(
                "INSERT OR REPLACE INTO offer VALUES (?, ?, ?, ?, '')", (*key, COMMITTED)
            )
            database.execute("DELETE FROM part WHERE device = ?", (report.device,))
            planned = training.planned_arena_bytes or 0
            database.execute(_DEVICE_REPORT, (report.device, planned, text, text))

    def updates(self, round_number: int, attempt: int) -> Iterator[tuple[str, int, bytes]]:
        """(device, examples, bytes) of the updates that count, sorted by device, one in memory at a time."""
        query = (
            "SELECT device, examples, data FROM committed WHERE round = ? AND attempt = ?"
            " ORDER BY device"
        )
        with closing(self._database.execute(query, (round_number, attempt))) as cursor:
            yield from cursor

    def multiply_adds(self, round_number: int, attempt: int) -> dict[str, int]:
        """The work behind the updates that count, summed over the devices, by kind."""
        query = "SELECT training FROM committed WHERE round = ? AND attempt = ?"
        total: Counter[str] = Counter()
        for (training,) in self._rows(query, round_number, attempt):
            total.update(json.loads(training)["multiply_adds"] or {})
        return dict(total)

    # ---- rounds ----

    def finish_round(
        self,
        round_number: int,
        attempt: int,
        state: bytes,
        figures: RoundFinished,
        *,
        keep_states: int,
    ) -> None:
        """Journal the average of a round as the state of the next. Older states and updates are dropped."""
        with self._transaction() as database:
            database.execute("INSERT INTO state VALUES (?, ?)", (round_number + 1, state))
            database.execute(
                "UPDATE attempt SET status = 'done' WHERE round = ? AND attempt = ?",
                (round_number, attempt),
            )
            database.execute(
                "INSERT INTO metric VALUES (?, ?)",
                (round_number, json.dumps(figures.to_mapping(), sort_keys=True)),
            )
            database.execute("UPDATE committed SET data = NULL WHERE data IS NOT NULL")
            database.execute("DELETE FROM part")
            if keep_states:
                last = round_number + 1 - keep_states
                database.execute("DELETE FROM state WHERE round <= ?", (last,))

    def spend(self, round_number: int, spent: Spent) -> None:
        """Journal what a round has taken so far."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO spent VALUES (?, ?, ?, ?)",
                (round_number, spent.bytes_down, spent.bytes_up, spent.seconds),
            )

    def spent(self, round_number: int) -> Spent:
        """What the round had taken when it was last journalled."""
        rows = self._rows("SELECT down, up, seconds FROM spent WHERE round = ?", round_number)
        return Spent(*rows[0]) if rows else Spent()

    def rounds(self) -> tuple[RoundFinished, ...]:
        """The finished rounds, in order."""
        rows = self._rows("SELECT content FROM metric ORDER BY round")
        return tuple(RoundFinished(**json.loads(content)) for (content,) in rows)

    def devices(self) -> tuple[DeviceResult, ...]:
        """The devices whose updates are in finished rounds, sorted."""
        return tuple(
            DeviceResult(
                id=device,
                rounds=rounds,
                peak=TrainingReport(**json.loads(peak)),
                latest=TrainingReport(**json.loads(latest)),
            )
            for device, rounds, peak, latest in self._rows(_DEVICE_RESULTS)
        )


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        version = _prepare(database)
    except sqlite3.Error:
        database.close()
        raise
    if version != SCHEMA_VERSION:
        database.close()
        raise ConfigurationError(
            f"got a store of layout {version}, wanted {SCHEMA_VERSION}: use another directory"
        )
    return database


def _prepare(database: sqlite3.Connection) -> int:
    """Version of the tables in the file; a new file gets today's."""
    database.execute("PRAGMA journal_mode = WAL").close()
    database.execute("PRAGMA synchronous = FULL")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        version = SCHEMA_VERSION
        database.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {version};COMMIT;")
    return int(version)
