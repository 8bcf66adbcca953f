"""Memory is flat: each process after 3,000 requests stands within 3 % of where it stood after 1,000."""

from __future__ import annotations

import asyncio

import psutil
from harness import tiny
from harness.server import ServerProcess
from shoal import AsyncClient

ALLOWED_GROWTH = 1.03


async def send(server: ServerProcess, count: int, seed: int) -> None:
    texts = tiny.texts(seed, 16, longest=20)
    async with AsyncClient(server.address) as client:
        gate = asyncio.Semaphore(16)

        async def one(index: int) -> None:
            async with gate:
                if index % 10 == 0:
                    await client.generate("llama", "an old harbour", temperature=1.0, max_new_tokens=6)
                else:
                    await client.classify("bert", [texts[index % len(texts)]])

        await asyncio.gather(*(one(i) for i in range(count)))


def resident(server: ServerProcess) -> dict[str, int]:
    found = {"control": psutil.Process(server.pid)}
    for role in ("front", "engine"):
        found |= {f"{role}-{i}": process for i, process in enumerate(server.children(role))}
    return {name: process.memory_info().rss for name, process in found.items()}


def test_resident_memory_is_flat_over_requests(tiny_server: ServerProcess) -> None:
    asyncio.run(send(tiny_server, 1000, 1))
    after_1000 = resident(tiny_server)
    asyncio.run(send(tiny_server, 2000, 1))
    after_3000 = resident(tiny_server)
    growth = {name: after_3000[name] / after_1000[name] for name in after_1000}
    print({name: f"{ratio:.4f}" for name, ratio in growth.items()})
    assert len(growth) == 3
    assert all(ratio <= ALLOWED_GROWTH for ratio in growth.values()), growth
