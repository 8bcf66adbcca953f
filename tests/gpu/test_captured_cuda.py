"""On a GPU the same answers from captured forwards, from two under way at once, in int8, and while versions change."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
from gpu_device import DEVICE, IS_GPU, MARKS
from harness import models, tiny
from harness.reference import ReferenceClassifier
from harness.server import ServerProcess
from shoal import AsyncClient
from shoal_models.classifier import LoadedClassifier
from shoal_models.load import load_version
from shoal_models.manifest import read_manifest
from shoal_models.packed import pack
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.classify_queue import ClassifyPlan
from shoal_server.engine.lanes import Lanes
from shoal_server.engine.model_runner import ModelRunner, ReadyClassifier
from shoal_server.engine.request import VersionKey, classify_request
from shoal_server.ipc.messages import ClassifyCall, VersionMemory

pytestmark = MARKS
CPU = torch.device("cpu")
LEAN = ("bert", "roberta", "distilbert", "electra", "albert")
HALF = (torch.bfloat16, torch.float16) if IS_GPU else (torch.bfloat16,)  # float16 is not served on a CPU
TOLERANCES = {torch.bfloat16: 0.04, torch.float16: 0.01, torch.int8: 0.1}  # of 1 + the largest logit
ROWS = ((1, 1, 5), (2, 9, 30), (3, 40, 60), (4, 1, 60), (5, 200, 20), (2, 9, 30))  # seed, sequences, longest
NUM_SPECIALS = 5
NOTHING = VersionMemory(weight_bytes=0, cache_bytes=0, reckoned_bytes=0)


def load(repository: Path, name: str, version: int, dtype: torch.dtype) -> LoadedClassifier:
    path = repository / name / str(version)
    loaded = load_version(path, read_manifest(path), dtype=dtype, device=DEVICE)
    assert isinstance(loaded, LoadedClassifier)
    return loaded


def ragged(loaded: LoadedClassifier, seed: int, count: int, longest: int) -> list[list[int]]:
    """Sequences of 1 to `longest` ids; RoBERTa's padding token, which has no position of its own, is among them."""
    chooser = random.Random(seed)
    last = loaded.manifest.vocabulary_size - 1
    sequences = [
        [chooser.randint(NUM_SPECIALS, last) for _ in range(chooser.randint(1, longest))] for _ in range(count)
    ]
    sequences[0][len(sequences[0]) // 2] = 1
    return sequences


def check(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    bound = TOLERANCES[dtype] * (1 + float(expected.abs().max()))
    assert found.shape == expected.shape
    assert float((found.cpu() - expected.cpu()).abs().max()) <= bound


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("head", ["sequence", "token"])
@pytest.mark.parametrize("kind", LEAN)
def test_captured_forwards_equal_ordinary_ones(tmp_path: Path, kind: str, head: str, dtype: torch.dtype) -> None:
    version = models.import_version(tmp_path / "models", kind, tiny.make(kind, tmp_path / "source", head=head))
    captured = load(tmp_path / "models", kind, version, dtype)
    ordinary = load(tmp_path / "models", kind, version, dtype)
    ordinary.release_captured()
    exact = load(tmp_path / "models", kind, version, torch.float32)
    assert (captured.captured_bytes > 0) == IS_GPU
    for seed, count, longest in ROWS:
        sequences = ragged(captured, seed, count, longest)
        seconds = [len(ids) // 3 for ids in sequences] if captured.takes_types else None
        row = pack(sequences, device=CPU, second_starts=seconds)
        found, expected = captured.logits(row), ordinary.logits(row)
        check(found, expected, dtype)
        check(found, exact.logits(row), dtype)
        if count > 1:
            spread = float(expected.std(0).max())
            assert spread > 2 * TOLERANCES[dtype], "one sequence's answer does not pass for another's"


def test_int8_is_within_a_tenth_of_float32(tmp_path: Path) -> None:
    version = models.import_version(tmp_path / "models", "bert", tiny.make("bert", tmp_path / "source"))
    served, exact = (load(tmp_path / "models", "bert", version, dtype) for dtype in (torch.int8, torch.float32))
    assert served.compute_dtype.startswith("int8")
    for seed, count, longest in ROWS:
        row = pack(ragged(served, seed, count, longest), device=CPU)
        check(served.logits(row), exact.logits(row), torch.int8)


def plan_of(ready: ReadyClassifier, batcher: Batcher, sequences: list[list[int]]) -> ClassifyPlan:
    call = ClassifyCall(
        request_id=len(sequences),
        model=ready.key.model,
        version=ready.key.version,
        sequences=[b"".join(token.to_bytes(4, "little") for token in ids) for ids in sequences],
        type_starts=[-1] * len(sequences),
    )
    batcher.add(classify_request(call, 1, ready.manifest, arrival=len(sequences), now_s=0.0), 0.0)
    plan = batcher.plan(ready.key, 0.0, may_wait=False)
    assert plan is not None
    return plan


def test_two_forwards_under_way_answer_as_one_after_the_other(tmp_path: Path) -> None:
    """Both rows lie in one bucket, so that they share inputs, outputs and all between."""
    version = models.import_version(tmp_path / "models", "bert", tiny.make("bert", tmp_path / "source"))
    loaded = load(tmp_path / "models", "bert", version, torch.bfloat16)
    key = VersionKey("bert", version)
    ready = ReadyClassifier(key=key, manifest=loaded.manifest, model=loaded, memory=NOTHING, load_s=0.0)
    lanes = None if IS_GPU else Lanes(num_lanes=2, num_step_threads=1, ended=lambda: None)
    runner, batcher = ModelRunner(DEVICE, lanes), Batcher(token_budget=8192, max_waiting_tokens=8192)
    runner.adopt(ready)
    batcher.add_version(key)
    plans = [plan_of(ready, batcher, ragged(loaded, seed, count, 30)) for seed, count in ((2, 40), (3, 41), (4, 42))]
    alone = [runner.launch(runner.prepare(plan), is_alone=False, is_short=False).collect().copy() for plan in plans]
    prepared = [runner.prepare(plan) for plan in plans]
    launched = [runner.launch(row, is_alone=False, is_short=False) for row in prepared]
    for expected, forward in zip(alone, launched, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(forward.collect()), torch.from_numpy(expected), atol=1e-5, rtol=1e-5
        )
        assert forward.is_done()
        assert forward.seconds() > 0


async def test_versions_come_and_go_while_their_forwards_run(tmp_path: Path) -> None:
    """Odd and even versions hold unlike weights: every reply is its version's, whatever is captured or freed beside."""
    folders = [tiny.make("bert", tmp_path / str(seed), seed=seed) for seed in (11, 12)]
    repository = tmp_path / "models"
    for folder in folders:
        models.import_version(repository, "bert", folder)
    texts = tiny.texts(3, 6, longest=20)
    wanted = [torch.tensor([ReferenceClassifier(folder).logits(text) for text in texts]) for folder in folders]
    bound = TOLERANCES[torch.bfloat16] * (1 + float(torch.stack(wanted).abs().max()))
    assert float((wanted[0] - wanted[1]).abs().max()) > 3 * bound, "the weights tell apart"
    changes = {"engine": {"device": DEVICE.type, "dtype": "bfloat16"}}
    with ServerProcess(tmp_path / "server", repository, changes) as server:
        server.wait_live("bert", 2)
        async with AsyncClient(server.address) as client:
            seen = await ask_during_swaps(client, repository, texts, wanted, bound)
    assert len(seen) > 4


async def ask_during_swaps(
    client: AsyncClient, repository: Path, texts: list[str], wanted: list[torch.Tensor], bound: float
) -> set[int]:
    """Ask in four lanes while versions 3 to 8 appear and their predecessors are unloaded; the versions that replied."""
    seen: set[int] = set()
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            reply = await client.classify("bert", texts, scores="logits")
            scores = [dict(zip(result.label_ids, result.scores, strict=True)) for result in reply.results]
            found = torch.tensor([[of[label] for label in sorted(of)] for of in scores])
            assert float((found - wanted[(reply.served_by.version + 1) % 2]).abs().max()) <= bound
            seen.add(reply.served_by.version)

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    for version in range(3, 9):
        models.copy_version(repository, "bert", repository / "bert" / str(version - 2), version)
        while version not in seen:
            assert not any(task.done() for task in asking), [task for task in asking if task.done()]
            await asyncio.sleep(0.02)
    done.set()
    await asyncio.gather(*asking)
    return seen
