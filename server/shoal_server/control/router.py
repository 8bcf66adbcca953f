"""Train and Model calls that fronts forward: each to its handler, its answer or error back to the front that asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from shoal_server.control.peers import Peers
from shoal_server.errors import InternalFault, ServerError
from shoal_server.ipc.calls import Call, Empty
from shoal_server.ipc.channel import ChannelClosed
from shoal_server.ipc.messages import ControlCall, ControlReply, ControlStreamItem
from shoal_server.log import Log

_log = Log(__name__)

Unary = Callable[[Any], Awaitable[msgspec.Struct]]
Stream = Callable[[Any], AsyncIterator[msgspec.Struct]]


class Router:
    """Open calls of all fronts."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._unary: dict[str, tuple[type[Call], Unary]] = {}
        self._waits: set[str] = set()  # of the unary ones, those that change nothing
        self._streams: dict[str, tuple[type[Call], Stream]] = {}
        self._open: dict[tuple[int, int], asyncio.Task[None]] = {}  # (front, call)

    def unary(self, call: type[Call], handler: Unary) -> None:
        """Answer calls of this type with one result."""
        self._unary[call.__name__] = (call, handler)

    def wait(self, call: type[Call], handler: Unary) -> None:
        """Answer calls of this type with one result, unless nobody waits for it any more."""
        self.unary(call, handler)
        self._waits.add(call.__name__)

    def stream(self, call: type[Call], handler: Stream) -> None:
        """Answer calls of this type with a stream of items."""
        self._streams[call.__name__] = (call, handler)

    def begin(self, front_id: int, call: ControlCall) -> None:
        """Start to answer a call."""
        key = (front_id, call.call_id)
        task = asyncio.create_task(self._answer(front_id, call), name=call.method)
        self._open[key] = task
        task.add_done_callback(lambda _: self._open.pop(key, None))

    def cancel(self, front_id: int, call_id: int) -> None:
        """The client has left."""
        if task := self._open.get((front_id, call_id)):
            task.cancel()

    def front_lost(self, front_id: int) -> None:
        """Nobody waits for this front's calls any more. Changes that have begun run to their end."""
        for key, task in list(self._open.items()):
            if key[0] == front_id and task.get_name() in self._streams.keys() | self._waits:
                task.cancel()

    async def stop(self) -> None:
        """Cancel what is open."""
        tasks = list(self._open.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, front_id: int, call: ControlCall) -> None:
        try:
            result = await self._run(front_id, call)
            reply = ControlReply(call_id=call.call_id, result=msgspec.to_builtins(result))
        except ServerError as error:
            reply = ControlReply(call_id=call.call_id, error=error.to_wire())
        except ChannelClosed:
            return
        except Exception:
            _log.error("control_call_failed", exc_info=True, method=call.method)
            fault = InternalFault(f"{call.method} failed; the server's log says why")
            reply = ControlReply(call_id=call.call_id, error=fault.to_wire())
        self._peers.send_to_front(front_id, reply)

    async def _run(self, front_id: int, call: ControlCall) -> msgspec.Struct:
        if entry := self._unary.get(call.method):
            cls, handle = entry
            return await handle(_convert(call, cls))
        if found := self._streams.get(call.method):
            cls, items = found
            async for item in items(_convert(call, cls)):
                message = ControlStreamItem(call_id=call.call_id, item=msgspec.to_builtins(item))
                self._peers.send_to_front(front_id, message)
                await self._peers.drain_front(front_id)
            return Empty()
        raise InternalFault(f"control knows no call {call.method!r}")


def _convert(call: ControlCall, cls: type[Call]) -> Call:
    try:
        return msgspec.convert(call.arguments, cls)
    except msgspec.ValidationError as error:
        raise InternalFault(f"{call.method}: malformed arguments: {error}") from error
