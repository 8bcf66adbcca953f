"""The connection to one incarnation of one engine, and the calls that are open on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from shoal_server.errors import DeadlinePassed, EngineLost, ServerError, from_wire
from shoal_server.front.admission import Load
from shoal_server.ipc.channel import Channel, ChannelClosed, connect
from shoal_server.ipc.messages import (
    Abort,
    CallFailed,
    ClassifyCall,
    ClassifyDone,
    EngineEndpoint,
    FromEngineToFront,
    GenerateCall,
)
from shoal_server.log import Log

ENGINE_RETRY_S: Final = 1.0
_RECONNECT_S: Final = 0.1
_log = Log(__name__)


class OpenCall(Protocol):
    """Whoever waits for a call."""

    def deliver(self, message: FromEngineToFront) -> bool:
        """Take a message; True when it was the last one."""

    def fail(self, error: ServerError) -> None:
        """The call has ended with an error."""


class EngineLink:
    """Connects, reconnects while the engine's address stays in the routing table, and hands messages to open calls."""

    def __init__(self, endpoint: EngineEndpoint, changed: Callable[[], None]) -> None:
        self.endpoint = endpoint
        self.connected = asyncio.Event()
        self.load = Load()
        self._changed = changed
        self._channel: Channel[FromEngineToFront] | None = None
        self._open: dict[int, OpenCall] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect and to listen."""
        self._task = asyncio.create_task(self._run(), name=f"engine-{self.endpoint.engine_id}")

    def close(self) -> None:
        """Leave the engine; what is open ends with EngineLost."""
        if self._task is not None:
            self._task.cancel()
        self._lost()

    @property
    def num_open(self) -> int:
        """Calls that have not ended."""
        return len(self._open)

    def begin(self, call: ClassifyCall | GenerateCall, waiter: OpenCall) -> None:
        """Send a call; `waiter` hears of it until it ends or is aborted.

        Raises:
            EngineLost: the engine is gone.
            DeadlinePassed: too late; nothing is sent.
        """
        if self._channel is None:
            raise _engine_lost()
        if call.deadline_s is not None:
            remaining_s = call.deadline_s - time.monotonic()
            if remaining_s <= 0:
                raise _deadline_passed()
            loop = asyncio.get_running_loop()
            self._timers[call.request_id] = loop.call_later(remaining_s, self._expire, call.request_id)
        self._open[call.request_id] = waiter
        self._channel.send(call)

    def abort(self, request_id: int) -> None:
        """Forget a call and tell the engine; nothing happens when it has ended."""
        if self._close_call(request_id) is not None and self._channel is not None:
            self._channel.send(Abort(request_id=request_id))

    async def classify(self, call: ClassifyCall) -> ClassifyDone:
        """Send a call and wait for its answer; when the waiting is cancelled, the call is aborted."""
        waiter = _ClassifyWaiter(asyncio.get_running_loop())
        self.begin(call, waiter)
        try:
            return await waiter.future
        finally:
            self.abort(call.request_id)

    def _close_call(self, request_id: int) -> OpenCall | None:
        if timer := self._timers.pop(request_id, None):
            timer.cancel()
        return self._open.pop(request_id, None)

    def _expire(self, request_id: int) -> None:
        waiter = self._open.get(request_id)
        self.abort(request_id)
        if waiter is not None:
            waiter.fail(_deadline_passed())

    async def _run(self) -> None:
        while True:
            try:
                self._channel = await connect(self.endpoint.address, FromEngineToFront)
            except ChannelClosed:
                await asyncio.sleep(_RECONNECT_S)
                continue
            self.connected.set()
            self._changed()
            try:
                await self._listen(self._channel)
            except ChannelClosed as closed:
                _log.warning(
                    "engine_lost", engine=self.endpoint.engine_id, reason=str(closed), open_calls=len(self._open)
                )
            self._lost()
            await asyncio.sleep(_RECONNECT_S)

    async def _listen(self, channel: Channel[FromEngineToFront]) -> None:
        while True:
            for message in await channel.receive():
                waiter = self._open.get(message.request_id)
                if waiter is None:
                    continue  # aborted or expired while the message was on its way
                if isinstance(message, CallFailed):
                    self._close_call(message.request_id)
                    waiter.fail(from_wire(message.error))
                elif waiter.deliver(message):
                    self._close_call(message.request_id)

    def _lost(self) -> None:
        """The connection has ended: end everything that is open on it."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        was_connected = self.connected.is_set()
        self.connected.clear()
        for request_id in list(self._open):
            if (waiter := self._close_call(request_id)) is not None:
                waiter.fail(_engine_lost())
        if was_connected:
            self._changed()


class _ClassifyWaiter:
    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[ClassifyDone] = loop.create_future()

    def deliver(self, message: FromEngineToFront) -> bool:
        assert isinstance(message, ClassifyDone), "engines answer classify calls with ClassifyDone"
        if not self.future.done():
            self.future.set_result(message)
        return True

    def fail(self, error: ServerError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _engine_lost() -> EngineLost:
    return EngineLost("the engine was lost; it restarts by itself", retry_after_s=ENGINE_RETRY_S)


def _deadline_passed() -> DeadlinePassed:
    return DeadlinePassed("the deadline passed before the request was done")
