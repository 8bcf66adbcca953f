"""Queues, deadlines and cancellation: refused at the door, never run when expired, freed within one step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.server import ServerProcess
from shoal import AsyncClient, DeadlineError, ExhaustedError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_repository: Path) -> Iterator[ServerProcess]:
    """Room for two running and two waiting sequences, and for 256 waiting tokens of Classify."""
    changes = {"generate": {"max_running": 2, "max_waiting": 2}, "classify": {"max_waiting_tokens": 256}}
    with ServerProcess(tmp_path_factory.mktemp("server"), tiny_repository, changes) as running:
        running.wait_live("bert", 1)
        running.wait_live("llama", 1)
        yield running


LONG = {"max_new_tokens": 230, "ignore_eos": True, "temperature": 0.0}


async def test_a_full_queue_refuses_at_once_with_a_retry_delay(server: ServerProcess) -> None:
    async with AsyncClient(server.address) as client:
        calls = [asyncio.create_task(client.generate("llama", "hello", **LONG)) for _ in range(12)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [o for o in outcomes if isinstance(o, ExhaustedError)]
    answered = [o for o in outcomes if not isinstance(o, BaseException)]
    assert len(refused) + len(answered) == 12
    assert len(answered) >= 4
    assert refused
    assert all(error.retry_after_s and error.reason == "QUEUE_FULL" for error in refused)
    limit = time.monotonic() + 10  # fronts tell what they have counted once a second
    while server.metric("shoal_rejected_requests_total") < len(refused):
        assert time.monotonic() < limit, "refused requests are counted"
        await asyncio.sleep(0.1)


async def test_a_classify_call_above_the_bound_is_refused(server: ServerProcess) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(ExhaustedError):
            await client.classify("bert", ["the quick brown fox jumps over"] * 200, timeout=5)
        assert len(await client.classify("bert", ["still here"])) == 1


async def test_an_expired_request_ends_in_time_and_frees_its_place(server: ServerProcess) -> None:
    async with AsyncClient(server.address) as client:
        running = [asyncio.create_task(client.generate("llama", "hello", **LONG)) for _ in range(2)]
        await asyncio.sleep(0.02)
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            await client.generate("llama", "hello", timeout=0.05, **LONG)
        assert time.monotonic() - began < 1.0
        await asyncio.gather(*running)
        await client.generate("llama", "hello", max_new_tokens=2)


async def test_an_expired_request_is_never_executed(server: ServerProcess) -> None:
    """The engine's count of tokens is that of the two requests which held both places, to the token."""

    async def settled_tokens() -> float:
        await wait_idle(server)
        await asyncio.sleep(1.5)  # engines tell their counts once a second
        return server.metric("shoal_batch_tokens_sum", model="llama")

    before, expired_before = await settled_tokens(), server.metric("shoal_expired_total", model="llama")
    async with AsyncClient(server.address) as client:
        running = [asyncio.create_task(client.generate("llama", "hello", **LONG)) for _ in range(2)]
        await asyncio.sleep(0.02)
        with pytest.raises(DeadlineError):
            await client.generate("llama", "never read " * 8, timeout=0.05)
        replies = await asyncio.gather(*running)
    # the last new token of a request is returned and never read
    read = sum(r.summary.num_prompt_tokens + r.summary.num_output_tokens - 1 for r in replies)
    assert await settled_tokens() - before == read
    assert server.metric("shoal_expired_total", model="llama") - expired_before <= 1


async def wait_idle(server: ServerProcess, limit_s: float = 6.0) -> float:
    began = time.monotonic()
    while server.metric("shoal_kv_blocks_used", model="llama") or server.metric(
        "shoal_requests_running", model="llama"
    ):
        assert time.monotonic() - began < limit_s
        await asyncio.sleep(0.1)
    return time.monotonic() - began


async def test_cancelled_streams_free_their_places(server: ServerProcess) -> None:
    """Both places are taken and left a hundred times over; a place that leaked would refuse the next request."""
    async with AsyncClient(server.address) as client:
        for _ in range(100):
            async with client.stream_generate("llama", "hello", **LONG) as stream:
                async for _delta in stream:
                    break
        for _ in range(50):
            try:
                reply = await client.generate("llama", "hello", max_new_tokens=2, timeout=5)
                break
            except ExhaustedError:  # the last cancellations may still be on their way
                await asyncio.sleep(0.05)
        assert reply.summary.num_output_tokens == 2
    await wait_idle(server)
