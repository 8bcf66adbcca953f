"""Replayed forwards give what ordinary ones give, whatever was in their inputs before."""

from __future__ import annotations

import copy
import dataclasses
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ragged import alone, ragged, second_starts
from recorder import NoWaiting, Recorder, lengths_of, plain_kernel
from shoal_models.body import PackedBody
from shoal_models.classifier import LoadedClassifier
from shoal_models.graphs import (
    SIZES,
    Bucket,
    all_buckets,
    choose_bucket,
    empty_row,
    fill_up_row,
    num_inputs,
    trial_lengths,
)
from shoal_models.graphs_cuda import most_tokens
from shoal_models.heads import Head
from shoal_models.packed import PackedRow, pack
from shoal_models.post_norm import lean_layer_weights
from tiny_models import CLASSIFIERS, CPU, Published, modern_bert_config, tiny_model

LEAN = ("Bert", "Roberta", "XLMRoberta", "DistilBert", "Electra", "Albert")
ROWS = ((1, 1, 5), (2, 9, 30), (3, 9, 120), (4, 1, 40), (5, 1, 5), (2, 9, 30), (7, 3, 9))  # seed, sequences, longest


def capturing(published: Published, recorder: Recorder, max_tokens: int = 512) -> LoadedClassifier:
    """As on a GPU, with plain linear layers and all tokens in the last layer."""
    loaded = as_on_a_gpu(published)
    assert loaded.way.lean
    loaded.capture_forwards(recorder, plain_kernel, max_tokens)
    return loaded


def as_on_a_gpu(published: Published) -> LoadedClassifier:
    found = published.load()
    assert isinstance(found, LoadedClassifier)
    loaded = LoadedClassifier(copy.deepcopy(published.model), published.manifest)
    loaded.run(found.way)
    loaded._lean.use(found.way.lean, first_only=False)
    loaded._body = PackedBody(loaded._model, takes_types=loaded.takes_types)
    return loaded


@pytest.fixture
def bert(publish: Callable[..., Published]) -> Published:
    return publish(tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]()), "classifier")


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("family", LEAN)
def test_replayed_rows_equal_transformers_alone(family: str, head: str, publish: Callable[..., Published]) -> None:
    published = publish(tiny_model(family + head, CLASSIFIERS[family]()), "classifier")
    recorder = Recorder()
    loaded = capturing(published, recorder)
    num_buckets = recorder.num_captures
    buckets = set()
    for seed, count, longest in ROWS:
        sequences = ragged(seed, count, longest)
        sequences[0][len(sequences[0]) // 2] = 1  # RoBERTa's padding token, which has no position of its own
        buckets.add(choose_bucket([len(ids) for ids in sequences], max_tokens=512, longest=loaded.manifest.max_tokens))
        found = loaded.logits(pack(sequences, device=CPU))
        torch.testing.assert_close(found, alone(published.model, sequences), atol=1e-4, rtol=0)
    assert 2 < len(buckets) < len(ROWS), "some were met again"
    assert recorder.num_captures == num_buckets, "nothing is captured while a version serves"
    assert recorder.num_replays == num_buckets + len(ROWS)


def test_token_types_reach_replayed_forwards(bert: Published) -> None:
    loaded = capturing(bert, Recorder())
    for seed in (1, 2):
        sequences = ragged(seed, 6, 30)
        seconds = second_starts(seed, sequences)
        found = loaded.logits(pack(sequences, device=CPU, second_starts=seconds))
        torch.testing.assert_close(found, alone(bert.model, sequences, seconds), atol=1e-4, rtol=0)
        found = loaded.logits(pack(sequences, device=CPU))
        torch.testing.assert_close(found, alone(bert.model, sequences), atol=1e-4, rtol=0)


def test_an_answer_survives_the_next_forward(bert: Published) -> None:
    loaded = capturing(bert, Recorder())
    first = loaded.logits(pack([[5, 6, 7]], device=CPU))
    before = first.clone()
    assert not torch.equal(loaded.logits(pack([[8, 9, 10]], device=CPU)), before), "the answers tell apart"
    assert torch.equal(first, before)


@pytest.mark.parametrize("recorder", [Recorder(fails=True), Recorder(spoils=True)], ids=["fails", "spoils"])
def test_a_version_that_cannot_be_captured_runs_without(
    recorder: Recorder, bert: Published, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = capturing(bert, recorder)
    sequences = ragged(1, 6, 30)
    before = recorder.num_replays
    found = loaded.logits(pack(sequences, device=CPU))
    torch.testing.assert_close(found, alone(bert.model, sequences), atol=1e-4, rtol=0)
    assert (recorder.num_captures, recorder.num_replays, loaded.captured_bytes) == (1, before, 0)
    assert [record.message.split(";")[0] for record in caplog.records] == ["forwards run without captures"]


def test_large_rows_and_long_sequences_run_without_a_capture(bert: Published) -> None:
    recorder = Recorder()
    loaded = capturing(bert, recorder, max_tokens=64)
    before = recorder.num_replays
    sequences = ragged(1, 12, 40)
    found = loaded.logits(pack(sequences, device=CPU))
    torch.testing.assert_close(found, alone(bert.model, sequences), atol=1e-4, rtol=0)
    assert recorder.num_replays == before


def test_every_bucket_is_captured_before_a_version_serves(bert: Published) -> None:
    recorder = Recorder()
    loaded = capturing(bert, recorder, max_tokens=100)
    assert recorder.num_captures == len(all_buckets(max_tokens=100, longest=loaded.manifest.max_tokens)) == 4
    assert loaded.captured_bytes == 4 * 1000, "what captures keep is told to whoever reckons with the device's memory"


@pytest.mark.parametrize("family", [*LEAN, "ModernBert"])
def test_a_packed_forward_never_waits_for_the_device(family: str, publish: Callable[..., Published]) -> None:
    """All that is read on the host is there before; checked on a processor, as what a GPU would have to hand over."""
    model = tiny_model(family + "ForTokenClassification", CLASSIFIERS[family]())
    loaded = as_on_a_gpu(publish(model, "classifier"))
    row = on_device(ragged(1, 7, 30))
    with torch.inference_mode(), NoWaiting():
        body = PackedBody(loaded._model, takes_types=loaded.takes_types)
        Head(loaded._model, loaded.way.reads)(row, body(row, plain_kernel))


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("GPT2ForSequenceClassification", "GPT2"),
        ("BertForSequenceClassification", "Bert"),
        ("ModernBertForSequenceClassification", "ModernBert"),
    ],
)
def test_no_head_waits_for_the_device(architecture: str, config: str, publish: Callable[..., Published]) -> None:
    configs: dict[str, Any] = {"ModernBert": lambda: modern_bert_config("mean"), **CLASSIFIERS}
    from tiny_models import OTHER_CLASSIFIERS

    model = tiny_model(architecture, {**configs, **OTHER_CLASSIFIERS}[config]())
    loaded = as_on_a_gpu(publish(model, "classifier"))
    row = on_device(ragged(1, 7, 30))
    with torch.inference_mode(), NoWaiting():
        Head(loaded._model, loaded.way.reads)(row, torch.zeros(len(row.ids_T), 32))


def on_device(sequences: list[list[int]]) -> PackedRow:
    """A row as it is once it has been taken to a GPU, whose tensors are all there."""
    row = pack(sequences, device=CPU)
    return dataclasses.replace(row, starts_S1=torch.tensor(row.starts), is_captured=True)


def test_buckets_hold_every_row_they_are_chosen_for() -> None:
    """A thousand random rows: all sequences and tokens have room, none is longer than the bound, few buckets do."""
    chooser = random.Random(5)
    seen: set[Bucket] = set()
    captured = all_buckets(max_tokens=4096, longest=512)
    for _ in range(1000):
        longest = chooser.choice((20, 128, 512))
        lengths = [min(1 + int(chooser.expovariate(1 / 30)), longest) for _ in range(chooser.randint(1, 60))]
        bucket = choose_bucket(lengths, max_tokens=4096, longest=512)
        assert bucket is not None
        inputs = torch.empty(num_inputs(bucket), dtype=torch.int64)
        row = pack([[7] * length for length in lengths], device=CPU)
        filled = fill_up_row(row, bucket, inputs)
        assert len(filled.ids_T) == len(filled.positions_T) == filled.starts[-1] == bucket.num_tokens
        assert filled.num_sequences == bucket.num_sequences
        assert filled.starts[: len(row.starts)] == row.starts
        assert all(0 <= length <= bucket.longest for length in lengths_of(filled.starts))
        assert torch.equal(filled.positions_T[: row.starts[-1]], row.positions_T)
        assert int(filled.positions_T.max()) < bucket.longest
        seen.add(bucket)
    assert seen <= set(captured)
    assert len(captured) <= 2 * len(SIZES)
    assert captured == sorted(captured, key=lambda bucket: (bucket.num_tokens, bucket.longest), reverse=True)


@pytest.mark.parametrize("longest", [3, 8, 20, 128, 200, 512])
def test_the_trial_of_a_bucket_fits_it(longest: int) -> None:
    """Sequences of 3 tokens fill no bucket, which has one for every eight."""
    buckets = all_buckets(max_tokens=4096, longest=longest)
    assert (buckets == []) == (longest == 3)
    for bucket in buckets:
        lengths = trial_lengths(bucket)
        row = pack([[7] * length for length in lengths], device=CPU)
        filled = fill_up_row(row, bucket, torch.empty(num_inputs(bucket), dtype=torch.int64))
        assert (filled.starts[-1], filled.num_sequences) == (bucket.num_tokens, bucket.num_sequences)
        assert max(lengths) <= bucket.longest
        assert 2 * sum(lengths) >= bucket.num_tokens or longest <= 8, "most of it is no filling"
        assert max(lengths) == bucket.longest or 2 * bucket.longest > bucket.num_tokens


def test_the_smallest_bucket_is_chosen() -> None:
    """33 tokens need 48; six sequences and one that fills up need 7 x 8; above the bound there is none."""
    assert choose_bucket([33], max_tokens=512, longest=256) == Bucket(num_tokens=48, num_sequences=6, longest=48)
    assert choose_bucket([1] * 6, max_tokens=512, longest=256) == Bucket(num_tokens=64, num_sequences=8, longest=64)
    assert choose_bucket([200], max_tokens=512, longest=256) == Bucket(num_tokens=256, num_sequences=32, longest=256)
    assert choose_bucket([100, 100], max_tokens=512, longest=256) == Bucket(
        num_tokens=256, num_sequences=32, longest=128
    )
    assert choose_bucket([200], max_tokens=255, longest=256) is None
    assert choose_bucket([200], max_tokens=512, longest=199) is None


def test_an_empty_row_holds_a_sequence_as_long_as_any_may_be() -> None:
    """It is what the attention kernel takes its bound from when it is captured."""
    bucket = Bucket(num_tokens=256, num_sequences=32, longest=128)
    row = empty_row(bucket, torch.empty(num_inputs(bucket), dtype=torch.int64))
    assert row.starts == (0, 128, *[256] * 31)


def test_graphs_pay_for_fewer_tokens_the_larger_the_layers(bert: Published) -> None:
    """A layer of BERT-base has 4 x 768^2 + 2 x 768 x 3072 weights, 7.1 million."""
    assert most_tokens(4 * 768**2 + 2 * 768 * 3072) == pytest.approx(2260, abs=10)
    linears, biases_and_norms = 4 * 32**2 + 2 * 32 * 48, 3 * 32 + 32 + 48 + 32 + 4 * 32
    assert lean_layer_weights(as_on_a_gpu(bert)._model) == linears + biases_and_norms
