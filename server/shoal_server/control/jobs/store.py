"""Job records and their events in SQLite (WAL), with a schema version. Used from the event loop's thread alone.

Every change of a job and the events it causes are one transaction. Only `supervisor.py` writes through this.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shoal_server.errors import JobNotFound, StorageFull
from shoal_server.ipc.calls import JobEvent, JobStatus

SCHEMA_VERSION = 1
FINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "rejected"})
WAITING_STATES = frozenset({"queued", "interrupted"})

_SCHEMA = """
CREATE TABLE jobs (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    request_id TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    state TEXT NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX jobs_by_state ON jobs (state);
CREATE TABLE events (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (job_id, sequence)
) WITHOUT ROWID;
"""


class StoreTooNew(Exception):
    """The database was written by a newer release; the message names file and versions."""


class StoreUnusable(Exception):
    """The database cannot be opened; the message says why."""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it is stored."""

    status: JobStatus
    request_id: str
    digest: str  # of the spec as the client sent it
    cancel_requested: bool = False
    pid: int = 0  # of its process; 0: none runs
    process_start_ticks: int = 0  # tells the process from a later one with the same pid
    events_offset: int = 0  # bytes of events.jsonl that have been read

    @property
    def id(self) -> str:
        """The job's id."""
        return self.status.id


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPage:
    """Some records, newest first."""

    records: list[JobRecord]
    next_ordinal: int | None  # where the next page begins; None: this was the last


class JobStore:
    """The database of one server."""

    def __init__(self, path: Path) -> None:
        """Open or create the database.

        Raises:
            StoreTooNew: a newer release has written it.
            StoreUnusable: it is damaged or not writable.
        """
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate(path)
        except sqlite3.Error as error:
            raise StoreUnusable(f"{path} cannot be opened: {error}") from error

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def insert(self, record: JobRecord, event: JobEvent) -> None:
        """Store a new job with its first event.

        Raises:
            StorageFull: nothing was stored.
        """
        with self._transaction():
            self._db.execute(
                "INSERT INTO jobs (id, request_id, digest, state, record) VALUES (?, ?, ?, ?, ?)",
                (record.id, record.request_id, record.digest, record.status.state, msgspec.json.encode(record)),
            )
            self._append(record.id, event)

    def update(self, record: JobRecord, events: list[JobEvent]) -> None:
        """Replace a record and append events, whose sequence numbers are given here.

        Raises:
            StorageFull: nothing was stored.
        """
        with self._transaction():
            self._db.execute(
                "UPDATE jobs SET state = ?, record = ? WHERE id = ?",
                (record.status.state, msgspec.json.encode(record), record.id),
            )
            for event in events:
                self._append(record.id, event)

    def get(self, job_id: str) -> JobRecord:
        """One job.

        Raises:
            JobNotFound: there is none.
        """
        row = self._db.execute("SELECT record FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise JobNotFound(f"no training job {job_id[:64]!r}")
        return _decode_record(row[0])

    def find_request(self, request_id: str) -> JobRecord | None:
        """The job that was made by a request id."""
        row = self._db.execute("SELECT record FROM jobs WHERE request_id = ?", (request_id,)).fetchone()
        return _decode_record(row[0]) if row else None

    def list_page(self, *, limit: int, before_ordinal: int | None) -> RecordPage:
        """Jobs, newest first."""
        rows = self._db.execute(
            "SELECT ordinal, record FROM jobs WHERE ordinal <= ? ORDER BY ordinal DESC LIMIT ?",
            (before_ordinal if before_ordinal is not None else 2**62, limit + 1),
        ).fetchall()
        return RecordPage(
            records=[_decode_record(row[1]) for row in rows[:limit]],
            next_ordinal=rows[limit][0] if len(rows) > limit else None,
        )

    def unfinished(self) -> list[JobRecord]:
        """Jobs that have not ended, oldest first."""
        marks = ", ".join("?" * len(FINAL_STATES))
        rows = self._db.execute(
            f"SELECT record FROM jobs WHERE state NOT IN ({marks}) ORDER BY ordinal",  # noqa: S608
            tuple(sorted(FINAL_STATES)),
        )
        return [_decode_record(row[0]) for row in rows]

    def count_by_state(self) -> dict[str, int]:
        """Number of jobs in each state that any is in."""
        return dict(self._db.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state"))

    def delete(self, job_id: str) -> None:
        """Remove a job and its events."""
        with self._transaction():
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def events(self, job_id: str, *, from_sequence: int, limit: int) -> list[JobEvent]:
        """Events of a job in order."""
        rows = self._db.execute(
            "SELECT sequence, body FROM events WHERE job_id = ? AND sequence >= ? ORDER BY sequence LIMIT ?",
            (job_id, from_sequence, limit),
        )
        return [
            msgspec.structs.replace(msgspec.json.decode(body, type=JobEvent), sequence=sequence)
            for sequence, body in rows
        ]

    def _append(self, job_id: str, event: JobEvent) -> None:
        self._db.execute(
            "INSERT INTO events (job_id, sequence, body) "
            "SELECT ?, COALESCE(MAX(sequence), 0) + 1, ? FROM events WHERE job_id = ?",
            (job_id, msgspec.json.encode(event), job_id),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise StorageFull(f"the job database cannot be written: {error}") from error

    def _migrate(self, path: Path) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            self._db.close()
            raise StoreTooNew(
                f"{path} has schema version {version}; this release knows versions up to {SCHEMA_VERSION}: "
                "start the newer release that wrote it, or choose another state_dir"
            )
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def digest_of(spec: dict[str, Any]) -> str:
    """SHA-256 of a spec, whatever the order of its keys."""
    return hashlib.sha256(msgspec.json.encode(spec, order="deterministic")).hexdigest()


def _decode_record(data: bytes) -> JobRecord:
    return msgspec.json.decode(data, type=JobRecord)
