"""The engine's IO thread: an event loop that reads calls and orders into the inbox, and sends replies.

Knows nothing of queues or models. The compute loop hands over all replies of a step at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from shoal_server.engine.events import CallsReceived, FrontLost, Inbox, OrdersReceived, Stop
from shoal_server.engine.peer import Peer
from shoal_server.ipc.channel import Channel, ChannelClosed, connect, listen
from shoal_server.ipc.messages import (
    Abort,
    ClassifyCall,
    EngineHello,
    GenerateCall,
    LoadVersion,
    Message,
    UnloadVersion,
)
from shoal_server.log import Log
from shoal_server.process import ENGINE_IO_THREAD, name_thread
from shoal_server.scheduling import be_prompt

CONTROL = 0  # peer id of the control process; fronts count from 1

_log = Log(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A message and who shall have it."""

    peer_id: int
    message: Message


class Endpoint:
    """The engine's socket for fronts, and its connection to control."""

    def __init__(self, *, address: str, control_address: str, inbox: Inbox) -> None:
        self._address = address
        self._control_address = control_address
        self._inbox = inbox
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._peers: dict[int, Peer] = {}
        self._last_peer_id = CONTROL

    def start(self, hello: EngineHello) -> None:
        """Listen, then greet control; returns when both are done.

        Raises:
            ChannelClosed: control is gone.
            OSError: the socket cannot be made.
        """
        threading.Thread(target=self._run, args=(hello,), name=ENGINE_IO_THREAD, daemon=True).start()
        self._loop = self._started.result()

    def send(self, replies: Sequence[Reply]) -> None:
        """Send messages, in order; called by the compute loop. Those to a peer that is gone are dropped."""
        assert self._loop is not None, "started before"
        if not self._loop.is_closed():  # it is when the thread has failed, and the end is near
            self._loop.call_soon_threadsafe(self._deliver, replies)

    def remove_socket(self) -> None:
        """Take the socket's name from the file system."""
        Path(self._address).unlink(missing_ok=True)

    def _run(self, hello: EngineHello) -> None:
        name_thread(ENGINE_IO_THREAD)
        be_prompt()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve(hello))
        except BaseException as error:
            if self._started.done():
                _log.error("io.failed", exc_info=True)
                self._inbox.put(Stop(reason="the IO thread failed"))
            else:
                self._started.set_exception(error)

    async def _serve(self, hello: EngineHello) -> None:
        server = await listen(self._address, ClassifyCall | GenerateCall | Abort, self._serve_front)
        async with server:
            control = await connect(self._control_address, LoadVersion | UnloadVersion)
            self._peers[CONTROL] = Peer(control)
            control.send(hello)
            self._started.set_result(asyncio.get_running_loop())
            try:
                while True:
                    self._inbox.put(OrdersReceived(messages=await control.receive()))
            except ChannelClosed:
                self._inbox.put(Stop(reason="control is gone"))
            await asyncio.Event().wait()  # the process ends with the compute loop; until then replies go out

    async def _serve_front(self, channel: Channel[Any]) -> None:
        self._last_peer_id += 1
        peer_id, peer = self._last_peer_id, Peer(channel)
        self._peers[peer_id] = peer
        try:
            while True:
                messages = await channel.receive()
                for message in messages:
                    if isinstance(message, Abort):
                        peer.forget(message.request_id)
                self._inbox.put(CallsReceived(peer_id=peer_id, messages=messages, received_s=time.monotonic()))
        except ChannelClosed as error:
            _log.info("front.left", peer=peer_id, reason=error)
        finally:
            del self._peers[peer_id]
            peer.close()
            self._inbox.put(FrontLost(peer_id=peer_id))

    def _deliver(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            peer = self._peers.get(reply.peer_id)
            if peer is not None:
                peer.send(reply.message)
