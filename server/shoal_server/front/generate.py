"""GenerateService: whole answers and streamed ones, over one way of generating."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from shoal.v1 import generate_pb2

from shoal_server.front import convert, convert_generate
from shoal_server.front.completion import Piece
from shoal_server.front.front import SERVICE_NAMES, Front
from shoal_server.front.generation import Generation
from shoal_server.front.interceptors import Method, Outgoing, Service
from shoal_server.front.rpc import Rpc
from shoal_server.ipc.messages import ModelKind

NAME: Final = SERVICE_NAMES["generate"]
_Request = generate_pb2.GenerateRequest | generate_pb2.StreamGenerateRequest


class GenerateService:
    """Continues prompts."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def service(self) -> Service:
        """For registration."""
        stream = Method(
            name="StreamGenerate",
            request=generate_pb2.StreamGenerateRequest,
            handler=self.stream_generate,
            server_streams=True,
        )
        unary = Method(name="Generate", request=generate_pb2.GenerateRequest, handler=self.generate)
        return Service(name=NAME, methods=(unary, stream))

    async def generate(self, rpc: Rpc, request: generate_pb2.GenerateRequest) -> generate_pb2.GenerateResponse:
        """Everything at once; errors as the proto says."""
        async with self._generation(rpc, request) as generation:
            wholes = [Piece() for _ in range(request.generation.num_completions or 1)]
            while (pieces := await generation.next()) is not None:
                for found in pieces:
                    wholes[found.index].add(found.piece)
            return generate_pb2.GenerateResponse(
                completions=[convert_generate.whole_completion(whole) for whole in wholes],
                summary=generation.summary(),
            )

    async def stream_generate(self, rpc: Rpc, request: generate_pb2.StreamGenerateRequest, answers: Outgoing) -> None:
        """Deltas as they come, at last one summary; errors as the proto says."""
        async with self._generation(rpc, request) as generation:
            while (pieces := await generation.next()) is not None:
                for found in pieces:
                    if found.piece.text or found.piece.token_ids:
                        delta = convert_generate.delta(found.index, found.piece)
                        await answers.write(generate_pb2.StreamGenerateResponse(delta=delta))
            await answers.write(generate_pb2.StreamGenerateResponse(summary=generation.summary()))

    @asynccontextmanager
    async def _generation(self, rpc: Rpc, request: _Request) -> AsyncIterator[Generation]:
        reference = convert.model_reference(request.model)
        priority = convert.priority(request.priority)
        wanted = convert_generate.generation_request(request.generation, self._front.config.limits)
        served = await self._front.waker.begin(rpc, reference, ModelKind.GENERATOR)
        try:
            rpc.resolved(served.metrics)
            async with Generation(rpc, self._front, served, wanted, priority) as generation:
                yield generation
        finally:
            self._front.router.end(served)
