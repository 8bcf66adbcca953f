"""With two fronts the counters on /metrics equal what the client counted, also across the death of a front."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import tiny
from harness.server import ServerProcess
from shoal import AsyncClient, RpcError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_repository: Path) -> Iterator[ServerProcess]:
    changes = {"listen": {"num_fronts": 2}}
    with ServerProcess(tmp_path_factory.mktemp("server"), tiny_repository, changes) as running:
        running.wait_live("bert", 1)
        running.wait_live("llama", 1)
        yield running


def eventually(condition: Callable[[], bool], limit_s: float = 10.0) -> bool:
    limit = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


async def send(server: ServerProcess, num_clients: int) -> tuple[int, int, int, int]:
    """Classify calls answered, refused, input tokens, output tokens - as the client counts them."""
    answered = refused = tokens_in = tokens_out = 0
    for seed in range(num_clients):
        async with AsyncClient(server.address) as client:
            for text in tiny.texts(seed, 5, longest=15):
                reply = await client.classify("bert", [text])
                answered += 1
                tokens_in += reply.results[0].num_input_tokens
            try:
                await client.classify("bert", [""])
            except RpcError:
                refused += 1
            generated = await client.generate(
                "llama", "an old harbour", temperature=0, max_new_tokens=7, ignore_eos=True
            )
            tokens_out += generated.summary.num_output_tokens
    return answered, refused, tokens_in, tokens_out


WATCHED: dict[str, tuple[str, dict[str, str]]] = {
    "answered": ("shoal_rpc_requests_total", {"method": "Classify", "code": "OK", "model": "bert"}),
    "refused": ("shoal_rpc_requests_total", {"method": "Classify", "code": "INVALID_ARGUMENT"}),
    "tokens_in": ("shoal_input_tokens_total", {"model": "bert"}),
    "tokens_out": ("shoal_output_tokens_total", {"model": "llama"}),
}


def watched(server: ServerProcess) -> dict[str, float]:
    return {key: server.metric(name, **labels) for key, (name, labels) in WATCHED.items()}


def test_counters_equal_the_clients_counts(server: ServerProcess) -> None:
    before = watched(server)
    sent = dict(zip(WATCHED, asyncio.run(send(server, 24)), strict=True))
    wanted = {key: before[key] + sent[key] for key in WATCHED}
    assert eventually(lambda: watched(server) == wanted), (watched(server), wanted)


def test_counters_never_go_back_when_a_front_dies(server: ServerProcess) -> None:
    asyncio.run(send(server, 4))
    time.sleep(2.5)  # both fronts have sent a snapshot since
    before = watched(server)
    server.children("front")[0].kill()
    assert eventually(lambda: len(server.children("front")) == 2)
    assert eventually(lambda: server.metric("shoal_process_restarts_total", role="front") >= 1)
    after = watched(server)
    assert all(after[key] >= before[key] for key in WATCHED), (before, after)


def test_every_process_shows_its_memory(server: ServerProcess) -> None:
    def shown() -> bool:
        names = {
            dict(pairs).get("process")
            for (name, pairs) in server.samples()
            if name == "shoal_process_resident_memory_bytes"
        }
        return len(names) >= 4  # control, two fronts, an engine

    assert eventually(shown)
