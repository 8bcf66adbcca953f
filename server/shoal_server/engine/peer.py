"""One front as the IO thread sees it: sends at once to a peer that reads, holds tokens back for one that does not.

Only tokens are held, and only those after a stream's first; whatever ends a call takes its held tokens along first.
"""

from __future__ import annotations

import asyncio
from typing import Any

from shoal_server.ipc.channel import Channel, ChannelClosed
from shoal_server.ipc.messages import CallFailed, ClassifyDone, GenerateDone, Message, TokenLogprobs, TokensGenerated

SLOW_BYTES = 64 * 2**10  # a peer with more than this unread is slow; asyncio stops its writers there too


class Peer:
    """Sends the replies of one front."""

    def __init__(self, channel: Channel[Any]) -> None:
        self._channel = channel
        self._begun: set[int] = set()  # streams whose first tokens are sent
        self._held: dict[int, list[TokensGenerated]] = {}
        self._release: asyncio.Task[None] | None = None

    def send(self, message: Message) -> None:
        """Send a reply, or hold it until the peer has read what it was sent."""
        if isinstance(message, TokensGenerated):
            self._send_tokens(message)
            return
        if isinstance(message, GenerateDone | CallFailed):
            self._send_held(message.request_id)
            self._begun.discard(message.request_id)
        self._channel.send(message)

    def forget(self, request_id: int) -> None:
        """The front aborted a call: nothing more is sent for it."""
        self._begun.discard(request_id)
        self._held.pop(request_id, None)

    def close(self) -> None:
        """Stop sending."""
        if self._release is not None:
            self._release.cancel()

    def _send_tokens(self, message: TokensGenerated) -> None:
        if message.request_id in self._begun and (
            self._release is not None or self._channel.backlog_bytes > SLOW_BYTES
        ):
            self._held.setdefault(message.request_id, []).append(message)
            if self._release is None:
                self._release = asyncio.create_task(self._release_when_read())
            return
        self._begun.add(message.request_id)
        self._channel.send(message)

    async def _release_when_read(self) -> None:
        try:
            await self._channel.drain()
        except ChannelClosed:
            return  # whoever receives from the channel sees it too, and cleans up
        finally:
            self._release = None
        for request_id in list(self._held):
            self._send_held(request_id)

    def _send_held(self, request_id: int) -> None:
        held = self._held.pop(request_id, None)
        if held is not None:
            self._channel.send(merge(held))


def merge(messages: list[TokensGenerated]) -> TokensGenerated:
    """Messages of one stream as one."""
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    for message in messages:
        token_ids += message.token_ids
        logprobs += message.logprobs
    return TokensGenerated(request_id=messages[0].request_id, token_ids=token_ids, logprobs=logprobs)


ToFront = ClassifyDone | TokensGenerated | GenerateDone | CallFailed
