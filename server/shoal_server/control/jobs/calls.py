"""What the Train service asks of control about jobs."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from shoal_server.control.datasets import NAME_PREFIX
from shoal_server.control.jobs.resolve import Resolver
from shoal_server.control.jobs.store import FINAL_STATES, JobRecord, JobStore, digest_of
from shoal_server.control.jobs.supervisor import Supervisor
from shoal_server.control.page_tokens import check_page_size, decode_page_token, encode_page_token
from shoal_server.errors import AlreadyExists, InvalidRequest, TooManyJobs
from shoal_server.ipc.calls import (
    CancelJob,
    CreateJob,
    DeleteJob,
    Empty,
    GetJob,
    JobEvent,
    JobPage,
    JobStatus,
    ListJobs,
    WatchJob,
)

CANCEL_WAIT_S = 5.0
TOO_MANY_RETRY_S = 30.0
_WATCH_BATCH = 500
_REQUEST_ID = re.compile(r"[!-~]{1,64}")


class JobCalls:
    """Handlers of calls about jobs."""

    def __init__(self, supervisor: Supervisor, resolver: Resolver, *, max_waiting_jobs: int) -> None:
        self._supervisor = supervisor
        self._resolver = resolver
        self._max_waiting_jobs = max_waiting_jobs

    @property
    def _store(self) -> JobStore:
        return self._supervisor.store

    async def create(self, call: CreateJob) -> JobStatus:
        """Queue a job, once for each request id; or only resolve its spec.

        Raises:
            InvalidRequest, ModelNotFound, DatasetNotFound, Precondition: the spec, or training is not installed.
            AlreadyExists: the request id has made a job of another spec.
            TooManyJobs, StorageFull.
        """
        if call.validate_only:
            return JobStatus(id="", spec=await self._resolver.resolve(call.spec), state="")
        if not _REQUEST_ID.fullmatch(call.request_id):
            raise InvalidRequest.of("request_id", "must be 1 to 64 visible ASCII characters")
        digest = digest_of(call.spec)
        if existing := self._find(call.request_id, digest):
            return existing
        self._check_room()
        resolved = await self._resolver.resolve(call.spec)
        if existing := self._find(call.request_id, digest):  # the same call, twice at the same time
            return existing
        self._check_room()
        status = JobStatus(id=f"job-{secrets.token_hex(6)}", spec=resolved, state="queued", create_time_s=time.time())
        return self._supervisor.enqueue(JobRecord(status=status, request_id=call.request_id, digest=digest))

    async def get(self, call: GetJob) -> JobStatus:
        """One job."""
        return self._store.get(call.id).status

    async def list_jobs(self, call: ListJobs) -> JobPage:
        """Jobs, newest first."""
        position = decode_page_token("jobs", call.page_token)
        if position and not position.isdigit():
            raise InvalidRequest.of("page_token", "is not from an earlier response of this listing")
        page = self._store.list_page(
            limit=check_page_size(call.page_size), before_ordinal=int(position) if position else None
        )
        token = encode_page_token("jobs", str(page.next_ordinal)) if page.next_ordinal is not None else ""
        return JobPage(jobs=[record.status for record in page.records], next_page_token=token)

    async def cancel(self, call: CancelJob) -> JobStatus:
        """Stop a job; the answer shows its end when that comes soon."""
        return await self._supervisor.cancel(call.id, wait_s=CANCEL_WAIT_S)

    async def delete(self, call: DeleteJob) -> Empty:
        """Remove a job that has ended."""
        await self._supervisor.delete(call.id)
        return Empty()

    async def watch(self, call: WatchJob) -> AsyncIterator[JobEvent]:
        """Events from a sequence number on: those past, then each as it happens, until the job has ended."""
        self._store.get(call.id)
        following = max(1, call.from_sequence)
        while True:
            change = self._supervisor.change_of(call.id)
            is_final = self._store.get(call.id).status.state in FINAL_STATES
            events = self._store.events(call.id, from_sequence=following, limit=_WATCH_BATCH)
            for event in events:
                following = event.sequence + 1
                yield event
            if events:
                continue
            if is_final:
                return
            await change.wait()

    def _find(self, request_id: str, digest: str) -> JobStatus | None:
        record = self._store.find_request(request_id)
        if record is not None and record.digest != digest:
            raise AlreadyExists(f"request id {request_id!r} has made {record.id} of another spec")
        return record.status if record else None

    def _check_room(self) -> None:
        counts = self._store.count_by_state()
        num_waiting = counts.get("queued", 0) + counts.get("interrupted", 0)
        if num_waiting >= self._max_waiting_jobs:
            raise TooManyJobs(
                f"{num_waiting} jobs wait already; limit {self._max_waiting_jobs}", retry_after_s=TOO_MANY_RETRY_S
            )


def datasets_of(spec: dict[str, Any]) -> set[str]:
    """Names of the datasets that a resolved spec refers to."""
    data = spec.get("data") or {}
    names = (str(data.get("train")), str(data.get("validation")))
    return {name for name in names if name.startswith(NAME_PREFIX)}


def base_of(spec: dict[str, Any]) -> str:
    """The repository model that a resolved spec begins from, as `name` or `name@version`; empty where there is none."""
    return str((spec.get("base") or {}).get("model") or "")
