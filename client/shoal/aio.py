"""The asynchronous client. Its calls are grouped by service in files of their own; this one puts them together."""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

from shoal._classify import ClassifyCalls
from shoal._connection import Connection
from shoal._generate import GenerateCalls, GenerationStream
from shoal._models import ModelCalls
from shoal._stream import AsyncStream
from shoal._train import TrainCalls
from shoal.channel import ClientSettings, resolve_endpoint

__all__ = ["AsyncClient", "AsyncStream", "GenerationStream"]


class AsyncClient(ClassifyCalls, GenerateCalls, TrainCalls, ModelCalls):
    """A client of one server, for one event loop. Connects with the first call.

    Args:
        address: host:port; else SHOAL_ADDRESS, else 127.0.0.1:50051.
        settings: see `ClientSettings`.

    Raises:
        ConfigurationError: address, token or TLS files are unusable.

    Example:
        async with AsyncClient() as client:
            print((await client.classify("topics", "Rates rise again"))[0].label)
    """

    def __init__(self, address: str | None = None, **settings: Unpack[ClientSettings]) -> None:
        self._connection = Connection(resolve_endpoint(address, settings), settings.get("timeout"))

    @property
    def address(self) -> str:
        """The server's address."""
        return self._connection.endpoint.address

    async def close(self) -> None:
        """End what is running and close the connections. May be called twice."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.address!r})"
