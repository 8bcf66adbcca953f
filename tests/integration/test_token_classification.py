"""Spans over the wire equal those of transformers' token-classification pipeline, whatever company a text has."""

from __future__ import annotations

import asyncio
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from harness import models, token_models
from harness.server import TWO_LANES, ServerProcess
from shoal import AsyncClient, types

TEXTS = token_models.texts(7, 40)
LONG_TEXT = " ".join(token_models.texts(8, 12))
AGGREGATIONS = get_args(types.Aggregation)
KINDS = token_models.KINDS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: token_models.save(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("taggers")
    for kind, folder in folders.items():
        models.import_version(repository, kind, folder)
    with ServerProcess(tmp_path_factory.mktemp("server"), repository, TWO_LANES) as running:
        for kind in KINDS:
            running.wait_live(kind, 1)
        yield running


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, Any]:
    from transformers import pipeline

    return {kind: pipeline("token-classification", model=str(folder), device="cpu") for kind, folder in folders.items()}


def expected(pipelines: dict[str, Any], kind: str, text: str, aggregation: str) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        found: list[dict[str, Any]] = pipelines[kind](text, aggregation_strategy=aggregation)
    return found


def check(result: types.Classification, wanted: list[dict[str, Any]], text: str) -> None:
    places = [(span.label, span.start, span.end) for span in result.spans]
    assert places == [(w.get("entity_group", w.get("entity")), w["start"], w["end"]) for w in wanted], text
    scores = [float(entity["score"]) for entity in wanted]
    assert [span.score for span in result.spans] == pytest.approx(scores, abs=1e-4), text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
async def test_spans_equal_those_of_the_pipeline(
    server: ServerProcess, pipelines: dict[str, Any], kind: str, aggregation: types.Aggregation
) -> None:
    """Half of the texts in one call, the others each alone at the same time; long ones are cut, as in the pipeline."""
    options: types.ClassifyOptions = {"aggregation": aggregation, "overflow": "truncate_end"}
    together, alone = [*TEXTS[:20], LONG_TEXT], TEXTS[20:]
    async with AsyncClient(server.address) as client:
        replies = await asyncio.gather(
            client.classify(kind, together, **options), *(client.classify(kind, text, **options) for text in alone)
        )
    results = list(itertools.chain.from_iterable(replies))
    assert replies[0].head == "token"
    assert sum(len(result.spans) for result in results) > len(results)
    for text, result in zip([*together, *alone], results, strict=True):
        check(result, expected(pipelines, kind, text, aggregation), text)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_finds_the_same(server: ServerProcess, pipelines: dict[str, Any], kind: str) -> None:
    async with AsyncClient(server.address) as client:
        stream = client.classify_stream(kind, TEXTS, aggregation="average", overflow="truncate_end")
        outcomes = [outcome async for outcome in stream]
    for text, outcome in zip(TEXTS, outcomes, strict=True):
        assert outcome.result is not None, outcome.error
        check(outcome.result, expected(pipelines, kind, text, "average"), text)


@pytest.mark.parametrize("kind", KINDS)
async def test_windows_read_every_token_of_a_long_text_once(
    server: ServerProcess, pipelines: dict[str, Any], kind: str
) -> None:
    tokens = pipelines[kind].tokenizer(LONG_TEXT, return_offsets_mapping=True, add_special_tokens=False)
    async with AsyncClient(server.address) as client:
        (result,) = await client.classify(kind, LONG_TEXT, overflow="windows", ignore_labels=[])
    assert result.num_windows > 2
    assert [(span.start, span.end) for span in result.spans] == tokens["offset_mapping"]


@pytest.mark.parametrize("kind", KINDS)
async def test_token_ids_get_the_labels_that_their_text_gets(
    server: ServerProcess, pipelines: dict[str, Any], kind: str
) -> None:
    ids = pipelines[kind].tokenizer(TEXTS[0])["input_ids"]
    async with AsyncClient(server.address) as client:
        by_text, by_ids = [await client.classify(kind, content, ignore_labels=[]) for content in (TEXTS[0], ids)]
    assert [span.label for span in by_ids[0].spans] == [span.label for span in by_text[0].spans]
    assert [(span.start, span.end) for span in by_ids[0].spans] == [(i, i + 1) for i in range(1, len(ids) - 1)]
