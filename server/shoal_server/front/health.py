"""What `grpc.health.v1` says of the server (""), of each service by its full name, of models as `shoal.model/<name>`.

Facts come from two sides: control's routing table and the engine connections, which notice a dead engine first.
Watchers get the newest status, not each one in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from grpc_health.v1 import health_pb2

from shoal_server.errors import Draining, NotFound
from shoal_server.front.interceptors import Method, Outgoing, Service
from shoal_server.front.rpc import DRAIN_RETRY_S, Rpc

NAME: Final = "grpc.health.v1.Health"
MODEL_PREFIX: Final = "shoal.model/"
_Status = health_pb2.HealthCheckResponse


class HealthBoard:
    """The statuses, and who waits for them to change."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {"": False}
        self._draining = False
        self.closed = False
        self._changed = asyncio.Event()

    def publish(self, serving: Mapping[str, bool]) -> None:
        """Replace all statuses; after `drain` they all mean NOT_SERVING."""
        if dict(serving) != self._serving:
            self._serving = dict(serving)
            self._wake()

    def drain(self) -> None:
        """NOT_SERVING for good."""
        self._draining = True
        self._wake()

    def close(self) -> None:
        """End the watches, which would hold up the shutdown."""
        self.closed = True
        self._wake()

    def status(self, service: str) -> int | None:
        """SERVING or NOT_SERVING; None for a name that nobody has."""
        serving = self._serving.get(service)
        if serving is None:
            return None
        return int(_Status.SERVING if serving and not self._draining else _Status.NOT_SERVING)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return after the next change."""
        await self._changed.wait()


class HealthService:
    """grpc.health.v1.Health."""

    def __init__(self, board: HealthBoard) -> None:
        self._board = board

    def service(self) -> Service:
        """For registration. Open to all, since probes carry no token."""
        return Service(
            name=NAME,
            methods=(
                Method(name="Check", request=health_pb2.HealthCheckRequest, handler=self.check),
                Method(name="Watch", request=health_pb2.HealthCheckRequest, handler=self.watch, server_streams=True),
            ),
            open_to_all=True,
            quiet=True,
        )

    async def check(self, _rpc: Rpc, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """One status. Raises NotFound for a name that nobody has."""
        status = self._board.status(request.service)
        if status is None:
            raise NotFound("no such service")
        return _Status(status=status)

    async def watch(self, _rpc: Rpc, request: health_pb2.HealthCheckRequest, stream: Outgoing) -> None:
        """The status now and whenever it changes; SERVICE_UNKNOWN while nobody has the name."""
        told: int | None = None
        while True:
            status = self._board.status(request.service)
            status = _Status.SERVICE_UNKNOWN if status is None else status
            if status != told:
                told = status
                await stream.write(_Status(status=status))
            elif self._board.closed:
                raise Draining("the server is shutting down", retry_after_s=DRAIN_RETRY_S)
            else:
                await self._board.changed()
