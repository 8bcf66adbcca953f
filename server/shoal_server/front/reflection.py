"""gRPC server reflection, for tools that know no protos."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from grpc_reflection.v1alpha import reflection, reflection_pb2

from shoal_server.front.interceptors import Incoming, Method, Outgoing, Service
from shoal_server.front.rpc import Rpc

NAME: Final = "grpc.reflection.v1alpha.ServerReflection"


class ReflectionService:
    """Answers with the library's own servicer, behind the same door as every other service."""

    def __init__(self, names: Sequence[str]) -> None:
        self._servicer = reflection.aio.ReflectionServicer([*names, NAME])

    def service(self) -> Service:
        """For registration."""
        method = Method(
            name="ServerReflectionInfo",
            request=reflection_pb2.ServerReflectionRequest,
            handler=self.reflect,
            client_streams=True,
            server_streams=True,
        )
        return Service(name=NAME, methods=(method,), quiet=True)

    async def reflect(
        self, _rpc: Rpc, requests: Incoming[reflection_pb2.ServerReflectionRequest], answers: Outgoing
    ) -> None:
        """Answer each question in turn."""

        async def questions() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            while (request := await requests.read()) is not None:
                yield request

        async for answer in self._servicer.ServerReflectionInfo(questions(), None):
            await answers.write(answer)
