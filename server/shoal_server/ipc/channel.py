"""Framed messages over a unix socket: a length, then msgpack of a list of messages.

Everything that was sent since the last wake-up leaves in one frame, so that a busy peer pays once for many messages.
Knows nothing of what the messages mean. Used from one event loop; `Channel.send` is not thread-safe.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from shoal_server.ipc.messages import Message

MAX_FRAME_BYTES = 256 * 2**20
_HEADER = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()

Received = TypeVar("Received")


class ChannelClosed(Exception):
    """The peer is gone, or sent something that is no frame."""


class Channel(Generic[Received]):
    """One end of a connection: sends any message, receives those of one union type."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.msgpack.Decoder[list[Received]] = msgspec.msgpack.Decoder(list[received])
        self._outbox: list[Message] = []
        self._flush_scheduled = False

    def send(self, message: Message) -> None:
        """Queue a message; it leaves with its companions at the end of this turn of the loop.

        Silently useless once the peer is gone: `receive` raises then, and its caller cleans up.
        """
        self._outbox.append(message)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        frame = _encoder.encode(self._outbox)
        self._outbox = []
        if not self._writer.is_closing():
            self._writer.write(_HEADER.pack(len(frame)) + frame)

    async def receive(self) -> list[Received]:
        """The messages of the next frame, in the order sent.

        Raises:
            ChannelClosed: the peer is gone, or a frame is malformed or above MAX_FRAME_BYTES.
        """
        try:
            (size,) = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
            if size > MAX_FRAME_BYTES:
                raise ChannelClosed(f"frame has {size} bytes; limit {MAX_FRAME_BYTES}")
            return self._decoder.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError, OSError) as error:
            raise ChannelClosed("the peer closed the connection") from error
        except msgspec.DecodeError as error:
            raise ChannelClosed(f"malformed frame: {error}") from error

    @property
    def backlog_bytes(self) -> int:
        """Bytes sent that the peer has not yet taken from the system's hands."""
        return self._writer.transport.get_write_buffer_size()

    async def drain(self) -> None:
        """Wait until the peer has room for more.

        Raises:
            ChannelClosed: the peer is gone.
        """
        try:
            await self._writer.drain()
        except (ConnectionError, OSError) as error:
            raise ChannelClosed("the peer closed the connection") from error

    def close(self) -> None:
        """Send what is queued and close."""
        if self._outbox:
            self._flush()
        self._writer.close()


async def connect(path: str, received: Any) -> Channel[Any]:
    """Connect to a listening peer.

    Raises:
        ChannelClosed: nobody listens there.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=2**20)
    except (ConnectionError, OSError) as error:
        raise ChannelClosed(f"nobody listens on {path}") from error
    return Channel(reader, writer, received)


async def listen(path: str, received: Any, serve: Callable[[Channel[Any]], Awaitable[None]]) -> asyncio.Server:
    """Listen on a fresh unix socket, readable by this user only, and call `serve` for each peer."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel: Channel[Any] = Channel(reader, writer, received)
        try:
            await serve(channel)
        finally:
            channel.close()

    _remove_stale(path)
    server = await asyncio.start_unix_server(accept, path, limit=2**20)
    _allow_only_owner(path)
    return server


def _remove_stale(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _allow_only_owner(path: str) -> None:
    Path(path).chmod(0o600)
