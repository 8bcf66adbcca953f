"""Calls over HTTP, against a server that answers what the test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from benchmarks.calls import CallFailed
from benchmarks.http_calls import HttpCaller, Route
from benchmarks.workload import ClassifyItem

ROUTE = Route(path="/classify", request=lambda text: {"text": text}, scores=lambda body: list(body["scores"]))
PLAIN = b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"scores":[0.1,0.9]}'
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n{"scores":[\r\n9\r\n0.1,0.9]}\r\n0\r\n\r\n'
BROKEN = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"


class Seen:
    """What the server saw."""

    def __init__(self) -> None:
        self.num_connections = 0
        self.bodies: list[bytes] = []


@asynccontextmanager
async def serving(answer: Callable[[], bytes]) -> AsyncIterator[tuple[str, Seen]]:
    seen = Seen()
    tasks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.num_connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                seen.bodies.append(await reader.readexactly(length))
                if not (reply := answer()):
                    break
                writer.write(reply)
        except EOFError:
            return
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(talk(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("reply", [PLAIN, CHUNKED])
async def test_scores_come_back_whole_or_in_chunks_over_one_connection(reply: bytes) -> None:
    async with serving(lambda: reply) as (address, seen), HttpCaller(address, ROUTE, timeout_s=5) as caller:
        assert [await caller.scores(text) for text in ("one", "two")] == [[0.1, 0.9]] * 2
    assert seen.num_connections == 1
    assert seen.bodies == [b'{"text":"one"}', b'{"text":"two"}']


async def test_calls_at_the_same_time_take_connections_of_their_own() -> None:
    async with serving(lambda: PLAIN) as (address, seen), HttpCaller(address, ROUTE, timeout_s=5) as caller:
        await asyncio.gather(*(caller.scores("x") for _ in range(8)))
    assert seen.num_connections == 8


async def test_status_is_an_outcome_and_the_connection_is_used_again() -> None:
    answers = iter([BROKEN, PLAIN])
    async with serving(lambda: next(answers)) as (address, seen), HttpCaller(address, ROUTE, timeout_s=5) as caller:
        item = ClassifyItem(texts=("x",))
        outcomes = [await caller.call(item, time.perf_counter(), []) for _ in range(2)]
    assert [outcome.code for outcome in outcomes] == ["HTTP 503", "OK"]
    assert outcomes[1].top_labels == {"label-1"}
    assert seen.num_connections == 1


async def test_broken_connection_fails_the_call_and_the_next_opens_another() -> None:
    answers = iter([b"", PLAIN])
    async with serving(lambda: next(answers)) as (address, seen), HttpCaller(address, ROUTE, timeout_s=5) as caller:
        with pytest.raises(CallFailed, match="IncompleteReadError"):
            await caller.scores("x")
        assert await caller.scores("x") == [0.1, 0.9]
    assert seen.num_connections == 2
