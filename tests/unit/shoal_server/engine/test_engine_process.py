"""A real engine process: loads, answers as transformers does, refuses, frees, and ends when it should."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_process import EngineProcess, Front, as_logits
from harness import tiny
from shoal_models.manifest import MANIFEST_NAME, Manifest, read_manifest
from shoal_models.save import publish_model
from shoal_server.config import ClassifyConfig, EngineConfig, GenerateConfig, ServerConfig
from shoal_server.errors import DeadlinePassed, InvalidRequest, VersionNotFound, WrongModelKind
from shoal_server.ipc.messages import FinishReason, Sampling, UnloadVersion, VersionLoaded, VersionRefused

GREEDY = Sampling(temperature=0.0)
DECODERS = ("gpt2", "llama", "qwen2")
# Small enough that prefills come in chunks, sequences wait, and blocks run out: the cache holds 280 tokens of llama and
# qwen2, 140 of gpt2.
CONFIG = ServerConfig(
    engine=EngineConfig(dtype="float32", num_threads=1),
    classify=ClassifyConfig(token_budget=64),
    generate=GenerateConfig(token_budget=24, max_running=6, kv_block_tokens=4, kv_cache_bytes=280 * 256),
)


@dataclasses.dataclass
class Published:
    """A version, and the transformers model it was made of."""

    path: Path
    model: Any


def publish(kind: str, root: Path, *, name: str = "", seed: int = 0) -> Published:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny.make(kind, root / f"{name or kind}-{seed}", seed=seed)
    is_encoder = kind in tiny.ENCODERS
    auto = AutoModelForSequenceClassification if is_encoder else AutoModelForCausalLM
    model = auto.from_pretrained(folder).eval()
    manifest = Manifest(
        model=name or kind,
        version=0,
        kind="classifier" if is_encoder else "generator",
        family="",
        architecture="",
        max_tokens=0,
        vocabulary_size=0,
        weight_dtype="float32",
    )
    published = publish_model(model, AutoTokenizer.from_pretrained(folder), root / "repository", manifest)
    return Published(path=root / "repository" / published.model / str(published.version), model=model)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Published]:
    """One version of each kind."""
    root = tmp_path_factory.mktemp("published")
    return {kind: publish(kind, root) for kind in ("bert", *DECODERS)}


@pytest.fixture(scope="module")
def runtime_dir() -> Iterator[Path]:
    """A short path: those of unix sockets are limited to about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
async def engine(runtime_dir: Path, published: dict[str, Published]) -> AsyncIterator[EngineProcess]:
    """An engine with every version loaded; told to end by SIGTERM, it does so at once and leaves no socket behind."""
    engine = EngineProcess(runtime_dir, CONFIG)
    await engine.start()
    try:
        for version in published.values():
            loaded = await engine.load(version.path)
            assert isinstance(loaded, VersionLoaded), loaded
        yield engine
        engine.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(engine.process.wait(), 5) == 0
        assert "engine-0-1.sock" not in os.listdir(runtime_dir)  # noqa: PTH208
    finally:
        await engine.stop()


@pytest.fixture
async def front(engine: EngineProcess) -> AsyncIterator[Front]:
    front = await Front.connect(engine.hello.address)
    yield front
    await front.close()


def made_up(rng: random.Random, longest: int, vocabulary: int = 170) -> list[int]:
    return [rng.randrange(10, vocabulary) for _ in range(rng.randint(1, longest))]


async def test_the_engine_introduces_itself_and_tells_what_it_loaded(engine, published):
    assert engine.hello.device == "cpu"
    assert engine.hello.device_name
    assert engine.hello.compute_dtype == "float32"
    loaded = {(m.model, m.version): m for m in engine.messages if isinstance(m, VersionLoaded)}
    bert, llama = loaded["bert", 1], loaded["llama", 1]
    assert (bert.execution, bert.kv_cache_tokens) == ("packed", 0)
    assert llama.kv_cache_tokens == 280, "280 tokens of 2 layers x 2 x 2 heads x 8 floats fit the configured bytes"
    bert_file_bytes = read_manifest(published["bert"].path).weight_bytes
    assert bert.memory.cache_bytes == 0
    assert bert_file_bytes * 0.8 < bert.memory.weight_bytes < bert_file_bytes * 1.2
    assert bert.memory.reckoned_bytes == pytest.approx(bert_file_bytes * 1.1, rel=0.01)
    assert llama.memory.cache_bytes == 280 * 2 * 2 * 2 * 8 * 4
    assert 0 < bert.load_s < 30


async def test_packed_logits_equal_those_of_single_sequences(published, front):
    """40 calls of 1 to 5 sequences, some of them pairs, sent at once; the budget of 64 tokens cuts calls in two."""
    rng = random.Random(1)
    calls = []
    for _ in range(40):
        sequences = [made_up(rng, 30) for _ in range(rng.randint(1, 5))]
        types = [rng.randrange(len(ids)) if rng.random() < 0.4 else -1 for ids in sequences]
        calls.append((sequences, types, front.classify(published["bert"].path, sequences, type_starts=types)))
    for sequences, types, answer in calls:
        done = await answer.done()
        found = as_logits(done, len(sequences))
        for ids, start, logits in zip(sequences, types, found, strict=True):
            type_ids = [int(start >= 0 and i >= start) for i in range(len(ids))]
            with torch.inference_mode():
                expected = (
                    published["bert"]
                    .model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([type_ids]))
                    .logits[0]
                )
            np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
        assert done.times.received_s <= done.times.started_s <= done.times.ended_s <= time.monotonic()


def greedy(model: Any, prompt: list[int], num_new: int, **more: Any) -> list[int]:
    """What transformers generates, the end of sequence left out."""
    with torch.inference_mode():
        tokens = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=num_new,
            **more,
        )[0, len(prompt) :].tolist()
    return tokens[:-1] if tokens[-1] == model.config.eos_token_id else tokens


def near_tie(model: Any, tokens: list[int]) -> bool:
    """Whether the two best continuations of these tokens are closer than 1e-4."""
    with torch.inference_mode():
        best = model(torch.tensor([tokens])).logits[0, -1].topk(2).values
    return bool(best[0] - best[1] < 1e-4)


@pytest.mark.parametrize("kind", DECODERS)
async def test_joining_and_leaving_at_random_gives_what_transformers_generates(engine, published, front, kind):
    """24 requests that arrive over time, of different lengths, in a cache too small for them: some are preempted.

    A sequence may differ only from a token on whose two best logits are closer than 1e-4; with these seeds none does.
    """
    rng = random.Random(kind)
    version = published[kind]
    calls = []
    for _ in range(24):
        prompt, num_new = made_up(rng, 40), rng.randint(1, 80)
        calls.append((prompt, num_new, front.generate(version.path, prompt, num_new, sampling=GREEDY)))
        await asyncio.sleep(rng.choice([0.0, 0.0, 0.002, 0.02]))
    ties = 0
    for prompt, num_new, answer in calls:
        done = await answer.done()
        expected = greedy(version.model, prompt, num_new)
        if answer.token_ids != expected:
            pairs = zip(answer.token_ids, expected, strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(answer.token_ids)))
            assert near_tie(version.model, prompt + expected[:same])
            ties += 1
            continue
        ended = done.reason is FinishReason.END_OF_SEQUENCE
        assert ended or (done.reason is FinishReason.LENGTH and len(expected) == num_new)
        assert done.times.received_s <= done.times.started_s <= done.times.ended_s
    assert ties == 0, "with fixed weights and prompts there are none"
    statistics = await engine.statistics(version.path, where=lambda m: m.num_running == 0)
    assert statistics.num_preempted > 0, "the cache was to run out"
    assert statistics.kv_blocks_used == 0
    assert statistics.num_waiting == 0


async def test_the_same_seed_gives_the_same_text_alone_and_in_company(published, front):
    path, prompt = published["llama"].path, [20, 30, 40]
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=2**64 - 1)
    alone = front.generate(path, prompt, 20, sampling=sampling, ignore_eos=True)
    await alone.done()
    crowd = [
        front.generate(path, prompt, 20, sampling=dataclass_seed(sampling, seed), ignore_eos=True) for seed in range(5)
    ]
    again = front.generate(path, prompt, 20, sampling=sampling, ignore_eos=True)
    await again.done()
    others = [(await other.done(), tuple(other.token_ids))[1] for other in crowd]
    assert again.token_ids == alone.token_ids
    assert len(alone.token_ids) == 20
    assert len({*others, tuple(alone.token_ids)}) == 6, "other seeds, other texts"


def dataclass_seed(sampling: Sampling, seed: int) -> Sampling:
    return Sampling(temperature=sampling.temperature, top_p=sampling.top_p, seed=seed)


async def test_stop_and_minimum_and_penalty_hold_as_in_transformers(published, front):
    version, prompt = published["llama"], [20, 30, 40, 50]
    plain = greedy(version.model, prompt, 12)
    stop = plain[5]
    first = plain.index(stop)
    stopped = front.generate(version.path, prompt, 12, sampling=GREEDY, stop_token_ids=[stop])
    done = await stopped.done()
    assert (done.reason, done.stop_token_id) == (FinishReason.STOP_TOKEN, stop)
    assert stopped.token_ids == plain[:first]
    penalised = front.generate(version.path, prompt, 12, sampling=Sampling(temperature=0.0, repetition_penalty=1.8))
    await penalised.done()
    assert penalised.token_ids == greedy(version.model, prompt, 12, repetition_penalty=1.8)
    held = front.generate(version.path, prompt, 12, sampling=GREEDY, stop_token_ids=[stop], min_new_tokens=12)
    assert (await held.done()).reason is FinishReason.LENGTH
    assert stop not in held.token_ids
    assert len(held.token_ids) == 12


async def test_logprobs_are_those_of_the_model(published, front):
    version, prompt = published["gpt2"], [20, 30, 40]
    answer = front.generate(version.path, prompt, 3, sampling=Sampling(seed=5), num_logprobs=2, ignore_eos=True)
    await answer.done()
    assert len(answer.logprobs) == len(answer.token_ids) == 3
    tokens = prompt[:]
    for token_id, found in zip(answer.token_ids, answer.logprobs, strict=True):
        with torch.inference_mode():
            expected = torch.log_softmax(version.model(torch.tensor([tokens])).logits[0, -1], -1)
        assert found.logprob == pytest.approx(float(expected[token_id]), abs=1e-3)
        assert found.token_ids == expected.topk(2).indices.tolist()
        tokens.append(token_id)


async def test_a_full_context_ends_a_completion_that_wanted_more(published, front):
    """Context 256: a prompt of 250 leaves room for 6."""
    answer = front.generate(published["llama"].path, [20] * 250, 100, sampling=GREEDY, ignore_eos=True)
    assert (await answer.done()).reason is FinishReason.CONTEXT_FULL
    assert len(answer.token_ids) == 6


async def test_an_aborted_stream_is_silent_and_its_place_is_free(engine, published, front):
    path = published["llama"].path
    long = front.generate(path, [20, 30], 250, sampling=GREEDY, ignore_eos=True)
    await long.begun.wait()
    front.abort(long)
    statistics = await engine.statistics(path, where=lambda m: m.num_running == 0)
    assert statistics.kv_blocks_used == 0
    num_tokens = len(long.token_ids)
    await asyncio.sleep(0.1)
    assert len(long.token_ids) == num_tokens < 250
    assert not long.end.done()


async def test_a_front_that_leaves_takes_its_calls_along(engine, published):
    path = published["llama"].path
    leaver = await Front.connect(engine.hello.address)
    calls = [leaver.generate(path, [20, 30], 250, sampling=GREEDY, ignore_eos=True) for _ in range(8)]
    await calls[0].begun.wait()
    await leaver.close()
    statistics = await engine.statistics(path, where=lambda m: m.num_running == m.num_waiting == 0)
    assert statistics.kv_blocks_used == 0


async def test_what_has_expired_is_never_run_and_a_running_one_ends(engine, published, front):
    before = await engine.statistics(published["bert"].path)
    past = time.monotonic() - 0.001
    with pytest.raises(DeadlinePassed):
        await front.classify(published["bert"].path, [[5, 6]], deadline_s=past).done()
    with pytest.raises(DeadlinePassed):
        await front.generate(published["llama"].path, [20], 5, sampling=GREEDY, deadline_s=past).done()
    after = await engine.statistics(published["bert"].path)
    assert after.num_steps == before.num_steps
    assert after.num_expired == before.num_expired + 1
    soon = time.monotonic() + 0.03
    running = front.generate(published["llama"].path, [20], 250, sampling=GREEDY, ignore_eos=True, deadline_s=soon)
    with pytest.raises(DeadlinePassed):
        await running.done()
    assert 0 < len(running.token_ids) < 250


async def test_a_bad_call_gets_its_reason_and_nothing_else_suffers(published, front):
    bert, llama = published["bert"].path, published["llama"].path
    good = front.generate(llama, [20, 30], 40, sampling=GREEDY, ignore_eos=True)
    with pytest.raises(VersionNotFound, match="bert@7"):
        await front.classify(bert.parent / "7", [[5]]).done()
    with pytest.raises(WrongModelKind):
        await front.classify(llama, [[5]]).done()
    with pytest.raises(WrongModelKind):
        await front.generate(bert, [5], 3, sampling=GREEDY).done()
    with pytest.raises(InvalidRequest, match=r"inputs\[1\].*65 tokens; allowed are 1 to 64"):
        await front.classify(bert, [[5], [5] * 65]).done()
    with pytest.raises(InvalidRequest, match="outside"):
        await front.classify(bert, [[5], [100_000]]).done()
    with pytest.raises(InvalidRequest, match="outside"):
        await front.generate(llama, [-1], 3, sampling=GREEDY).done()
    with pytest.raises(InvalidRequest, match="256 tokens; allowed are 1 to 255"):
        await front.generate(llama, [20] * 256, 3, sampling=GREEDY).done()
    with pytest.raises(InvalidRequest, match="there are none"):
        await front.classify(bert, []).done()
    await good.done()
    assert len(good.token_ids) == 40


def copy_of(version: Published, root: Path, name: str) -> Path:
    """A version folder to be damaged."""
    path = root / name / "1"
    shutil.copytree(version.path, path)
    manifest = dataclasses.replace(read_manifest(version.path), model=name, version=1)
    (path / MANIFEST_NAME).write_text(json.dumps(dataclasses.asdict(manifest)))
    return path


async def test_a_damaged_version_is_refused_with_its_reason_and_the_engine_serves_on(
    engine, published, front, tmp_path
):
    source = published["bert"]
    flipped = copy_of(source, tmp_path, "flipped")
    weights = bytearray((flipped / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (flipped / "model.safetensors").write_bytes(weights)
    truncated = copy_of(source, tmp_path, "truncated")
    with (truncated / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    incomplete = copy_of(source, tmp_path, "incomplete")
    (incomplete / MANIFEST_NAME).unlink()
    for path, reason in (
        (flipped, "model.safetensors differs from its checksum"),
        (truncated, "has 100 bytes"),
        (incomplete, "manifest.json is missing"),
        (tmp_path / "nowhere" / "1", "manifest.json is missing"),
    ):
        refused = await engine.load(path)
        assert isinstance(refused, VersionRefused)
        assert reason in refused.reason
        assert (refused.model, refused.version) == (path.parent.name, 1)
    await front.classify(source.path, [[5, 6, 7]]).done()


async def test_a_version_that_computes_otherwise_is_refused(engine, published, tmp_path):
    """Golden outputs moved by a hundredth, checksums set right: only computing tells."""
    path = copy_of(published["bert"], tmp_path, "moved")
    with np.load(path / "golden.npz") as archive:
        arrays = dict(archive)
    arrays["logits"] = arrays["logits"] + np.float32(0.01)
    np.savez(path / "golden.npz", **arrays)
    from shoal_models.manifest import sha256_of

    manifest = read_manifest(path)
    files = tuple(
        dataclasses.replace(f, sha256=sha256_of(path / f.path), size_bytes=(path / f.path).stat().st_size)
        for f in manifest.files
    )
    (path / MANIFEST_NAME).write_text(json.dumps(dataclasses.asdict(dataclasses.replace(manifest, files=files))))
    refused = await engine.load(path)
    assert isinstance(refused, VersionRefused)
    assert "golden output" in refused.reason


async def test_an_unloaded_version_finishes_what_runs_and_takes_no_more(engine, front, tmp_path):
    version = publish("llama", tmp_path, name="leaving", seed=3)
    await engine.load(version.path)
    running = front.generate(version.path, [20, 30], 60, sampling=GREEDY, ignore_eos=True)
    await running.begun.wait()
    unloading = asyncio.create_task(engine.unload(version.path))
    await asyncio.sleep(0)
    await asyncio.sleep(0.02)
    with pytest.raises(VersionNotFound):
        await front.generate(version.path, [20], 5, sampling=GREEDY).done()
    await running.done()
    assert len(running.token_ids) == 60
    unloaded = await unloading
    assert (unloaded.model, unloaded.version) == ("leaving", 1)
    assert isinstance(await engine.load(version.path), VersionLoaded), "and it may come back"
    await engine.unload(version.path)


async def test_a_version_unloaded_while_it_loads_is_never_served(engine, front, tmp_path):
    version = publish("bert", tmp_path, name="fleeting")
    since = len(engine.messages)
    loading = asyncio.create_task(engine.load(version.path))
    await asyncio.sleep(0)
    engine.send(UnloadVersion(model="fleeting", version=1))
    await engine.unload(version.path)
    loading.cancel()
    assert not [m for m in engine.messages[since:] if isinstance(m, VersionLoaded | VersionRefused)]
    with pytest.raises(VersionNotFound):
        await front.classify(version.path, [[5]]).done()


async def test_a_version_that_does_not_fit_is_refused_and_the_engine_ends_when_control_is_gone(published):
    config = ServerConfig(engine=EngineConfig(dtype="float32", num_threads=1, memory_limit_bytes=2**20))
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        engine = EngineProcess(Path(folder), config)
        await engine.start()
        try:
            refused = await engine.load(published["bert"].path)
            assert isinstance(refused, VersionRefused)
            assert "bytes of memory to load; 0 are available" in refused.reason
            assert refused.lacking_bytes > 0
            engine.disconnect()
            assert await asyncio.wait_for(engine.process.wait(), 5) == 0
        finally:
            await engine.stop()


async def test_versions_within_the_bound_are_loaded_and_one_more_says_what_it_lacks_until_another_is_freed(published):
    """Room for one and a half: what is reckoned for the second lies beyond the bound as long as the first is held."""
    bert = read_manifest(published["bert"].path)
    bound_bytes = int(bert.weight_bytes * 1.5)
    config = ServerConfig(engine=EngineConfig(dtype="float32", num_threads=1, max_loaded_bytes=bound_bytes))
    with tempfile.TemporaryDirectory(prefix="shoal") as folder:
        engine = EngineProcess(Path(folder), config)
        await engine.start()
        try:
            again = publish("bert", Path(folder), name="again").path
            loaded = await engine.load(published["bert"].path)
            refused = await engine.load(again)
            assert isinstance(refused, VersionRefused)
            assert f"engine.max_loaded_bytes is {bound_bytes:,}" in refused.reason
            held_bytes, reckoned_bytes = loaded.memory.total_bytes, loaded.memory.reckoned_bytes
            assert refused.lacking_bytes == held_bytes + reckoned_bytes - bound_bytes
            await engine.unload(published["bert"].path)
            assert isinstance(await engine.load(again), VersionLoaded)
        finally:
            await engine.stop()
