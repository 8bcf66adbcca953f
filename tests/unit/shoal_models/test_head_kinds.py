"""Heads of every kind are described, published and served: sequence, token and next-sentence heads."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shoal_models.golden import GoldenMismatch
from shoal_models.importer import ImportRefused, import_model
from shoal_models.manifest import GOLDEN_NAME
from shoal_models.packed import pack
from tiny_models import CLASSIFIERS, CPU, VOCABULARY, Published, tiny_model


def _ragged(seed: int, count: int, longest: int) -> list[list[int]]:
    chooser = random.Random(seed)
    return [[chooser.randrange(4, VOCABULARY) for _ in range(chooser.randint(1, longest))] for _ in range(count)]


def _folder(tmp_path: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


def test_a_token_head_answers_with_a_row_for_every_token(publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("BertForTokenClassification", CLASSIFIERS["Bert"]()), "classifier")
    assert (published.manifest.kind, published.manifest.head) == ("classifier", "token")
    loaded = published.load()
    assert loaded.execution == "packed"
    sequences = _ragged(1, 9, 30)
    found = loaded.logits(pack(sequences, device=CPU))
    with torch.no_grad():
        expected = torch.cat([published.model(torch.tensor([ids])).logits[0] for ids in sequences])
    assert found.shape == (sum(map(len, sequences)), 3)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_golden_outputs_of_a_token_head_hold_every_token(publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("BertForTokenClassification", CLASSIFIERS["Bert"]()), "classifier")
    with np.load(published.path / GOLDEN_NAME) as archive:
        golden = {name: archive[name] for name in archive.files}
    assert golden["logits"].shape == (len(golden["ids"]), 3)
    golden["logits"][-1, 0] += 0.01
    np.savez(published.path / GOLDEN_NAME, **golden)
    with pytest.raises(GoldenMismatch, match=f"golden output {len(golden['ids']) - 1} differs by 0.01 in float32"):
        published.load()
    golden["logits"] = golden["logits"][:-1]
    np.savez(published.path / GOLDEN_NAME, **golden)
    with pytest.raises(GoldenMismatch, match="contradicts itself"):
        published.load()


def test_a_next_sentence_head_is_a_classifier_of_pairs(publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("BertForNextSentencePrediction", CLASSIFIERS["Bert"]()), "classifier")
    assert published.manifest.head == "single_label"
    assert published.manifest.labels == ("is_next", "not_next"), "whatever the three labels of its configuration"
    loaded = published.load()
    assert loaded.execution == "packed"
    sequences = [[1, 7, 8, 9, 2, 10, 11, 2], [1, 5, 2, 6, 2], [1, 9, 9, 9, 9, 9, 2, 3, 2]]
    second = [5, 3, 7]
    found = loaded.logits(pack(sequences, device=CPU, second_starts=second))
    for row, (ids, start) in enumerate(zip(sequences, second, strict=True)):
        types = torch.tensor([[0] * start + [1] * (len(ids) - start)])
        with torch.no_grad():
            expected = published.model(torch.tensor([ids]), token_type_ids=types).logits[0]
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("problem", "num_labels"),
    [
        ("single_label_classification", 3),
        ("multi_label_classification", 1),
        ("multi_label_classification", 3),
        ("regression", 1),
        ("regression", 3),
    ],
)
def test_what_logits_mean_and_how_many_there_are_is_read_off_the_configuration(
    publish: Callable[..., Published], problem: str, num_labels: int
) -> None:
    config = CLASSIFIERS["Bert"]()
    config.num_labels, config.problem_type = num_labels, problem
    published = publish(tiny_model("BertForSequenceClassification", config), "classifier")
    assert published.manifest.head == problem.removesuffix("_classification")
    sequences = _ragged(2, 5, 20)
    found = published.load().logits(pack(sequences, device=CPU))
    assert found.shape == (5, num_labels) == (5, len(published.manifest.labels))


def test_the_labels_of_a_token_head_can_be_named_anew(tmp_path: Path, tokenizer: Any) -> None:
    model = tiny_model("BertForTokenClassification", CLASSIFIERS["Bert"]())
    source = _folder(tmp_path, model, tokenizer)
    manifest = import_model("ner", source, tmp_path / "models", labels=("O", "B-PER", "I-PER"))
    assert (manifest.head, manifest.labels) == ("token", ("O", "B-PER", "I-PER"))


def test_the_two_labels_of_a_next_sentence_head_can_be_named_anew(tmp_path: Path, tokenizer: Any) -> None:
    source = _folder(tmp_path, tiny_model("BertForNextSentencePrediction", CLASSIFIERS["Bert"]()), tokenizer)
    manifest = import_model("nsp", source, tmp_path / "models", labels=("follows", "random"))
    assert manifest.labels == ("follows", "random")
    with pytest.raises(ImportRefused, match="3 different labels given; the model has 2"):
        import_model("nsp", source, tmp_path / "models", labels=("a", "b", "c"))


@pytest.mark.parametrize("architecture", ["BertForTokenClassification", "BertForNextSentencePrediction"])
def test_heads_that_mean_one_thing_take_no_other_meaning(tmp_path: Path, tokenizer: Any, architecture: str) -> None:
    source = _folder(tmp_path, tiny_model(architecture, CLASSIFIERS["Bert"]()), tokenizer)
    with pytest.raises(ImportRefused, match=f"the head of a {architecture} cannot be another; 'multi_label' given"):
        import_model("model", source, tmp_path / "models", head="multi_label")
