"""Calls to engines: the only writer of open futures, open streams and admission permits.

One connection for each incarnation of an engine. Every call ends exactly once: with its result, with the error that
the engine sent, with `DeadlinePassed`, or with `EngineLost` when the connection ends. A call that its handler gives
up is aborted at the engine. Futures of calls get exceptions and are never cancelled from here: a CancelledError that
reached a living RPC would leave its client without a status. Knows no gRPC and no text.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from shoal_server.errors import EngineLost
from shoal_server.front.admission import Bounds, Load, Permit, Work
from shoal_server.front.engine_link import ENGINE_RETRY_S, EngineLink
from shoal_server.front.generation_stream import GenerationStream
from shoal_server.ipc.messages import ClassifyCall, ClassifyDone, EngineEndpoint, GenerateCall

CONNECT_WAIT_S: Final = 2.0  # longest that a new routing table waits for connections to the engines it names


class EngineClient:
    """All engines of the machine as one front sees them. `changed` is called when an engine comes or goes."""

    def __init__(self, bounds: Mapping[Work, Bounds], changed: Callable[[], None]) -> None:
        self._bounds = bounds
        self._changed = changed
        self._links: dict[int, EngineLink] = {}
        self._request_ids = itertools.count(1)

    async def apply(self, endpoints: Iterable[EngineEndpoint]) -> None:
        """Connect to the engines named and leave all others; waits a moment for the connections to stand."""
        wanted = {endpoint.engine_id: endpoint for endpoint in endpoints}
        for engine_id, link in list(self._links.items()):
            if wanted.get(engine_id) != link.endpoint:
                link.close()
                del self._links[engine_id]
        fresh = [EngineLink(e, self._changed) for engine_id, e in wanted.items() if engine_id not in self._links]
        for link in fresh:
            self._links[link.endpoint.engine_id] = link
            link.start()
        if fresh:
            waits = [asyncio.create_task(link.connected.wait()) for link in fresh]
            _, late = await asyncio.wait(waits, timeout=CONNECT_WAIT_S)
            for task in late:
                task.cancel()

    def close(self) -> None:
        """Leave every engine; what is open ends with EngineLost."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    def connected(self) -> frozenset[int]:
        """Engines that can be called now."""
        return frozenset(engine_id for engine_id, link in self._links.items() if link.connected.is_set())

    def admit(self, work: Work, engine_ids: Iterable[int], amount: int) -> Permit:
        """Reserve `amount` (tokens to classify, sequences to generate) at the least loaded of some engines.

        The permit must be released, whatever happens.

        Raises:
            EngineLost: none of the engines is connected.
            QueueFull: too much waits there already.
        """
        links = [link for engine_id in engine_ids if (link := self._links.get(engine_id)) and link.connected.is_set()]
        if not links:
            raise EngineLost("no engine that holds this version is up", retry_after_s=ENGINE_RETRY_S)
        link = min(links, key=lambda link: link.load.share(self._bounds))
        return Permit(link, link.load, self._bounds[work], work, amount)

    async def classify(self, permit: Permit, call: Callable[[int], ClassifyCall]) -> ClassifyDone:
        """Run a call, which `call` makes from its request id, at the engine of the permit.

        Raises:
            EngineLost, DeadlinePassed: as they say.
            ServerError: what the engine answered.
        """
        return await permit.link.classify(call(next(self._request_ids)))

    def generate(self, permit: Permit, calls: list[Callable[[int], GenerateCall]]) -> GenerationStream:
        """Start completions at the engine of the permit; the stream must be closed, whatever happens.

        Raises:
            EngineLost: the engine has gone since the permit was given.
        """
        return GenerationStream(permit.link, [call(next(self._request_ids)) for call in calls])

    def loads(self) -> dict[int, Load]:
        """What each engine has open from here, for tests and for the curious."""
        return {engine_id: link.load for engine_id, link in self._links.items()}
