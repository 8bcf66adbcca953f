"""Packed rows of unlike sequences give every sequence what transformers' own forward gives it alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from shoal_models.packed import pack
from tiny_models import CLASSIFIERS, CPU, VOCABULARY, Published, tiny_model


def _ragged(seed: int, count: int, longest: int) -> list[list[int]]:
    chooser = random.Random(seed)
    return [[chooser.randrange(4, VOCABULARY) for _ in range(chooser.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("family", sorted(set(CLASSIFIERS) - {"MPNet"}))
def test_packed_equals_plain(family: str, publish: Callable[..., Published]) -> None:
    published = publish(tiny_model(f"{family}ForSequenceClassification", CLASSIFIERS[family]()), "classifier")
    loaded = published.load()
    assert loaded.execution == "packed"
    for seed, count, longest in ((1, 1, 70), (2, 9, 70), (3, 40, 12)):
        sequences = _ragged(seed, count, longest)
        found = loaded.logits(pack(sequences, device=CPU))
        with torch.no_grad():
            expected = torch.cat([published.model(torch.tensor([ids])).logits for ids in sequences])
        assert count == 1 or expected.std(0).min() > 0.05, "the sequences tell apart"
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_type_ids_reach_models_that_know_them(publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]()), "classifier")
    loaded = published.load()
    sequences = _ragged(4, 5, 20)
    second = [-1, 0, 3, -1, 1]
    second = [min(start, len(ids) - 1) for start, ids in zip(second, sequences, strict=True)]
    found = loaded.logits(pack(sequences, device=CPU, second_starts=second))
    for row, (ids, start) in enumerate(zip(sequences, second, strict=True)):
        types = [0] * len(ids) if start < 0 else [0] * start + [1] * (len(ids) - start)
        with torch.no_grad():
            expected = published.model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0]
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)


def test_roberta_skips_padding_tokens_in_positions_as_transformers_does(publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("RobertaForSequenceClassification", CLASSIFIERS["Roberta"]()), "classifier")
    padding = published.model.config.pad_token_id
    sequences = [[5, padding, 6, 7], [8, 9, 10], [padding, 11]]
    found = published.load().logits(pack(sequences, device=CPU))
    with torch.no_grad():
        expected = torch.cat([published.model(torch.tensor([ids])).logits for ids in sequences])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_an_architecture_that_ignores_packed_attention_runs_one_by_one(publish: Callable[..., Published]) -> None:
    """MPNet adds a position bias and does not use the attention interface: packed, its sequences would mix."""
    published = publish(tiny_model("MPNetForSequenceClassification", CLASSIFIERS["MPNet"]()), "classifier")
    loaded = published.load()
    assert loaded.execution.startswith("one by one: ")
    assert "0 calls of packed attention; 3 expected" in loaded.execution
    sequences = _ragged(5, 6, 30)
    found = loaded.logits(pack(sequences, device=CPU))
    with torch.no_grad():
        expected = torch.cat([published.model(torch.tensor([ids])).logits for ids in sequences])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_head_that_reads_the_last_token_runs_one_by_one(publish: Callable[..., Published]) -> None:
    import transformers as tf

    config = tf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=3,
        pad_token_id=0,
    )
    published = publish(tiny_model("LlamaForSequenceClassification", config), "classifier")
    loaded = published.load()
    assert loaded.execution == "one by one: its head reads the last token"
    sequences = _ragged(6, 4, 20)
    with torch.no_grad():
        expected = torch.cat([published.model(torch.tensor([ids])).logits for ids in sequences])
    torch.testing.assert_close(loaded.logits(pack(sequences, device=CPU)), expected, atol=1e-5, rtol=0)


def test_bfloat16_rounds_the_weights_once(publish: Callable[..., Published]) -> None:
    """Weights published in bfloat16 are exact in it: on a CPU that computes them in float32 nothing is lost on top."""
    from shoal_models.compute import has_native_bfloat16

    model: Any = tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]())
    published = publish(model, "classifier", weight_dtype="bfloat16")
    sequences = _ragged(7, 8, 30)
    exact = published.load().logits(pack(sequences, device=CPU))
    served = published.load(torch.bfloat16)
    rounded = served.logits(pack(sequences, device=CPU))
    if has_native_bfloat16():
        assert served.compute_dtype == "bfloat16"
        torch.testing.assert_close(rounded, exact, atol=0.3, rtol=0)
    else:
        assert served.compute_dtype == "float32 (bfloat16 weights)"
        torch.testing.assert_close(rounded, exact, atol=1e-5, rtol=0)
    with torch.no_grad():
        unrounded = torch.cat([model(torch.tensor([ids])).logits for ids in sequences])
    assert (exact - unrounded).abs().max() > 1e-4, "publication rounded the weights"
