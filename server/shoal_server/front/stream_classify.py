"""One StreamClassify call: messages are read while there is room, run side by side, and answered as they finish.

The items of one message stay together: one call to the engine, one message of answers. An item has its place from when
it is read until its answer is written, so a client that does not read its answers is soon not read from either, and
what the server holds for it is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

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

MAX_MESSAGE_ITEMS: Final = 256
_log = Log(__name__)
_Requests = Incoming[classify_pb2.StreamClassifyRequest]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What holds for every item."""

    reference: ModelReference
    settings: convert_classify.ClassifySettings
    priority: Priority


@dataclass(slots=True, kw_only=True)
class _Group:
    """The items of one message, and the message that answers them. Held by one task at a time."""

    num_items: int
    item_ids: list[int] = field(default_factory=list)  # taken until the answers are written; not those of duplicates
    waiting_ids: list[int] = field(default_factory=list)  # of those that are to be answered with results
    inputs: list[convert_classify.Input] = field(default_factory=list)  # theirs
    response: classify_pb2.StreamClassifyResponse = field(default_factory=classify_pb2.StreamClassifyResponse)
    served: ServedVersion | None = None  # who gave the results

    def answer(self, served: ServedVersion, result: Classified) -> None:
        """Everything that waits has its result."""
        self.served = served
        self.response.served_by.CopyFrom(convert.served_by(served.key))
        self.response.timings.CopyFrom(
            convert.timings_of(tokenize_s=result.tokenize_s, queue_s=result.queue_s, run_s=result.run_s)
        )
        found = convert_classify.classifications(result.found, result.counts)
        for item_id, classification in zip(self.waiting_ids, found, strict=True):
            self.response.answers.add(id=item_id, result=classification)


class ClassifyStream:
    """The state of one call."""

    def __init__(self, rpc: Rpc, front: Front, classifier: Classifier, outgoing: Outgoing) -> None:
        self._rpc = rpc
        self._front = front
        self._classifier = classifier
        self._outgoing = outgoing
        self._num_held = 0  # items read whose answers are not written
        self._has_room = asyncio.Event()
        self._unanswered: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answered: asyncio.Queue[_Group | None] = asyncio.Queue()  # bounded by `_num_held`; None ends it
        self._labelled: ServedVersion | None = None  # whose labels the client has seen last
        self._hold(0)

    async def run(self, requests: _Requests) -> None:
        """Serve the stream to its end.

        Raises:
            ServerError: `start` was wrong, a message was not what it should be, or the server drains.
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
        if message is None or not message.HasField("start"):
            raise InvalidRequest.of("start", "must be in the first message of the stream")
        if message.items:
            raise InvalidRequest.of("items", "must not be in the first message of the stream")
        start = _Start(
            reference=convert.model_reference(message.start.model, "start.model"),
            settings=convert_classify.settings(message.start.options, "start.options"),
            priority=convert.priority(message.start.priority),
        )
        served = await self._front.waker.resolve(self._rpc, start.reference, ModelKind.CLASSIFIER)
        check_options(start.settings, served.text.manifest.head)
        self._rpc.resolved(served.metrics)
        return start

    async def _read(self, requests: _Requests, start: _Start) -> None:
        while True:
            await self._has_room.wait()
            message = await requests.read()
            if message is None:
                return
            if message.HasField("start"):
                raise InvalidRequest.of("start", "must not be in a message after the first")
            convert_classify.check_number(message.items, "items", MAX_MESSAGE_ITEMS)
            self._hold(len(message.items))
            task = asyncio.create_task(self._work(self._claim(message.items), start))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _claim(self, items: Sequence[classify_pb2.StreamClassifyItem]) -> _Group:
        """Take the ids of a message; those that other items have are refused."""
        group = _Group(num_items=len(items))
        for item in items:
            if item.id in self._unanswered:
                error = InvalidRequest.of("id", f"{item.id} is that of an item which is not answered yet")
                self._refuse(group, item.id, error)
                continue
            self._unanswered.add(item.id)
            group.item_ids.append(item.id)
            try:
                one = convert_classify.one_input(item.input, "input", self._front.config.limits)
            except InvalidRequest as error:
                self._refuse(group, item.id, error)
                continue
            group.waiting_ids.append(item.id)
            group.inputs.append(one)
        return group

    async def _work(self, group: _Group, start: _Start) -> None:
        """Run the items of one message; whatever happens, each is answered."""
        try:
            if group.inputs:
                await self._classify(group, start)
        except ServerError as error:
            self._refuse_waiting(group, error)
        except Exception as error:
            _log.error("items_fault", request_id=self._rpc.request_id, error=type(error).__name__)
            self._refuse_waiting(group, InternalFault(f"internal error in request {self._rpc.request_id}"))
        self._answered.put_nowait(group)

    async def _classify(self, group: _Group, start: _Start) -> None:
        refused: set[int] = set()

        def refuse(index: int, error: InvalidRequest) -> None:
            refused.add(index)
            self._refuse(group, group.waiting_ids[index], error)

        served = await self._front.waker.begin(self._rpc, start.reference, ModelKind.CLASSIFIER)
        try:
            result = await self._classifier.classify(
                served,
                group.inputs,
                start.settings,
                priority=start.priority,
                deadline_s=self._rpc.deadline_s,
                refuse=refuse,
            )
        finally:
            self._front.router.end(served)
            group.waiting_ids = [item_id for i, item_id in enumerate(group.waiting_ids) if i not in refused]
        if group.waiting_ids:
            group.answer(served, result)

    def _refuse_waiting(self, group: _Group, error: ServerError) -> None:
        for item_id in group.waiting_ids:
            self._refuse(group, item_id, error)

    def _refuse(self, group: _Group, item_id: int, error: ServerError) -> None:
        self._front.metrics.count_rejected(error.reason, self._rpc.version)
        group.response.answers.add(id=item_id, error=to_status(error))

    async def _finish(self, writer: asyncio.Task[None]) -> None:
        """Nothing more is read: wait for the items under way and for their answers to be written."""
        if items := set(self._tasks):
            all_items = asyncio.ensure_future(asyncio.wait(items))
            await asyncio.wait({writer, all_items}, return_when=asyncio.FIRST_COMPLETED)
            all_items.cancel()
        self._answered.put_nowait(None)
        await writer

    async def _write(self) -> None:
        while (group := await self._answered.get()) is not None:
            self._unanswered.difference_update(group.item_ids)
            if group.served is not None and group.served is not self._labelled:
                self._labelled = group.served
                group.response.labels.extend(group.served.text.manifest.labels)
                group.response.head = convert_classify.head_kind(group.served.text.manifest.head)
            await self._outgoing.write(group.response)
            self._hold(-group.num_items)

    def _hold(self, num_items: int) -> None:
        self._num_held += num_items
        if self._num_held < self._front.config.limits.max_stream_items:
            self._has_room.set()
        else:
            self._has_room.clear()


async def _cancel(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
