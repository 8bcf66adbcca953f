"""The job database: what is stored comes back, newer schemas are refused, a verdict follows from facts."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from shoal_server.control.jobs.store import JobRecord, JobStore, StoreTooNew, StoreUnusable, digest_of
from shoal_server.control.jobs.verdict import Ending, TrainerResult, judge
from shoal_server.errors import JobNotFound, StorageFull
from shoal_server.ipc.calls import JobEvent, JobStatus


def record(job_id: str) -> JobRecord:
    status = JobStatus(id=job_id, spec={"name": "m"}, state="queued")
    return JobRecord(status=status, request_id=f"request-{job_id}", digest="d")


def event(state: str) -> JobEvent:
    return JobEvent(sequence=0, time_s=1.0, kind="state", state=state)


def test_records_and_numbered_events_survive_reopening(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    store.insert(record("a"), event("queued"))
    store.update(record("a"), [event("validating"), event("running")])
    store.close()
    store = JobStore(tmp_path / "jobs.sqlite")
    assert store.get("a") == record("a")
    assert store.find_request("request-a") == record("a")
    assert [(e.sequence, e.state) for e in store.events("a", from_sequence=2, limit=9)] == [
        (2, "validating"),
        (3, "running"),
    ]
    store.close()


def test_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    JobStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(StoreTooNew, match=r"jobs\.sqlite has schema version 7"):
        JobStore(path)


def test_damaged_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreUnusable, match=r"jobs\.sqlite"):
        JobStore(path)


def test_unknown_job(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    with pytest.raises(JobNotFound):
        store.get("a")
    store.close()


def insert_many(store: JobStore, count: int) -> None:
    for number in range(count):
        store.insert(record(str(number)), event("queued"))


def test_full_database_changes_nothing(tmp_path: Path) -> None:
    """SQLite's own page limit stands in for a full disk: it raises the same error."""
    store = JobStore(tmp_path / "jobs.sqlite")
    store._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StorageFull, match="full"):
        insert_many(store, 1000)
    assert (
        store._db.execute("SELECT COUNT(*) FROM jobs").fetchone()
        == store._db.execute("SELECT COUNT(*) FROM events").fetchone()
    )
    store.close()


def test_digest_does_not_depend_on_key_order() -> None:
    assert digest_of({"a": 1, "b": {"c": 2, "d": 3}}) == digest_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


SUCCEEDED = TrainerResult(state="succeeded", published_version=1)


@pytest.mark.parametrize(
    ("facts", "state", "reason"),
    [
        ({"exit_code": 0, "result": SUCCEEDED}, "succeeded", ""),
        ({"exit_code": None, "result": SUCCEEDED}, "succeeded", ""),
        ({"exit_code": 75, "cancel_requested": True}, "cancelled", ""),
        ({"exit_code": 0, "result": SUCCEEDED, "cancel_requested": True}, "succeeded", ""),
        ({"exit_code": 75, "timed_out": True}, "failed", "timeout"),
        ({"exit_code": 75}, "interrupted", ""),
        ({"exit_code": -9}, "interrupted", ""),
        ({"exit_code": None}, "interrupted", ""),
        ({"exit_code": -9, "num_attempts": 3}, "failed", "worker_lost"),
        ({"exit_code": None, "num_attempts": 3}, "failed", "worker_lost"),
        ({"exit_code": -9, "disk_full": True}, "failed", "storage"),
        ({"exit_code": 65}, "failed", "bad_data"),
        ({"exit_code": 64}, "failed", "invalid_spec"),
        ({"exit_code": 3}, "failed", "internal"),
        ({"exit_code": 1, "result": TrainerResult(state="failed", failure_reason="diverged")}, "failed", "diverged"),
    ],
)
def test_verdicts(facts: dict[str, object], state: str, reason: str) -> None:
    defaults: dict[str, object] = {
        "exit_code": 0,
        "result": None,
        "cancel_requested": False,
        "timed_out": False,
        "disk_full": False,
        "num_attempts": 1,
        "max_attempts": 3,
    }
    verdict = judge(Ending(**{**defaults, **facts}))  # type: ignore[arg-type]
    assert (verdict.state, verdict.failure_reason) == (state, reason)
