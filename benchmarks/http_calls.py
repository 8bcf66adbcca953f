"""Calls to a server that speaks HTTP/1.1 and JSON: keep-alive connections, one call on each at a time. Knows no gRPC.

Lean on purpose: the load generator shares the processor with the server it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec

from benchmarks.calls import OK, Arrival, CallFailed, Outcome
from benchmarks.workload import ClassifyItem, Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one text is asked about over HTTP."""

    path: str
    request: Callable[[str], Any]  # a text's body, before JSON
    scores: Callable[[Any], list[float]]  # out of the answer's JSON: probabilities of the labels in their order


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    body: bytes


class HttpConnection:
    """One keep-alive connection. One request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: bytes) -> Answer:
        """Send and wait. After an error, and when cancelled, the connection is closed; the next call opens another.

        Raises:
            OSError, EOFError: the connection broke.
        """
        try:
            reader, writer = await self._open()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            return await self._read(reader)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave; a call in flight is given up."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self._reader, self._writer

    async def _read(self, reader: asyncio.StreamReader) -> Answer:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if "chunked" in fields.get("transfer-encoding", ""):
            body = await _read_chunks(reader)
        else:
            body = await reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("connection", "").lower() == "close":
            self.close()
        return Answer(status=int(lines[0].split()[1]), body=body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


class HttpCaller:
    """Classifies texts over HTTP; as many connections as calls in flight. Use as an async context manager."""

    def __init__(self, address: str, route: Route, *, timeout_s: float) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._route = route
        self._timeout_s = timeout_s
        self._idle: list[HttpConnection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._idle:
            connection.close()

    async def call(self, item: Item, intended_s: float, arrivals: list[Arrival]) -> Outcome:  # noqa: ARG002
        """One text, as the protocol says."""
        assert isinstance(item, ClassifyItem)
        assert len(item.texts) == 1
        try:
            scores = await self.scores(item.texts[0])
        except CallFailed as error:
            return Outcome(intended_s=intended_s, ended_s=time.perf_counter(), code=str(error))
        ended_s = time.perf_counter()
        best = max(range(len(scores)), key=scores.__getitem__)
        return Outcome(
            intended_s=intended_s, ended_s=ended_s, code=OK, num_inputs=1, top_labels=frozenset((f"label-{best}",))
        )

    async def scores(self, text: str) -> list[float]:
        """As the protocol says."""
        body = msgspec.json.encode(self._route.request(text))
        connection = self._idle.pop() if self._idle else HttpConnection(self._host, self._port)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await connection.post(self._route.path, body)
        except TimeoutError:
            raise CallFailed("DEADLINE_EXCEEDED") from None
        except (OSError, EOFError) as error:
            raise CallFailed(type(error).__name__) from None
        finally:
            self._idle.append(connection)
        if answer.status != 200:
            raise CallFailed(f"HTTP {answer.status}")
        return self._route.scores(msgspec.json.decode(answer.body))
