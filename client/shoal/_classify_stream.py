"""One run of StreamClassify: tasks that take items, send and read, and the outcomes between them and the caller.

Bounded: an item holds one of `max_unanswered` slots from the moment it is taken from the caller's iterable until the
caller has taken its outcome. Knows the stream, not what inputs and results look like.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from shoal import types
from shoal._connection import Connection, Ticket, raise_cancelled
from shoal._kept_status import keep_status
from shoal._methods import STREAM_CLASSIFY
from shoal._refs import read_served_by, read_timings
from shoal.errors import DeadlineError, RpcError, from_status
from shoal.v1 import classify_pb2

_ITEMS_OF_A_MESSAGE = 32  # at most: enough to share a message's cost, few enough to keep several under way
Inputs = AsyncIterable[types.ClassifyInput] | Iterable[types.ClassifyInput]


@dataclass(frozen=True, slots=True)
class _Ended:
    """Nothing more will come; `error` says why, None when all went well."""

    error: BaseException | None = None


class ClassifyStreamRun:
    """State of one stream. Iterate one of `in_order` and `as_finished`, once."""

    def __init__(
        self,
        *,
        connection: Connection,
        ticket: Ticket,
        start: classify_pb2.StreamClassifyStart,
        build: Callable[[int, types.ClassifyInput], classify_pb2.ClassifyInput],
        read: Callable[[classify_pb2.Classification, Sequence[str]], types.Classification],
        max_unanswered: int,
        item_timeout_s: float | None,
    ) -> None:
        self._connection = connection
        self._ticket = ticket
        self._start = start
        self._build = build
        self._read = read
        self._item_timeout_s = item_timeout_s
        self._slots = asyncio.Semaphore(max_unanswered)
        self._taken: list[classify_pb2.StreamClassifyItem] = []  # and not sent
        self._all_taken = False
        self._news = asyncio.Event()  # something was taken, or all was
        self._sent_at: dict[int, float] = {}  # unanswered items, oldest first
        self._outcomes: asyncio.Queue[types.StreamedClassification | _Ended] = asyncio.Queue()
        self._labels: dict[tuple[str, int], tuple[str, ...]] = {}  # by model and version

    async def in_order(self, inputs: Inputs) -> AsyncGenerator[types.StreamedClassification, None]:
        """Outcomes in the order of the inputs."""
        early: dict[int, types.StreamedClassification] = {}
        wanted = 0
        async with aclosing(self._run(inputs)) as outcomes:
            async for outcome in outcomes:
                early[outcome.index] = outcome
                while wanted in early:
                    yield early.pop(wanted)
                    self._slots.release()
                    wanted += 1

    async def as_finished(self, inputs: Inputs) -> AsyncGenerator[types.StreamedClassification, None]:
        """Outcomes as they come."""
        async with aclosing(self._run(inputs)) as outcomes:
            async for outcome in outcomes:
                yield outcome
                self._slots.release()

    async def _run(self, inputs: Inputs) -> AsyncGenerator[types.StreamedClassification, None]:
        stub = self._connection.stub(STREAM_CLASSIFY, "stream_stream")
        call = keep_status(stub(timeout=self._ticket.timeout_s, metadata=self._connection.metadata(self._ticket)))
        work = (self._take_all(inputs), self._write_all(call), self._read_all(call))
        tasks = [asyncio.create_task(coroutine) for coroutine in work]
        try:
            while not isinstance(outcome := await self._next_outcome(), _Ended):
                yield outcome
            if outcome.error is not None:
                raise outcome.error
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next_outcome(self) -> types.StreamedClassification | _Ended:
        while self._outcomes.empty():
            try:
                async with asyncio.timeout(self._item_timeout_s):
                    return await self._outcomes.get()
            except TimeoutError:
                self._check_waiting()
        return self._outcomes.get_nowait()

    def _check_waiting(self) -> None:
        index, sent_at = next(iter(self._sent_at.items()), (0, None))
        if sent_at is None or self._item_timeout_s is None:
            return
        waited_s = asyncio.get_running_loop().time() - sent_at
        if waited_s >= self._item_timeout_s:
            message = f"item {index} was not answered within {self._item_timeout_s:g} s"
            raise DeadlineError(message, code=grpc.StatusCode.DEADLINE_EXCEEDED, request_id=self._ticket.request_id)

    async def _take_all(self, inputs: Inputs) -> None:
        """Take items from the caller as slots become free. What the caller's iterable raises ends the stream."""
        iterator = _iterate(inputs)
        try:
            for index in itertools.count():
                await self._slots.acquire()
                try:
                    item = await anext(iterator)
                except StopAsyncIteration:
                    break
                self._take(index, item)
                await asyncio.sleep(0)  # let the writer have it: to take the next one may block
        except Exception as error:
            self._outcomes.put_nowait(_Ended(error))
            return
        self._all_taken = True
        self._news.set()

    def _take(self, index: int, item: types.ClassifyInput) -> None:
        try:
            message = classify_pb2.StreamClassifyItem(id=index, input=self._build(index, item))
        except RpcError as error:
            self._outcomes.put_nowait(types.StreamedClassification(index=index, error=error))
            return
        self._taken.append(message)
        self._news.set()

    async def _write_all(self, call: Any) -> None:
        """Send everything, as many items a message as have been taken meanwhile. Why a call ended the reader tells."""
        try:
            await call.write(classify_pb2.StreamClassifyRequest(start=self._start))
            while self._taken or not self._all_taken:
                await self._news.wait()
                self._news.clear()
                while self._taken:
                    await self._write_items(call)
            await call.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            return

    async def _write_items(self, call: Any) -> None:
        items, self._taken = self._taken[:_ITEMS_OF_A_MESSAGE], self._taken[_ITEMS_OF_A_MESSAGE:]
        now_s = asyncio.get_running_loop().time()
        self._sent_at.update((item.id, now_s) for item in items)
        await call.write(classify_pb2.StreamClassifyRequest(items=items))

    async def _read_all(self, call: Any) -> None:
        """Read to the end. However it ends, exactly one `_Ended` follows the last outcome."""
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                for outcome in self._outcomes_of(response):
                    self._sent_at.pop(outcome.index, None)
                    self._outcomes.put_nowait(outcome)
            self._outcomes.put_nowait(_Ended())
        except grpc.aio.AioRpcError as error:
            self._outcomes.put_nowait(_Ended(self._connection.explain(error, self._ticket)))
        except asyncio.CancelledError:
            try:
                raise_cancelled(self._ticket)
            except RpcError as error:
                self._outcomes.put_nowait(_Ended(error))
        except Exception as error:
            self._outcomes.put_nowait(_Ended(error))

    def _outcomes_of(self, response: classify_pb2.StreamClassifyResponse) -> Iterator[types.StreamedClassification]:
        served_by, timings = read_served_by(response.served_by), read_timings(response.timings)
        version = (served_by.model, served_by.version)
        if response.labels:
            self._labels[version] = tuple(response.labels)
        labels = self._labels.get(version, ())
        for answer in response.answers:
            if answer.WhichOneof("outcome") == "error":
                error = from_status(answer.error, self._ticket.request_id)
                yield types.StreamedClassification(index=answer.id, error=error)
            else:
                result = self._read(answer.result, labels)
                yield types.StreamedClassification(index=answer.id, result=result, served_by=served_by, timings=timings)


async def _iterate(inputs: Inputs) -> AsyncIterator[types.ClassifyInput]:
    if isinstance(inputs, AsyncIterable):
        async for item in inputs:
            yield item
    else:
        for item in inputs:
            yield item
