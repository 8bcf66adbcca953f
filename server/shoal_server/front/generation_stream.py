"""Completions under way at one engine, read together in the order in which their tokens come."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from shoal_server.errors import Exhausted, ServerError
from shoal_server.front.engine_link import EngineLink
from shoal_server.ipc.messages import FromEngineToFront, GenerateCall, GenerateDone, TokensGenerated

MAX_UNREAD_TOKENS: Final = 8192  # over all completions of a request; alternatives of log-probabilities count too


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionEvent:
    """Something happened to one completion."""

    index: int
    message: TokensGenerated | GenerateDone


class GenerationStream:
    """The events of n completions. Bounded: a reader that falls too far behind loses the whole request."""

    def __init__(self, link: EngineLink, calls: list[GenerateCall]) -> None:
        """Send the calls.

        Raises:
            EngineLost, DeadlinePassed: nothing stays open.
        """
        self._link = link
        self._request_ids = [call.request_id for call in calls]
        self._weights = [1 + (call.num_logprobs or 0) for call in calls]
        self._events: list[CompletionEvent] = []
        self._num_unread = 0
        self._error: ServerError | None = None
        self._wake: asyncio.Future[None] | None = None
        try:
            for index, call in enumerate(calls):
                link.begin(call, _Completion(self, index))
        except ServerError:
            self.close()
            raise

    async def next(self) -> list[CompletionEvent]:
        """Everything that has come since the last call, at least one event. Not for calling after the last end.

        Raises:
            ServerError: the request has failed; all completions are aborted.
        """
        if not self._events and self._error is None:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        if self._error is not None:
            raise self._error
        events, self._events, self._num_unread = self._events, [], 0
        return events

    def stop(self, index: int) -> None:
        """Abort one completion, whose remaining events shall not be read."""
        self._link.abort(self._request_ids[index])
        self._events = [event for event in self._events if event.index != index]

    def close(self) -> None:
        """Abort whatever has not ended."""
        for request_id in self._request_ids:
            self._link.abort(request_id)

    def add(self, event: CompletionEvent) -> None:
        """Take an event from the engine."""
        self._events.append(event)
        if isinstance(event.message, TokensGenerated):
            self._num_unread += len(event.message.token_ids) * self._weights[event.index]
            if self._num_unread > MAX_UNREAD_TOKENS:
                self.fail(Exhausted(f"the client reads too slowly: more than {MAX_UNREAD_TOKENS:,} tokens wait for it"))
        self._wake_reader()

    def fail(self, error: ServerError) -> None:
        """End the whole request with the first error."""
        if self._error is None:
            self._error = error
            self._events = []
            self.close()
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class _Completion:
    __slots__ = ("_index", "_stream")

    def __init__(self, stream: GenerationStream, index: int) -> None:
        self._stream = stream
        self._index = index

    def deliver(self, message: FromEngineToFront) -> bool:
        assert isinstance(message, TokensGenerated | GenerateDone), "engines answer generate calls with these"
        self._stream.add(CompletionEvent(index=self._index, message=message))
        return isinstance(message, GenerateDone)

    def fail(self, error: ServerError) -> None:
        self._stream.fail(error)
