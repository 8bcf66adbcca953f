"""An asynchronous iterator over answers whose early exit cancels the call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Generic, Self, TypeVar

ItemT = TypeVar("ItemT")


class AsyncStream(AsyncIterator[ItemT], Generic[ItemT]):
    """Answers as they come. The call begins with the first one asked for.

    Leaving an `async for` over it in any way, leaving it as a context, and `aclose()` all cancel the call.
    """

    def __init__(self, source: AsyncGenerator[ItemT, None]) -> None:
        self._source = source
        self._closing: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        try:
            while True:
                try:
                    item = await self.__anext__()
                except StopAsyncIteration:
                    return
                yield item
        finally:
            await self.aclose()  # a generator, unlike a plain iterator, notices `break`

    async def __anext__(self) -> ItemT:
        self._idle.clear()
        try:
            return await self._source.__anext__()
        finally:
            self._idle.set()

    async def aclose(self) -> None:
        """End the call if it runs. May be called twice. Waits while another task awaits an answer: cancel it first."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._idle.wait()
        await self._source.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
