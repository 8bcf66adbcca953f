"""Calls of TrainService: building requests, reading answers, following a job through lost connections."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Unpack

from shoal import types
from shoal._connection import Connection
from shoal._methods import (
    CANCEL_TRAINING_JOB,
    CREATE_TRAINING_JOB,
    DELETE_DATASET,
    DELETE_TRAINING_JOB,
    GET_DATASET,
    GET_TRAINING_JOB,
    LIST_TRAINING_JOBS,
    WATCH_TRAINING_JOB,
)
from shoal._stream import AsyncStream
from shoal._train_read import read_dataset, read_event, read_job
from shoal._upload import upload
from shoal.errors import DeadlineError, UnavailableError
from shoal.spec import parse_spec
from shoal.types import TrainingSpec
from shoal.v1 import train_pb2

PAGE_SIZE = 1000
WATCH_CALL_S = 3600.0  # deadline of one call of a watch, which then goes on with another
FIRST_PAUSE_S = 0.2  # before a lost watch is taken up again; doubled each time, up to the longest
LONGEST_PAUSE_S = 5.0


class TrainCalls:
    """What `AsyncClient` offers of TrainService."""

    _connection: Connection

    async def upload_dataset(
        self,
        path: str | Path,
        *,
        format: types.DataFormat | None = None,  # noqa: A002 - the word of the protocol
        on_progress: Callable[[int, int], None] | None = None,
        **options: Unpack[types.CallOptions],
    ) -> types.Dataset:
        """Store a file; its name is made of its digest, and a file that the server has is not sent again.

        Args:
            path: a csv, jsonl or parquet file.
            format: where the ending does not tell.
            on_progress: called with bytes sent and bytes in all.
            options: see `CallOptions`; default deadline: 3600 s.

        Raises:
            InvalidRequestError: the format is unknown, the file is empty or too large.
            OSError: the file cannot be read.
        """
        return await upload(self._connection, Path(path), format, on_progress, options)

    async def get_dataset(self, name: str, **options: Unpack[types.CallOptions]) -> types.Dataset:
        """Size and format of a dataset, named `dataset://<sha256>`."""
        ticket = self._connection.ticket(GET_DATASET, options)
        response = await self._connection.unary(GET_DATASET, train_pb2.GetDatasetRequest(name=name), ticket)
        return read_dataset(response.dataset)

    async def delete_dataset(self, name: str, **options: Unpack[types.CallOptions]) -> None:
        """Delete a dataset.

        Raises:
            PreconditionError: a job that has not ended names it.
        """
        ticket = self._connection.ticket(DELETE_DATASET, options)
        await self._connection.unary(DELETE_DATASET, train_pb2.DeleteDatasetRequest(name=name), ticket)

    async def create_training_job(
        self,
        spec: TrainingSpec | Mapping[str, Any],
        *,
        validate_only: bool = False,
        **options: Unpack[types.CallOptions],
    ) -> types.TrainingJob:
        """Queue a job, or with `validate_only` only check and resolve its spec.

        Safe to repeat with the same `request_id`: the first call's job is returned.

        Args:
            spec: the message, or a tree as in a YAML spec (see `shoal.spec`).
            validate_only: the result has only `spec`.
            options: see `CallOptions`.

        Raises:
            InvalidRequestError: fields of the spec are wrong.
            NotFoundError: dataset or base model are not there.
            AlreadyExistsError: the request id was used with another spec.
        """
        message = parse_spec(spec) if isinstance(spec, Mapping) else spec
        options = {**options, "request_id": options.get("request_id") or uuid.uuid4().hex}
        ticket = self._connection.ticket(CREATE_TRAINING_JOB, options)
        request = train_pb2.CreateTrainingJobRequest(
            request_id=ticket.request_id, spec=message, validate_only=validate_only
        )
        return read_job((await self._connection.unary(CREATE_TRAINING_JOB, request, ticket)).job)

    async def get_training_job(self, job_id: str, **options: Unpack[types.CallOptions]) -> types.TrainingJob:
        """All about a job."""
        ticket = self._connection.ticket(GET_TRAINING_JOB, options)
        response = await self._connection.unary(GET_TRAINING_JOB, train_pb2.GetTrainingJobRequest(id=job_id), ticket)
        return read_job(response.job)

    async def list_training_jobs(
        self, *, limit: int | None = None, **options: Unpack[types.CallOptions]
    ) -> list[types.TrainingJob]:
        """Jobs, newest first; by default all of them."""
        jobs: list[types.TrainingJob] = []
        page_token = ""
        while limit is None or len(jobs) < limit:
            page_size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(jobs))
            request = train_pb2.ListTrainingJobsRequest(page_size=page_size, page_token=page_token)
            ticket = self._connection.ticket(LIST_TRAINING_JOBS, options)
            page = await self._connection.unary(LIST_TRAINING_JOBS, request, ticket)
            jobs += [read_job(job) for job in page.jobs]
            page_token = page.next_page_token
            if not page_token:
                break
        return jobs

    async def cancel_training_job(self, job_id: str, **options: Unpack[types.CallOptions]) -> types.TrainingJob:
        """Stop a job.

        Raises:
            PreconditionError: it has ended otherwise.
        """
        ticket = self._connection.ticket(CANCEL_TRAINING_JOB, options)
        request = train_pb2.CancelTrainingJobRequest(id=job_id)
        return read_job((await self._connection.unary(CANCEL_TRAINING_JOB, request, ticket)).job)

    async def delete_training_job(self, job_id: str, **options: Unpack[types.CallOptions]) -> None:
        """Delete the record of a job that has ended; what it published stays.

        Raises:
            PreconditionError: it has not ended.
        """
        ticket = self._connection.ticket(DELETE_TRAINING_JOB, options)
        await self._connection.unary(DELETE_TRAINING_JOB, train_pb2.DeleteTrainingJobRequest(id=job_id), ticket)

    def watch_training_job(
        self,
        job_id: str,
        *,
        from_sequence: int = 1,
        resume_s: float = 120.0,
        **options: Unpack[types.CallOptions],
    ) -> AsyncStream[types.TrainingEvent]:
        """A job's events from a sequence number on, those past first, until its last.

        Each comes once and in order: where the connection is lost or the server restarts, the watch goes on after the
        last one seen, and gives up when nothing came for `resume_s` seconds. `timeout` bounds the watch as a whole
        (default: none).

        Raises:
            NotFoundError: while iterating; there is no such job.
            UnavailableError: while iterating; the server did not come back.
        """
        self._connection.ticket(WATCH_TRAINING_JOB, options)  # refuses what cannot be sent, now rather than later
        return AsyncStream(self._watch(job_id, from_sequence, resume_s, options))

    async def _watch(
        self, job_id: str, from_sequence: int, resume_s: float, options: types.CallOptions
    ) -> AsyncGenerator[types.TrainingEvent, None]:
        clock = asyncio.get_running_loop().time
        whole_s = options.get("timeout")
        ends_at = None if whole_s is None else clock() + whole_s
        wanted, last_seen, pause_s = max(1, from_sequence), clock(), FIRST_PAUSE_S
        while True:
            left_s = WATCH_CALL_S if ends_at is None else max(0.001, ends_at - clock())
            ticket = self._connection.ticket(WATCH_TRAINING_JOB, {**options, "timeout": left_s})
            request = train_pb2.WatchTrainingJobRequest(id=job_id, from_sequence=wanted)
            try:
                async with aclosing(self._connection.stream(WATCH_TRAINING_JOB, request, ticket)) as responses:
                    async for response in responses:
                        if response.event.sequence < wanted:
                            continue
                        wanted, pause_s = response.event.sequence + 1, FIRST_PAUSE_S
                        yield read_event(response.event)
                        last_seen = clock()
                return
            except DeadlineError:
                if ends_at is not None:
                    raise
                last_seen = clock()
            except UnavailableError as error:
                pause_s = max(pause_s, error.retry_after_s or 0)
                if clock() - last_seen + pause_s > resume_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
