"""Requests for versions that come on demand: they wait here until control has loaded what they ask for.

However many requests wait for a version, control is asked for it once. Knows no gRPC and no engines.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from shoal_server.errors import DeadlinePassed, QueueFull, VersionLoading
from shoal_server.front.control_client import Result
from shoal_server.front.routing import (
    LOADING_RETRY_S,
    ModelReference,
    Router,
    ServedVersion,
    VersionKey,
    VersionResting,
)
from shoal_server.front.rpc import Rpc
from shoal_server.ipc.calls import Call, WakeVersion, Woken
from shoal_server.ipc.messages import ModelKind

MAX_WAITING: Final = 1024  # requests and stream items of one front that wait for versions
MAX_WAIT_S: Final = 300.0  # of a request without a deadline

Found = TypeVar("Found")


class Asks(Protocol):
    """Forwards calls to control."""

    async def ask(self, request: Call, result: type[Result], *, cancels: bool = False) -> Result:
        """The answer; with `cancels` control is told when the caller gives up."""


class Waker:
    """Who waits for which version, and the calls to control that are open for them."""

    def __init__(
        self, router: Router, control: Asks, *, max_waiting: int = MAX_WAITING, max_wait_s: float = MAX_WAIT_S
    ) -> None:
        self._router = router
        self._control = control
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._num_waiting: Counter[VersionKey] = Counter()
        self._calls: dict[VersionKey, asyncio.Task[Woken]] = {}

    async def begin(self, rpc: Rpc, reference: ModelReference, kind: ModelKind) -> ServedVersion:
        """As `Router.begin`, but one that comes on demand is waited for.

        Raises:
            DeadlinePassed: it was not live by the client's deadline.
            VersionLoading: memory is too short for it now, or it took too long for a request without a deadline.
            QueueFull: too many wait already.
            ServerError: as `Router.begin`.
        """
        try:
            return self._router.begin(reference, kind)
        except VersionResting:
            return await self._wait(rpc, lambda: self._router.begin(reference, kind))

    async def resolve(self, rpc: Rpc, reference: ModelReference, kind: ModelKind) -> ServedVersion:
        """As `Router.resolve`, likewise."""
        try:
            return self._router.resolve(reference, kind)
        except VersionResting:
            return await self._wait(rpc, lambda: self._router.resolve(reference, kind))

    def waiting(self) -> dict[VersionKey, int]:
        """Requests that wait, by version."""
        return dict(self._num_waiting)

    async def _wait(self, rpc: Rpc, find: Callable[[], Found]) -> Found:
        if (num_waiting := self._num_waiting.total()) >= self._max_waiting:
            raise QueueFull(
                f"{num_waiting:,} requests wait for idle versions; limit {self._max_waiting:,}",
                retry_after_s=LOADING_RETRY_S,
            )
        remaining_s = rpc.remaining_s()
        try:
            async with asyncio.timeout(self._max_wait_s if remaining_s is None else remaining_s):
                return await self._find(find)
        except TimeoutError:
            if remaining_s is not None:
                raise DeadlinePassed("the deadline passed while the version was being loaded") from None
            raise VersionLoading(
                f"the version was not loaded within {self._max_wait_s:g} s", retry_after_s=LOADING_RETRY_S
            ) from None

    async def _find(self, find: Callable[[], Found]) -> Found:
        while True:
            try:
                return find()
            except VersionResting as resting:
                key = resting.key
            await self._wake(key)

    async def _wake(self, key: VersionKey) -> None:
        """Return once the table in use says what became of the version. The caller then looks before it waits again.

        Until then it counts as waiting, so that control sees no moment in which nobody wants the version.
        """
        self._num_waiting[key] += 1
        try:
            woken = await asyncio.shield(self._call(key))
            await self._router.applied(woken.revision)
        finally:
            self._num_waiting[key] -= 1
            if not self._num_waiting[key]:
                del self._num_waiting[key]
                if (call := self._calls.pop(key, None)) is not None:
                    call.cancel()

    def _call(self, key: VersionKey) -> asyncio.Task[Woken]:
        call = self._calls.get(key)
        if call is None or call.done():
            request = WakeVersion(name=key.model, version=key.version)
            call = self._calls[key] = asyncio.create_task(self._control.ask(request, Woken, cancels=True))
        return call
