"""One StreamClassify call: items are read while there is room, run side by side, and answered as they finish.

An item has its place from when it is read until its answer is written, so a client that does not read its answers is
soon not read from either, and what the server holds for it is bounded.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from shoal.v1 import classify_pb2

from shoal_server.errors import Draining, InternalFault, InvalidRequest, ServerError
from shoal_server.front import convert, convert_classify
from shoal_server.front.classifier import Classified, Classifier
from shoal_server.front.front import Front
from shoal_server.front.heads import check_options
from shoal_server.front.interceptors import Incoming, Outgoing
from shoal_server.front.routing import ModelReference, ServedVersion
from shoal_server.front.rpc import DRAIN_RETRY_S, Rpc
from shoal_server.front.status import to_status
from shoal_server.ipc.messages import ModelKind, Priority
from shoal_server.log import Log

_log = Log(__name__)
_Requests = Incoming[classify_pb2.StreamClassifyRequest]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What holds for every item."""

    reference: ModelReference
    settings: convert_classify.ClassifySettings
    priority: Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The outcome of one item: a result of a version, or an error."""

    item_id: int
    served: ServedVersion | None = None
    result: Classified | None = None
    error: ServerError | None = None
    is_duplicate: bool = False  # the id belongs to another item, which is still to be answered


class ClassifyStream:
    """The state of one call."""

    def __init__(self, rpc: Rpc, front: Front, classifier: Classifier, outgoing: Outgoing) -> None:
        self._rpc = rpc
        self._front = front
        self._classifier = classifier
        self._outgoing = outgoing
        self._room = asyncio.Semaphore(front.config.limits.max_stream_items)
        self._unanswered: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: asyncio.Queue[_Answer | None] = asyncio.Queue()  # bounded by `_room`; None ends it
        self._labelled: ServedVersion | None = None  # whose labels the client has seen last

    async def run(self, requests: _Requests) -> None:
        """Serve the stream to its end.

        Raises:
            ServerError: `start` was wrong, a message was not an item, or the server drains.
        """
        start = await self._read_start(requests)
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read(requests, start))
        drain = asyncio.create_task(self._front.draining.wait())
        try:
            done, _ = await asyncio.wait({reader, writer, drain}, return_when=asyncio.FIRST_COMPLETED)
            if writer in done:
                writer.result()  # raises: the client is gone
            if reader in done:
                reader.result()  # raises: what the client said was wrong
            reader.cancel()
            await self._finish(writer)
            if reader not in done:
                raise Draining("the server is shutting down", retry_after_s=DRAIN_RETRY_S)
        finally:
            await _cancel(reader, writer, drain, *self._tasks)

    async def _read_start(self, requests: _Requests) -> _Start:
        message = await requests.read()
        if message is None or message.WhichOneof("message") != "start":
            raise InvalidRequest.of("start", "must be the first message of the stream")
        start = _Start(
            reference=convert.model_reference(message.start.model, "start.model"),
            settings=convert_classify.settings(message.start.options, "start.options"),
            priority=convert.priority(message.start.priority),
        )
        served = self._front.router.resolve(start.reference, ModelKind.CLASSIFIER)
        check_options(start.settings, served.text.manifest.head)
        self._rpc.resolved(served.metrics)
        return start

    async def _read(self, requests: _Requests, start: _Start) -> None:
        while True:
            await self._room.acquire()
            message = await requests.read()
            if message is None:
                return
            if message.WhichOneof("message") != "item":
                raise InvalidRequest.of("item", "every message after the first must be an item")
            item = message.item
            if item.id in self._unanswered:
                error = InvalidRequest.of("item.id", f"{item.id} is the id of an item that is not answered yet")
                self._refuse(item.id, error, is_duplicate=True)
            else:
                self._unanswered.add(item.id)
                task = asyncio.create_task(self._work(item, start))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _work(self, item: classify_pb2.StreamClassifyItem, start: _Start) -> None:
        """Run one item; whatever happens, it is answered."""
        router = self._front.router
        try:
            one = convert_classify.one_input(item.input, "item.input", self._front.config.limits)
            served = router.begin(start.reference, ModelKind.CLASSIFIER)
            try:
                result = await self._classifier.classify(
                    served, [one], start.settings, priority=start.priority, deadline_s=self._rpc.deadline_s
                )
            finally:
                router.end(served)
            self._answers.put_nowait(_Answer(item_id=item.id, served=served, result=result))
        except ServerError as error:
            self._refuse(item.id, error)
        except Exception as error:
            _log.error("item_fault", request_id=self._rpc.request_id, error=type(error).__name__)
            self._refuse(item.id, InternalFault(f"internal error in request {self._rpc.request_id}"))

    def _refuse(self, item_id: int, error: ServerError, *, is_duplicate: bool = False) -> None:
        self._front.metrics.count_rejected(error.reason, self._rpc.version)
        self._answers.put_nowait(_Answer(item_id=item_id, error=error, is_duplicate=is_duplicate))

    async def _finish(self, writer: asyncio.Task[None]) -> None:
        """Nothing more is read: wait for the items under way and for their answers to be written."""
        if items := set(self._tasks):
            all_items = asyncio.ensure_future(asyncio.wait(items))
            await asyncio.wait({writer, all_items}, return_when=asyncio.FIRST_COMPLETED)
            all_items.cancel()
        self._answers.put_nowait(None)
        await writer

    async def _write(self) -> None:
        while (answer := await self._answers.get()) is not None:
            if not answer.is_duplicate:
                self._unanswered.discard(answer.item_id)
            await self._outgoing.write(self._message(answer))
            self._room.release()

    def _message(self, answer: _Answer) -> classify_pb2.StreamClassifyResponse:
        if answer.error is not None:
            return classify_pb2.StreamClassifyResponse(id=answer.item_id, error=to_status(answer.error))
        served, result = answer.served, answer.result
        assert served is not None, "a result has a version"
        assert result is not None, "an answer has a result or an error"
        message = classify_pb2.StreamClassifyResponse(
            id=answer.item_id,
            result=convert_classify.classifications(result.found, result.counts)[0],
            served_by=convert.served_by(served.key),
            timings=convert.timings_of(tokenize_s=result.tokenize_s, queue_s=result.queue_s, run_s=result.run_s),
        )
        if served is not self._labelled:
            self._labelled = served
            message.labels.extend(served.text.manifest.labels)
            message.head = convert_classify.head_kind(served.text.manifest.head)
        return message


async def _cancel(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
