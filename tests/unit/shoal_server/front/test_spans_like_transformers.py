"""Spans equal those of transformers' token-classification pipeline: every aggregation, every kind of tokenizer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import token_models
from shoal_server.front.fit import Overflow
from shoal_server.front.spans import Aggregation, Spans, find_spans
from shoal_server.front.token_map import map_text
from shoal_server.front.version_text import VersionText, load_version_text

NUM_TEXTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, as transformers sees it and as a front does."""

    pipeline: Any
    network: Any
    version: VersionText

    def spans(self, text: str, aggregation: Aggregation, ignored: frozenset[str]) -> Spans:
        (encoding,) = self.version.tokenizer.encode_batch([text])
        fitted = map_text(text, encoding, self.version, Overflow.TRUNCATE_END, "text")
        assert fitted.tokens is not None
        logits = token_models.logits(self.network, fitted.sequences[0])
        return find_spans(logits, fitted.tokens, token_models.LABELS, aggregation, ignored)


@pytest.fixture(scope="module", params=token_models.KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    from transformers import TokenClassificationPipeline

    wrapped = token_models.tokenizer(request.param)
    folder = token_models.write_version(tmp_path_factory.mktemp(request.param), wrapped)
    network = token_models.model(request.param, len(wrapped))
    return Case(
        pipeline=TokenClassificationPipeline(model=network, tokenizer=wrapped, device="cpu"),
        network=network,
        version=load_version_text(Path(folder)),
    )


@pytest.mark.parametrize("aggregation", Aggregation)
@pytest.mark.parametrize("ignored", [frozenset({"O"}), frozenset[str](), frozenset({"PER", "B-LOC"})])
def test_spans_equal_those_of_the_pipeline(case: Case, aggregation: Aggregation, ignored: frozenset[str]) -> None:
    num_spans = num_joined = 0
    for text in token_models.texts(len(ignored), NUM_TEXTS):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Tokenizer does not support real words")
            wanted = case.pipeline(text, aggregation_strategy=aggregation.value, ignore_labels=list(ignored))
        found = case.spans(text, aggregation, ignored)
        name = "entity" if aggregation is Aggregation.NONE else "entity_group"
        assert found.labels == [entity[name] for entity in wanted], text
        assert found.starts == [entity["start"] for entity in wanted], text
        assert found.ends == [entity["end"] for entity in wanted], text
        assert found.scores == pytest.approx([float(entity["score"]) for entity in wanted], abs=1e-5), text
        num_spans += len(wanted)
        num_joined += sum(" " in text[a:b].strip() for a, b in zip(found.starts, found.ends, strict=True))
    assert num_spans > 2 * NUM_TEXTS, "the model finds too little for the comparison to mean something"
    assert aggregation is Aggregation.NONE or num_joined > 0
