"""Training jobs from queue to end: starts trainers, follows what they write, stops, retries and re-adopts them.

The only writer of job records. A trainer outlives the server; after a restart it is found by pid and start time. The
files of a job folder are the trainer's, except job.json. Terminal states are pronounced here alone, once the process
is gone and all that it wrote has been read.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shoal_server.control.jobs.launchers.local import LocalLauncher, ProcessIdentity, RunningTrainer
from shoal_server.control.jobs.store import FINAL_STATES, JobRecord, JobStore
from shoal_server.control.jobs.tail import RESULT_NAME, read_events, read_result
from shoal_server.control.jobs.verdict import Ending, Verdict, judge
from shoal_server.errors import JobNotCancellable, JobRunning, StorageFull
from shoal_server.ipc.calls import JobEvent, JobStatus
from shoal_server.log import Log

TICK_S = 0.2  # between looks at running trainers
STOP_GRACE_S = 20.0  # between SIGTERM and SIGKILL: time for a last checkpoint
FULL_DISK_BYTES = 2**20  # a trainer that dies with less than this free died of it
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_log = Log(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """What jobs need of the configuration."""

    jobs_dir: Path
    repository: str
    dataset_dir: str
    data_roots: tuple[str, ...]
    max_running_jobs: int
    max_attempts: int
    num_threads: int
    stop_grace_s: float = STOP_GRACE_S


@dataclass(slots=True, kw_only=True)
class _Running:
    """A trainer that runs now."""

    trainer: RunningTrainer
    kill_at_s: float | None = None  # monotonic; set once it was told to stop


class Supervisor:
    """All jobs that have not ended."""

    def __init__(
        self,
        settings: JobSettings,
        store: JobStore,
        launcher: LocalLauncher,
        *,
        on_published: Callable[[str, int], None],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._settings = settings
        self._launcher = launcher
        self._on_published = on_published
        self._now_s = now_s
        self._running: dict[str, _Running] = {}
        self._changed: dict[str, asyncio.Event] = {}  # set and forgotten at a job's next change
        self._wake = asyncio.Event()

    # --- what people ask for ----------------------------------------------------------------------------------------

    def enqueue(self, record: JobRecord) -> JobStatus:
        """Queue a new job.

        Raises:
            StorageFull: nothing was queued.
        """
        self.store.insert(record, self._state_event("queued"))
        _log.info("job_queued", job=record.id, model=record.status.spec.get("name"))
        self._wake.set()
        return record.status

    async def cancel(self, job_id: str, *, wait_s: float) -> JobStatus:
        """Stop a job; waits a while for its end, so that the answer usually shows it.

        Raises:
            JobNotFound: there is none.
            JobNotCancellable: it has ended otherwise.
        """
        record = self.store.get(job_id)
        if record.status.state == "cancelled":
            return record.status
        if record.status.state in FINAL_STATES:
            raise JobNotCancellable(f"job {job_id} has {record.status.state}")
        record = msgspec.structs.replace(record, cancel_requested=True)
        if job_id in self._running:
            self.store.update(record, [])
            self._ask_to_stop(job_id)
        else:
            self._finish(record, Verdict(state="cancelled"))
        await self._wait_final(job_id, wait_s)
        return self.store.get(job_id).status

    async def delete(self, job_id: str) -> None:
        """Remove a job that has ended, folder and record.

        Raises:
            JobNotFound, JobRunning.
        """
        record = self.store.get(job_id)
        if record.status.state not in FINAL_STATES:
            raise JobRunning(f"job {job_id} is {record.status.state}; cancel it first")
        await asyncio.to_thread(shutil.rmtree, self.job_dir(job_id), ignore_errors=True)
        self.store.delete(job_id)
        self._notify(job_id)

    def change_of(self, job_id: str) -> asyncio.Event:
        """Set at the next change of the job; ask before looking at the job, then wait."""
        return self._changed.setdefault(job_id, asyncio.Event())

    def running_pids(self) -> dict[str, int]:
        """Process ids of running trainers, by job id."""
        return {job_id: running.trainer.identity.pid for job_id, running in self._running.items()}

    def job_dir(self, job_id: str) -> Path:
        """The folder of a job."""
        return self._settings.jobs_dir / job_id

    # --- the loop ---------------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over the trainers of an earlier server; call once, before `run`."""
        for record in self.store.unfinished():
            if record.pid:
                identity = ProcessIdentity(pid=record.pid, start_ticks=record.process_start_ticks)
                self._running[record.id] = _Running(trainer=self._launcher.adopt(identity))
                _log.info("job_adopted", job=record.id, pid=record.pid)
                if record.cancel_requested:
                    self._ask_to_stop(record.id)

    async def run(self) -> None:
        """Supervise until cancelled. Trainers go on without us."""
        while True:
            self._wake.clear()
            self.tick()
            try:
                await asyncio.wait_for(self._wake.wait(), TICK_S if self._running else None)
            except TimeoutError:
                continue

    def tick(self) -> None:
        """One look at everything. What a full disk leaves unwritten is tried again at the next."""
        try:
            for job_id in list(self._running):
                self._look_after(job_id)
            self._start_waiting()
        except StorageFull as error:
            _log.error("job_store_unwritable", error=error)

    def _look_after(self, job_id: str) -> None:
        running = self._running[job_id]
        has_ended = running.trainer.has_ended()  # before reading, so that nothing written is missed
        record = self._read_news(self.store.get(job_id))
        if has_ended:
            self._conclude(record, running)
        elif running.kill_at_s is not None:
            if time.monotonic() >= running.kill_at_s:
                running.trainer.signal_group(signal.SIGKILL)
        elif self._is_over_time(record.status):
            _log.warning("job_over_time", job=job_id, limit_s=record.status.spec.get("time_limit_s"))
            self._ask_to_stop(job_id)

    def _start_waiting(self) -> None:
        for record in self.store.unfinished():
            if len(self._running) >= self._settings.max_running_jobs:
                return
            if record.id not in self._running:
                self._start(record)

    def _start(self, record: JobRecord) -> None:
        job_dir = self.job_dir(record.id)
        attempt = record.status.num_attempts + 1
        try:
            job_dir.mkdir(parents=True, exist_ok=True)
            (job_dir / RESULT_NAME).unlink(missing_ok=True)
            (job_dir / "job.json").write_bytes(msgspec.json.encode(self._describe(record, attempt)))
            trainer = self._launcher.start(job_dir, num_threads=self._settings.num_threads)
        except OSError as error:
            reason = "storage" if error.errno in _STORAGE_ERRORS else "internal"
            message = f"the trainer could not be started: {error.strerror or error}"
            self._finish(record, Verdict(state="failed", failure_reason=reason, failure_message=message))
            return
        status = msgspec.structs.replace(
            record.status,
            state="validating",
            num_attempts=attempt,
            start_time_s=record.status.start_time_s or self._now_s(),
        )
        identity = trainer.identity
        record = msgspec.structs.replace(
            record, status=status, pid=identity.pid, process_start_ticks=identity.start_ticks
        )
        try:
            self._save(record, [self._state_event("validating")])
        except StorageFull:
            trainer.signal_group(signal.SIGKILL)  # a trainer that no record names would be lost at a restart
            raise
        self._running[record.id] = _Running(trainer=trainer)
        _log.info("job_started", job=record.id, attempt=attempt, pid=identity.pid)

    def _describe(self, record: JobRecord, attempt: int) -> dict[str, Any]:
        """What job.json tells the trainer."""
        return {
            "job_id": record.id,
            "spec": record.status.spec,
            "repository": self._settings.repository,
            "dataset_dir": self._settings.dataset_dir,
            "data_roots": list(self._settings.data_roots),
            "attempt": attempt,
            "num_threads": self._settings.num_threads,
        }

    def _read_news(self, record: JobRecord) -> JobRecord:
        """Take in what the trainer has written since; its events and our position move in one transaction."""
        lines = read_events(self.job_dir(record.id), record.events_offset)
        if lines.offset == record.events_offset:
            return record
        if lines.num_malformed:
            _log.warning("job_events_malformed", job=record.id, num_lines=lines.num_malformed)
        status, kept = record.status, []
        for event in lines.events:
            changed = apply_event(status, event)
            if changed is not None:
                status = changed
                kept.append(event)
        record = msgspec.structs.replace(record, status=status, events_offset=lines.offset)
        self._save(record, kept)
        for event in kept:
            if event.kind == "published":
                _log.info("job_published", job=record.id, model=event.model, version=event.version)
                self._on_published(event.model, event.version)
        return record

    def _conclude(self, record: JobRecord, running: _Running) -> None:
        """The trainer is gone: read the rest, then say what became of the job."""
        while (later := self._read_news(record)).events_offset != record.events_offset:
            record = later
        result = read_result(self.job_dir(record.id))
        verdict = judge(
            Ending(
                exit_code=running.trainer.exit_code,
                result=result,
                cancel_requested=record.cancel_requested,
                timed_out=self._is_over_time(record.status),
                disk_full=_is_disk_full(self._settings.jobs_dir),
                num_attempts=record.status.num_attempts,
                max_attempts=self._settings.max_attempts,
            )
        )
        if result is not None:
            status = msgspec.structs.replace(
                record.status,
                metrics=result.metrics or record.status.metrics,
                published_version=result.published_version or record.status.published_version,
            )
            record = msgspec.structs.replace(record, status=status)
        self._finish(record, verdict)
        del self._running[record.id]

    def _finish(self, record: JobRecord, verdict: Verdict) -> None:
        """Write the verdict: a final state, or interrupted and queued again."""
        reason, message = verdict.failure_reason, verdict.failure_message
        events = [self._state_event(verdict.state, reason, message)]
        is_final = verdict.state in FINAL_STATES
        if not is_final:
            events.append(self._state_event("queued"))
        status = msgspec.structs.replace(
            record.status,
            state=events[-1].state,
            failure_reason=reason,
            failure_message=message,
            end_time_s=self._now_s() if is_final else 0.0,
        )
        self._save(msgspec.structs.replace(record, status=status, pid=0, process_start_ticks=0), events)
        log = _log.warning if verdict.state in ("failed", "interrupted") else _log.info
        log("job_" + verdict.state, job=record.id, reason=reason or "-", detail=message or "-")

    def _ask_to_stop(self, job_id: str) -> None:
        running = self._running[job_id]
        if running.kill_at_s is None:
            running.kill_at_s = time.monotonic() + self._settings.stop_grace_s
            running.trainer.signal_group(signal.SIGTERM)
        self._wake.set()

    async def _wait_final(self, job_id: str, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    change = self.change_of(job_id)
                    if self.store.get(job_id).status.state in FINAL_STATES:
                        return
                    await change.wait()
        except TimeoutError:
            return

    def _is_over_time(self, status: JobStatus) -> bool:
        limit_s = status.spec.get("time_limit_s")
        return isinstance(limit_s, int | float) and limit_s > 0 and self._now_s() - status.start_time_s >= limit_s

    def _state_event(self, state: str, reason: str = "", message: str = "") -> JobEvent:
        return JobEvent(
            sequence=0,
            time_s=self._now_s(),
            kind="state",
            state=state,
            failure_reason=reason,
            failure_message=message,
        )

    def _save(self, record: JobRecord, events: list[JobEvent]) -> None:
        self.store.update(record, events)
        self._notify(record.id)

    def _notify(self, job_id: str) -> None:
        if change := self._changed.pop(job_id, None):
            change.set()


def apply_event(status: JobStatus, event: JobEvent) -> JobStatus | None:
    """The status after a trainer's event; None for an event that is not to be kept.

    Terminal and waiting states are the supervisor's to say; a state that was said already is not repeated.
    """
    match event.kind:
        case "state" if event.state in FINAL_STATES | {"queued", "interrupted", status.state}:
            return None
        case "state":
            return msgspec.structs.replace(status, state=event.state)
        case "progress":
            return msgspec.structs.replace(status, progress=event.progress)
        case "evaluation" if event.final:
            return msgspec.structs.replace(status, metrics=event.metrics)
        case "published":
            return msgspec.structs.replace(status, published_version=event.version)
        case _:
            return status


def _is_disk_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < FULL_DISK_BYTES
