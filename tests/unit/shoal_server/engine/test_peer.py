"""Tokens are held back from a front that does not read, and from no other."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from shoal_server.engine.peer import Peer
from shoal_server.errors import DeadlinePassed
from shoal_server.ipc.channel import Channel, connect, listen
from shoal_server.ipc.messages import (
    CallFailed,
    ClassifyCall,
    ClassifyDone,
    EngineTimes,
    FromEngineToFront,
    TokenLogprobs,
    TokensGenerated,
)

TIMES = EngineTimes(received_s=0.0, started_s=0.0, ended_s=0.0)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Channel, Channel]]:
    """The engine's and the front's end of a connection."""
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()

    async def serve(channel: Channel) -> None:
        accepted.set_result(channel)
        await asyncio.Event().wait()

    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        path = str(Path(folder) / "s")
        server = await listen(path, ClassifyCall, serve)
        front = await connect(path, FromEngineToFront)
        engine = await accepted
        yield engine, front
        engine.close()
        front.close()
        server.close()
        await asyncio.sleep(0)


def tokens(request_id: int, token_id: int) -> TokensGenerated:
    logprobs = [TokenLogprobs(logprob=-1.0, token_ids=[], logprobs=[])]
    return TokensGenerated(request_id=request_id, token_ids=[token_id], logprobs=logprobs)


async def fill(engine: Channel) -> None:
    """Send until neither the system nor the front takes any more."""
    while engine.backlog_bytes <= 2**17:
        engine.send(ClassifyDone(request_id=99, logits=bytes(2**16), times=TIMES))
        await asyncio.sleep(0)


async def received(front: Channel, until: int) -> list:
    """Messages of streams, up to the one that ends call `until`."""
    found = []
    async with asyncio.timeout(10):
        while not any(isinstance(m, CallFailed) and m.request_id == until for m in found):
            found += [m for m in await front.receive() if not isinstance(m, ClassifyDone)]
    return found


def failed(request_id: int) -> CallFailed:
    return CallFailed(request_id=request_id, error=DeadlinePassed("too late").to_wire())


async def test_to_a_front_that_reads_every_token_goes_at_once(ends):
    engine, front = ends
    peer = Peer(engine)
    for token_id in range(3):
        peer.send(tokens(1, token_id))
        assert [m.token_ids for m in await front.receive()] == [[token_id]]


async def test_a_slow_front_gets_first_tokens_at_once_and_the_others_together(ends):
    """Streams 1 and 2 send 100 tokens each while nothing is read: each arrives as one token, then one message of 99."""
    engine, front = ends
    peer = Peer(engine)
    await fill(engine)
    for token_id in range(100):
        peer.send(tokens(1, token_id))
        peer.send(tokens(2, 1000 + token_id))
        await asyncio.sleep(0)
    peer.send(failed(2))
    of_two = [m for m in await received(front, until=2) if m.request_id == 2]
    assert [len(m.token_ids) for m in of_two[:-1]] == [1, 99], "the end takes the held tokens along first"
    assert [t for m in of_two[:-1] for t in m.token_ids] == list(range(1000, 1100))
    assert len(of_two[1].logprobs) == 99
    peer.send(failed(1))
    await asyncio.sleep(0)


async def test_held_tokens_go_out_by_themselves_when_the_front_reads_again(ends):
    engine, front = ends
    peer = Peer(engine)
    await fill(engine)
    for token_id in range(10):
        peer.send(tokens(1, token_id))
    found: list[int] = []
    async with asyncio.timeout(10):
        while len(found) < 10:
            for message in await front.receive():
                found += message.token_ids if isinstance(message, TokensGenerated) else []
    assert found == list(range(10))
    peer.send(tokens(1, 10))
    assert [m.token_ids for m in await front.receive()] == [[10]], "and then at once again"


async def test_nothing_is_sent_for_a_call_that_was_aborted_while_its_tokens_were_held(ends):
    engine, front = ends
    peer = Peer(engine)
    await fill(engine)
    peer.send(tokens(1, 0))
    peer.send(tokens(1, 1))
    peer.forget(1)
    peer.send(failed(2))
    found = await received(front, until=2)
    assert [m.token_ids for m in found if m.request_id == 1] == [[0]]
