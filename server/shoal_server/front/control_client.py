"""The connection to control: its orders are carried out here, and Train and Model calls are forwarded.

Owns the sequence in which orders take effect: a routing table is applied after the texts of its versions are held and
its engines are connected, and only then answered. Losing control ends the process, whose parent it is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from shoal_server.errors import DeadlinePassed, Draining, Exhausted, ServerError, from_wire
from shoal_server.front.rpc import DRAIN_RETRY_S, Rpc
from shoal_server.ipc.calls import Call
from shoal_server.ipc.channel import Channel, ChannelClosed, connect
from shoal_server.ipc.messages import (
    ControlCall,
    ControlCancel,
    ControlReply,
    ControlStreamItem,
    Drain,
    FromControlToFront,
    Message,
    PrepareVersion,
    Routing,
)
from shoal_server.log import Log

MAX_UNREAD_ITEMS: Final = 100_000  # of one streamed call
_log = Log(__name__)
Result = TypeVar("Result")
Awaited = TypeVar("Awaited")
_StreamEvent = ControlStreamItem | ControlReply | ServerError


class Orders(Protocol):
    """Whoever carries out what control says."""

    async def route(self, routing: Routing) -> None:
        """Use a new routing table and answer it."""

    async def prepare(self, order: PrepareVersion) -> None:
        """Hold a version's text and answer."""

    def drain(self, order: Drain) -> None:
        """Begin to end."""


class ControlLost(Exception):
    """The control process is gone; so must this one be."""


class ControlClient:
    """One front's connection to control."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: Channel[FromControlToFront] | None = None
        self._call_ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, asyncio.Queue[_StreamEvent]] = {}

    async def start(self, hello: Message) -> None:
        """Connect and introduce this front.

        Raises:
            ControlLost: nobody listens there.
        """
        try:
            self._channel = await connect(self._address, FromControlToFront)
        except ChannelClosed as error:
            raise ControlLost(str(error)) from None
        self._channel.send(hello)

    def send(self, message: Message) -> None:
        """Tell control something."""
        assert self._channel is not None, "started before"
        self._channel.send(message)

    def close(self) -> None:
        """Leave; what was sent before still arrives."""
        if self._channel is not None:
            self._channel.close()

    async def run(self, orders: Orders) -> None:
        """Carry out orders in the order they came, until control is gone. Preparing a version holds nothing up.

        Raises:
            ControlLost: always, in the end.
        """
        assert self._channel is not None, "started before"
        routings: asyncio.Queue[Routing] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_apply_routings(routings, orders))
            while True:
                try:
                    messages = await self._channel.receive()
                except ChannelClosed as error:
                    raise ControlLost(str(error)) from None
                for message in messages:
                    match message:
                        case ControlReply():
                            self._take_reply(message)
                        case ControlStreamItem():
                            self._take_item(message)
                        case Routing():
                            routings.put_nowait(message)
                        case PrepareVersion():
                            tasks.create_task(orders.prepare(message))
                        case Drain():
                            orders.drain(message)

    async def call(self, rpc: Rpc, request: Call, result: type[Result]) -> Result:
        """Forward a call and wait for its answer, at most until the client's deadline.

        Raises:
            DeadlinePassed: control had not answered by then.
            ServerError: what control answered.
        """
        return await _until_deadline(rpc, self.ask(request, result))

    async def ask(self, request: Call, result: type[Result], *, cancels: bool = False) -> Result:
        """Forward a call that has no deadline; with `cancels` control is told when the caller gives up.

        Raises:
            ServerError: what control answered.
        """
        call_id = next(self._call_ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies[call_id] = future
        self.send(_control_call(call_id, request))
        try:
            answer = await future
        finally:
            del self._replies[call_id]
            if cancels and future.cancelled():
                self.send(ControlCancel(call_id=call_id))
        return msgspec.convert(answer, result)

    async def stream(
        self, rpc: Rpc, request: Call, item: type[Result], *, until: asyncio.Event
    ) -> AsyncGenerator[Result, None]:
        """Forward a call that answers with many items; closing the iterator cancels it at control.

        Raises:
            DeadlinePassed: the stream had not ended by then.
            Draining: `until` was set, since the server shuts down.
            ServerError: what control answered.
        """
        call_id = next(self._call_ids)
        queue: asyncio.Queue[_StreamEvent] = asyncio.Queue()
        self._streams[call_id] = queue
        self.send(_control_call(call_id, request))
        drain = asyncio.create_task(_drained(until, queue))
        is_over = False
        try:
            while True:
                match await _until_deadline(rpc, queue.get()):
                    case ControlStreamItem(item=received):
                        yield msgspec.convert(received, item)
                    case ControlReply(error=error):
                        is_over = True
                        if error is not None:
                            raise from_wire(error)
                        return
                    case ServerError() as failure:
                        raise failure
        finally:
            drain.cancel()
            del self._streams[call_id]
            if not is_over:
                self.send(ControlCancel(call_id=call_id))

    def _take_reply(self, reply: ControlReply) -> None:
        if (queue := self._streams.get(reply.call_id)) is not None:
            queue.put_nowait(reply)
        elif (future := self._replies.get(reply.call_id)) is not None and not future.done():
            if reply.error is not None:
                future.set_exception(from_wire(reply.error))
            else:
                future.set_result(reply.result)

    def _take_item(self, item: ControlStreamItem) -> None:
        queue = self._streams.get(item.call_id)
        if queue is None or queue.qsize() > MAX_UNREAD_ITEMS:
            return  # the client has left, or has been told that it reads too slowly
        if queue.qsize() == MAX_UNREAD_ITEMS:
            queue.put_nowait(
                Exhausted(f"the client reads too slowly: more than {MAX_UNREAD_ITEMS:,} events wait for it")
            )
        else:
            queue.put_nowait(item)


async def _apply_routings(routings: asyncio.Queue[Routing], orders: Orders) -> None:
    while True:
        routing = await routings.get()
        while not routings.empty():  # only the newest counts
            routing = routings.get_nowait()
        await orders.route(routing)


async def _drained(draining: asyncio.Event, queue: asyncio.Queue[_StreamEvent]) -> None:
    await draining.wait()
    queue.put_nowait(Draining("the server is shutting down", retry_after_s=DRAIN_RETRY_S))


async def _until_deadline(rpc: Rpc, awaitable: Awaitable[Awaited]) -> Awaited:
    try:
        async with asyncio.timeout(rpc.remaining_s()):
            return await awaitable
    except TimeoutError:
        raise DeadlinePassed("the deadline passed before control answered") from None


def _control_call(call_id: int, request: Call) -> ControlCall:
    return ControlCall(call_id=call_id, method=type(request).__name__, arguments=msgspec.to_builtins(request))
