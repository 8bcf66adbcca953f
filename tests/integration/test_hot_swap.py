"""Fifty hot swaps under load: nothing fails, and every reply is wholly of one version.

Odd versions hold one set of weights and even versions another, so that a reply's numbers tell which weights made it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import models, tiny
from harness.reference import ReferenceClassifier, ReferenceGenerator
from harness.server import TWO_LANES, ServerProcess
from shoal import AsyncClient

NUM_SWAPS = 50
TEXTS = tiny.texts(3, 6, longest=20)
PROMPT = "seven wizards quietly brew"
NUM_TOKENS = 200


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    root = tmp_path_factory.mktemp("variants")
    return {
        kind: [tiny.make(kind, root / f"{kind}-{seed}", seed=seed) for seed in (11, 12)] for kind in ("bert", "llama")
    }


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, variants: dict[str, list[Path]]) -> Path:
    """Versions 1 and 2 of both models."""
    path = tmp_path_factory.mktemp("swaps")
    for kind, folders in variants.items():
        for folder in folders:
            models.import_version(path, kind, folder)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server"), repository, TWO_LANES) as running:
        for kind in ("bert", "llama"):
            running.wait_live(kind, 2)
        yield running


class Watcher:
    """Keeps asking and checks every reply against the weights of the version that it names."""

    def __init__(self, variants: dict[str, list[Path]]) -> None:
        self.logits = [[ReferenceClassifier(folder).logits(text) for text in TEXTS] for folder in variants["bert"]]
        generators = [ReferenceGenerator(folder) for folder in variants["llama"]]
        self.prompt = generators[0].tokenizer(PROMPT).input_ids
        self.tokens = [g.greedy(self.prompt, NUM_TOKENS).token_ids for g in generators]
        self.seen: dict[str, set[int]] = {"bert": set(), "llama": set()}
        self.num_replies = 0
        self.newest_llama = 2  # live
        self.num_crossed = 0  # streams during which another version went live
        self.stop = asyncio.Event()

    async def classify(self, client: AsyncClient) -> None:
        while not self.stop.is_set():
            reply = await client.classify("bert", TEXTS, scores="logits")
            wanted = self.logits[(reply.served_by.version + 1) % 2]
            for result, logits in zip(reply.results, wanted, strict=True):
                scores = [s for _, s in sorted(zip(result.label_ids, result.scores, strict=True))]
                assert scores == pytest.approx(logits, abs=1e-4)
            self._count("bert", reply.served_by.version)

    async def stream(self, client: AsyncClient) -> None:
        while not self.stop.is_set():
            async with client.stream_generate(
                "llama", token_ids=self.prompt, temperature=0, max_new_tokens=NUM_TOKENS
            ) as stream:
                tokens = [token async for delta in stream for token in delta.token_ids]
            version = stream.summary.served_by.version
            assert tokens == self.tokens[(version + 1) % 2], version
            self.num_crossed += version < self.newest_llama
            self._count("llama", version)

    async def has_met(self, model: str, version: int, asking: list[asyncio.Task[None]]) -> None:
        """Return once a version has answered."""
        while version not in self.seen[model]:
            assert not any(task.done() for task in asking), [task for task in asking if task.done()]
            await asyncio.sleep(0.01)

    def _count(self, model: str, version: int) -> None:
        self.seen[model].add(version)
        self.num_replies += 1


async def wait_live(client: AsyncClient, model: str, version: int) -> None:
    while True:
        found = [v for v in (await client.get_model(model)).versions if v.version == version]
        if found and found[0].state == "live":
            return
        assert not found or found[0].state != "rejected", found[0].reason
        await asyncio.sleep(0.02)


async def test_fifty_swaps_lose_nothing_and_mix_nothing(
    server: ServerProcess, repository: Path, variants: dict[str, list[Path]]
) -> None:
    watcher = Watcher(variants)
    async with AsyncClient(server.address) as client:
        asking = [asyncio.create_task(watcher.classify(client)) for _ in range(4)]
        asking += [asyncio.create_task(watcher.stream(client)) for _ in range(4)]
        for swap in range(NUM_SWAPS):
            model = ("bert", "llama")[swap % 2]
            version = 3 + swap // 2
            models.copy_version(repository, model, repository / model / str(version - 2), version)
            await wait_live(client, model, version)
            watcher.newest_llama = version if model == "llama" else watcher.newest_llama
            await watcher.has_met(model, version, asking)
        watcher.stop.set()
        await asyncio.gather(*asking)
        live = [v.version for v in (await client.get_model("bert")).versions if v.state == "live"]
    print(f"{watcher.num_replies} replies, {watcher.num_crossed} streams crossed a swap")
    failed = {
        labels: value
        for (name, labels), value in server.samples().items()
        if name == "shoal_rpc_requests_total"
        and value
        and dict(labels)["method"].endswith(("Classify", "StreamGenerate"))
        if dict(labels)["code"] != "OK"
    }
    assert not failed, "none that a retry of the client has hidden"
    assert watcher.num_crossed > NUM_SWAPS // 5
    assert min(len(seen) for seen in watcher.seen.values()) >= NUM_SWAPS // 2
    assert live == [2 + NUM_SWAPS // 2]
    kept = [int(path.name) for path in (repository / "bert").iterdir() if path.name.isdigit()]
    assert len(kept) <= 6, kept  # five, and one that may still drain
