"""Connections of fronts and engines to control: who is connected, and what they say.

A peer's first message says who it is. Knows nothing of what messages mean beyond that.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from shoal_server.ipc.channel import Channel, ChannelClosed, listen
from shoal_server.ipc.messages import EngineHello, FrontHello, Message, ToControl
from shoal_server.log import Log

_log = Log(__name__)


class PeerEvents(Protocol):
    """What happens on the connections."""

    def engine_connected(self, hello: EngineHello) -> None:
        """An engine said hello."""

    def engine_lost(self, engine_id: int) -> None:
        """The connection of an engine ended."""

    def front_connected(self, hello: FrontHello) -> None:
        """A front said hello."""

    def front_lost(self, front_id: int) -> None:
        """The connection of a front ended."""

    def received(self, hello: EngineHello | FrontHello, messages: list[ToControl]) -> None:
        """Messages of one frame, in order."""


class Peers:
    """All connections, by role and index."""

    def __init__(self) -> None:
        self._engines: dict[int, Channel[ToControl]] = {}
        self._fronts: dict[int, Channel[ToControl]] = {}
        self._server: asyncio.Server | None = None

    async def start(self, path: str, events: PeerEvents) -> None:
        """Listen on the unix socket `path`."""

        async def serve(channel: Channel[ToControl]) -> None:
            await self._serve(channel, events)

        self._server = await listen(path, ToControl, serve)

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._server is not None:
            self._server.close()
        for channel in [*self._engines.values(), *self._fronts.values()]:
            channel.close()

    def send_to_engine(self, engine_id: int, message: Message) -> None:
        """Send, or drop the message where the engine is gone: its loss is an event of its own."""
        if channel := self._engines.get(engine_id):
            channel.send(message)

    def send_to_front(self, front_id: int, message: Message) -> None:
        """Send, or drop the message where the front is gone: its loss is an event of its own."""
        if channel := self._fronts.get(front_id):
            channel.send(message)

    def fronts(self) -> list[int]:
        """Fronts that are connected."""
        return sorted(self._fronts)

    async def drain_front(self, front_id: int) -> None:
        """Wait until a front has room for more.

        Raises:
            ChannelClosed: it is gone.
        """
        channel = self._fronts.get(front_id)
        if channel is None:
            raise ChannelClosed(f"front {front_id} is gone")
        await channel.drain()

    async def _serve(self, channel: Channel[ToControl], events: PeerEvents) -> None:
        try:
            messages = await channel.receive()
        except ChannelClosed:
            return
        match messages:
            case [EngineHello() as hello, *rest]:
                await self._serve_engine(channel, events, hello, rest)
            case [FrontHello() as front, *rest]:
                await self._serve_front(channel, events, front, rest)
            case _:
                _log.error("peer_without_hello")

    async def _serve_engine(
        self, channel: Channel[ToControl], events: PeerEvents, hello: EngineHello, rest: list[ToControl]
    ) -> None:
        if before := self._engines.pop(hello.engine_id, None):
            before.close()
            events.engine_lost(hello.engine_id)
        self._engines[hello.engine_id] = channel
        events.engine_connected(hello)
        try:
            await self._receive(channel, events, hello, rest)
        finally:
            if self._engines.get(hello.engine_id) is channel:
                del self._engines[hello.engine_id]
                events.engine_lost(hello.engine_id)

    async def _serve_front(
        self, channel: Channel[ToControl], events: PeerEvents, hello: FrontHello, rest: list[ToControl]
    ) -> None:
        if before := self._fronts.pop(hello.front_id, None):
            before.close()
            events.front_lost(hello.front_id)
        self._fronts[hello.front_id] = channel
        events.front_connected(hello)
        try:
            await self._receive(channel, events, hello, rest)
        finally:
            if self._fronts.get(hello.front_id) is channel:
                del self._fronts[hello.front_id]
                events.front_lost(hello.front_id)

    async def _receive(
        self,
        channel: Channel[ToControl],
        events: PeerEvents,
        hello: EngineHello | FrontHello,
        messages: list[ToControl],
    ) -> None:
        if messages:
            events.received(hello, messages)
        while True:
            try:
                messages = await channel.receive()
            except ChannelClosed as closed:
                _log.debug("peer_closed", peer=type(hello).__name__, reason=closed)
                return
            events.received(hello, messages)
