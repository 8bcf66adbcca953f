"""An event loop in a thread, shared by all blocking clients of the process, and blocking iterables fed into it."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shoal.errors import ConfigurationError

ItemT = TypeVar("ItemT")
READ_AHEAD = 64  # items that a feed takes from its iterable before they are asked for


class LoopThread:
    """A running event loop; see `acquire_loop`."""

    def __init__(self) -> None:
        self._ended = False
        self._closings: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="shoal-client", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, ItemT]) -> Future[ItemT]:
        """Begin a coroutine in the loop.

        Raises:
            ConfigurationError: the loop has ended.
            RuntimeError: called from inside the loop, where waiting would never end.
        """
        if self._ended or threading.current_thread() is self._thread:
            coroutine.close()
            if self._ended:
                raise ConfigurationError("the client is closed")
            raise RuntimeError("a blocking client cannot be used inside its own event loop; use AsyncClient")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, ItemT]) -> ItemT:
        """Run a coroutine in the loop and wait; an interrupted wait, such as by Ctrl-C, cancels it."""
        return wait_for(self.submit(coroutine))

    def finish(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what closes something, from any thread; when the loop has ended, that has closed it already."""
        if threading.current_thread() is self._thread:
            self._closings.add(task := self._loop.create_task(close()))
            task.add_done_callback(self._closings.discard)
        elif not self._ended:
            self.run(close())

    def stop(self) -> None:
        """End the loop and its thread, cancelling what runs."""
        self._ended = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(_report)
            loop.run_forever()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what went wrong in the loop, but for what grpc.aio does by design where several loops use it.

    All loops are woken for an event, one of them reads it, and the others find nothing there.
    """
    is_poller = "PollerCompletionQueue" in str(context.get("handle"))
    if not (is_poller and isinstance(context.get("exception"), BlockingIOError)):
        loop.default_exception_handler(context)


def wait_for(future: Future[ItemT]) -> ItemT:
    """Wait for what runs in the loop; an interrupted wait cancels it."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class _Shared:
    """The process's loop and how many clients use it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: LoopThread | None = None
        self.num_users = 0


_shared = _Shared()


def acquire_loop() -> LoopThread:
    """The process's loop, started if need be; give it back with `release_loop`."""
    with _shared.lock:
        if _shared.loop is None:
            _shared.loop = LoopThread()
        _shared.num_users += 1
        return _shared.loop


def release_loop() -> None:
    """Give up one use; the loop ends with its last user."""
    with _shared.lock:
        _shared.num_users -= 1
        if _shared.num_users > 0:
            return
        loop, _shared.loop = _shared.loop, None
    if loop is not None:
        loop.stop()


@atexit.register
def _stop_shared() -> None:
    """Clients that were never closed must not be torn down in the middle of the interpreter's end."""
    if _shared.loop is not None:
        _shared.loop.stop()


@dataclass(frozen=True, slots=True)
class _Stop:
    """The iterable has ended, or raised `error`."""

    error: BaseException | None = None


class BlockingFeed(Generic[ItemT]):
    """Items of a blocking iterable, read by a thread of its own, at most `READ_AHEAD` in advance.

    Make it in the loop that iterates it. When iteration is left, the thread ends at the next item it gets.
    """

    def __init__(self, items: Iterable[ItemT]) -> None:
        self._items = items
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._ready: deque[ItemT | _Stop] = deque()
        self._room = threading.Semaphore(READ_AHEAD)
        self._left = False

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        threading.Thread(target=self._read, name="shoal-feed", daemon=True).start()
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._ready:
                    item = self._ready.popleft()
                    if isinstance(item, _Stop):
                        if item.error is not None:
                            raise item.error
                        return
                    self._room.release()
                    yield item
        finally:
            self._left = True
            self._room.release()

    def _read(self) -> None:
        try:
            for item in self._items:
                self._room.acquire()
                if self._left:
                    return
                self._push(item)
            self._push(_Stop())
        except Exception as error:
            self._push(_Stop(error))

    def _push(self, item: ItemT | _Stop) -> None:
        self._ready.append(item)
        if not self._left and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.set)
