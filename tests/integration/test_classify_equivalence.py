"""Batched equals single: whatever company a text has, its logits are those of transformers alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness import models, tiny
from harness.reference import ReferenceClassifier
from harness.server import TWO_LANES, ServerProcess
from shoal import AsyncClient

TOLERANCE = 1e-4
OTHERS = ("electra", "albert", "modernbert", "mpnet", "deberta-v2")
KINDS = (*tiny.ENCODERS, "minilm", *OTHERS)
PADDED = ("mpnet", "deberta-v2")
TEXTS = [
    *tiny.texts(1, 40, longest=30),
    "x",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "今日は良い天気です",
]


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, tiny_folders: dict[str, Path], minilm_folder: Path
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("others")
    return {
        **{kind: tiny_folders[kind] for kind in tiny.ENCODERS},
        **{kind: tiny.make(kind, root / kind) for kind in OTHERS},
        "minilm": minilm_folder,
        "next-sentence": tiny.make("bert", root / "next-sentence", head="next-sentence"),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("encoders")
    for kind, folder in folders.items():
        models.import_version(repository, kind, folder)
    with ServerProcess(tmp_path_factory.mktemp("server"), repository, TWO_LANES) as running:
        for kind in folders:
            running.wait_live(kind, 1)
        yield running


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, list[list[float]]]:
    return {kind: [ReferenceClassifier(folder).logits(text) for text in TEXTS] for kind, folder in folders.items()}


def in_label_order(result: object) -> list[float]:
    pairs = sorted(zip(result.label_ids, result.scores, strict=True))  # type: ignore[attr-defined]
    return [score for _, score in pairs]


@pytest.mark.parametrize("kind", KINDS)
async def test_concurrent_single_texts_equal_transformers(
    server: ServerProcess, expected: dict[str, list[list[float]]], kind: str
) -> None:
    async with AsyncClient(server.address) as client:
        replies = await asyncio.gather(*(client.classify(kind, [text], scores="logits") for text in TEXTS))
    for reply, logits in zip(replies, expected[kind], strict=True):
        assert in_label_order(reply.results[0]) == pytest.approx(logits, abs=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
async def test_many_texts_in_one_call_equal_transformers(
    server: ServerProcess, expected: dict[str, list[list[float]]], kind: str
) -> None:
    """Three calls at a time, so that the forwards of one end in another order than they began."""
    async with AsyncClient(server.address) as client:
        replies = await asyncio.gather(*(client.classify(kind, TEXTS, scores="logits") for _ in range(3)))
    for reply in replies:
        for result, logits in zip(reply.results, expected[kind], strict=True):
            assert in_label_order(result) == pytest.approx(logits, abs=TOLERANCE)


async def test_a_stream_equals_transformers(server: ServerProcess, expected: dict[str, list[list[float]]]) -> None:
    async def items() -> AsyncIterator[str]:
        for text in TEXTS:
            yield text

    async with AsyncClient(server.address) as client:
        answers = {a.index: a async for a in client.classify_stream("minilm", items(), scores="logits")}
    assert sorted(answers) == list(range(len(TEXTS)))
    for index, logits in enumerate(expected["minilm"]):
        result = answers[index].result
        assert result is not None
        assert in_label_order(result) == pytest.approx(logits, abs=TOLERANCE)


async def test_pairs_equal_transformers(server: ServerProcess, folders: dict[str, Path]) -> None:
    pairs = list(zip(TEXTS[:10], TEXTS[10:20], strict=True))
    async with AsyncClient(server.address) as client:
        for kind in ("bert", "roberta", "minilm", "electra", "albert", "modernbert", *PADDED, "next-sentence"):
            reference = ReferenceClassifier(folders[kind])
            reply = await client.classify(kind, pairs, scores="logits", overflow="truncate_end")
            for result, pair in zip(reply.results, pairs, strict=True):
                if result.num_dropped_tokens == 0:
                    assert in_label_order(result) == pytest.approx(reference.logits(*pair), abs=TOLERANCE)


async def test_a_next_sentence_model_is_a_classifier_of_two_labels(server: ServerProcess) -> None:
    async with AsyncClient(server.address) as client:
        reply = await client.classify("next-sentence", [("the quick brown fox", "jumps over a lazy dog")])
        version = (await client.get_model("next-sentence")).versions[0]
    assert version.class_labels == ("is_next", "not_next")
    assert sorted(reply.results[0].labels) == ["is_next", "not_next"]
    assert sum(reply.results[0].scores) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_model_says_which_way_it_runs_and_why(server: ServerProcess, kind: str) -> None:
    async with AsyncClient(server.address) as client:
        version = (await client.get_model(kind)).versions[0]
    why = "padded: attention took the packed row 0 times in a forward of 2 layers"
    assert version.execution == (why if kind in PADDED else "packed")
