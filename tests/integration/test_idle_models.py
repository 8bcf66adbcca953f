"""Three classifiers with room for two: every request is answered, memory stays within the bound, idle ones rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import models, tiny
from harness.server import ServerProcess
from shoal import AsyncClient
from shoal_models.manifest import read_manifest

NAMES = ("first", "second", "third")
ROOM = 2.5  # versions, by the size of their weights: two as they are, or one and the reckoning for another


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("idle-models")
    for seed, name in enumerate(NAMES):
        models.import_version(path, name, tiny.make("bert", tmp_path_factory.mktemp(name), seed=seed))
    return path


@pytest.fixture(scope="module")
def bound_bytes(repository: Path) -> int:
    return int(ROOM * read_manifest(repository / NAMES[0] / "1").weight_bytes)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, repository: Path, bound_bytes: int) -> Iterator[ServerProcess]:
    changes = {"engine": {"max_loaded_bytes": bound_bytes}, "repository": {"evict_idle": True}}
    with ServerProcess(tmp_path_factory.mktemp("server"), repository, changes) as running:
        assert eventually(lambda: sorted(states(running).values()) == ["idle", "live", "live"]), states(running)
        yield running


def eventually(condition: Callable[[], bool], limit_s: float = 60.0) -> bool:
    limit = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


def states(server: ServerProcess) -> dict[str, str]:
    with server.client() as client:
        return {model.name: model.versions[0].state for model in client.list_models()}


def held_bytes(server: ServerProcess) -> float:
    return server.metric("shoal_version_memory_bytes")


def test_models_in_turn_are_all_answered_and_memory_stays_within_its_bound(
    server: ServerProcess, bound_bytes: int
) -> None:
    with server.client() as client:
        for name in NAMES * 3:
            assert client.classify(name, "seven wizards").served_by.model == name
            assert states(server)[name] == "live"
            assert 0 < held_bytes(server) <= bound_bytes
    assert sorted(states(server).values()) == ["idle", "live", "live"]


def test_models_at_the_same_time_are_all_answered(server: ServerProcess, bound_bytes: int) -> None:
    """Six clients, two for each model, send one request after the other."""

    async def send(client: AsyncClient, name: str) -> int:
        for text in tiny.texts(1, 15, longest=20):
            reply = await client.classify(name, [text])
            assert reply.served_by.model == name
        return 15

    async def run() -> list[int]:
        async with AsyncClient(server.address) as client:
            return await asyncio.gather(*(send(client, name) for name in NAMES * 2))

    seen: list[float] = []

    async def watch() -> None:
        while True:
            seen.append(await asyncio.to_thread(held_bytes, server))
            await asyncio.sleep(0.1)

    async def both() -> int:
        watching = asyncio.create_task(watch())
        answered = sum(await run())
        watching.cancel()
        return answered

    assert asyncio.run(both()) == 90
    assert max(seen) <= bound_bytes
    failed = {
        pairs: value
        for (name, pairs), value in server.samples().items()
        if name == "shoal_rpc_requests_total" and value and dict(pairs)["method"] == "Classify"
        if dict(pairs)["code"] != "OK"
    }
    assert not failed, "none that a retry of the client has hidden"


def test_a_stream_over_an_idle_model_is_answered_item_by_item(server: ServerProcess) -> None:
    async def run(name: str) -> int:
        async with AsyncClient(server.address) as client:
            answers = [answer async for answer in client.classify_stream(name, tiny.texts(2, 20, longest=10))]
        assert all(answer.error is None for answer in answers), answers
        return len(answers)

    idle = next(name for name, state in states(server).items() if state == "idle")
    assert asyncio.run(run(idle)) == 20


def test_a_killed_engine_brings_back_what_was_live_and_leaves_at_rest_what_rested(server: ServerProcess) -> None:
    before = states(server)
    (engine,) = server.children("engine")
    engine.kill()
    assert eventually(lambda: server.metric("shoal_process_restarts_total", role="engine") >= 1)
    assert eventually(lambda: server.metric("shoal_serving") == 1 and held_bytes(server) > 0)
    live = [name for name, state in before.items() if state == "live"]
    assert eventually(lambda: all(server.metric("shoal_version_memory_bytes", model=name) > 0 for name in live))
    assert states(server) == before
    with server.client() as client:
        for name in NAMES:
            assert client.classify(name, "an old town").served_by.model == name


def test_explicit_unload_and_load_of_an_idle_model(server: ServerProcess) -> None:
    idle = next(name for name, state in states(server).items() if state == "idle")
    with server.client() as client:
        client.unload_model(idle)
        assert states(server)[idle] == "unloaded"
        assert client.load_model(idle).state == "live"
    assert sorted(states(server).values()) == ["idle", "live", "live"]


def test_a_model_not_asked_for_in_its_time_is_unloaded_and_the_next_request_is_answered(
    tmp_path: Path, repository: Path
) -> None:
    changes = {"repository": {"idle_unload_s": 1, "models": {NAMES[1]: {"pinned": True}}}}
    with ServerProcess(tmp_path, repository, changes) as server:
        expected = dict(zip(NAMES, ("idle", "live", "idle"), strict=True))
        assert eventually(lambda: states(server) == expected), states(server)
        assert server.metric("shoal_version_memory_bytes", model=NAMES[0]) == 0
        with server.client() as client:
            assert client.classify(NAMES[0], "green hills").served_by.version == 1
            assert client.get_model(NAMES[0]).versions[0].memory_bytes > 0
        assert eventually(lambda: states(server) == expected), states(server)
