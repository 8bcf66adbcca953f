"""Scores and spans stay finite numbers, and probabilities, however large logits are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st
from numpy.typing import NDArray
from shoal.v1 import classify_pb2
from shoal_server.front.convert_classify import ReadCounts, classifications
from shoal_server.front.scores import Pooling, merge_windows, score
from shoal_server.front.spans import Aggregation, TokenMap, find_spans

LARGEST = 1e4
NUM_LABELS = 4
LABELS = ("O", "B-X", "I-X", "I-Y")
rows = numpy_st.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.just(NUM_LABELS)),
    elements=st.floats(-LARGEST, LARGEST, width=32) | st.sampled_from([-LARGEST, 0.0, LARGEST]),
)


def sent(logits_NL: NDArray[np.float32], head: str) -> list[classify_pb2.Classification]:
    """What a client receives: float32."""
    counts = [ReadCounts(num_input_tokens=1, num_dropped=0, num_windows=1)] * len(logits_NL)
    merged = merge_windows(logits_NL.tobytes(), NUM_LABELS, [[1]] * len(logits_NL), Pooling.MEAN)
    messages = classifications(score(merged, head=head, as_logits=False, top_k=0), counts)
    return [classify_pb2.Classification.FromString(message.SerializeToString()) for message in messages]


@given(logits_NL=rows)
def test_softmax_gives_finite_probabilities_that_sum_to_one(logits_NL: NDArray[np.float32]) -> None:
    for logits_L, result in zip(logits_NL, sent(logits_NL, "single_label"), strict=True):
        assert all(0 <= value <= 1 for value in result.scores)
        assert sum(result.scores) == pytest.approx(1, abs=1e-6)
        assert logits_L[result.label_ids[0]] == logits_L.max()


@given(logits_NL=rows)
def test_sigmoid_equals_its_definition_where_that_can_be_computed(logits_NL: NDArray[np.float32]) -> None:
    for logits_L, result in zip(logits_NL, sent(logits_NL, "multi_label"), strict=True):
        for label_id, value in zip(result.label_ids, result.scores, strict=True):
            bounded = max(float(logits_L[label_id]), -700.0)
            assert value == pytest.approx(1 / (1 + math.exp(-bounded)), abs=1e-7)


@given(logits_RL=rows, aggregation=st.sampled_from(Aggregation), seed=st.integers(0, 2**16))
def test_spans_have_finite_probabilities_and_cover_every_token_once(
    logits_RL: NDArray[np.float32], aggregation: Aggregation, seed: int
) -> None:
    places_M = np.arange(len(logits_RL))
    continues_M = np.random.default_rng(seed).random(len(places_M)) < 0.5
    tokens = TokenMap(
        num_rows=len(places_M), rows_M=places_M, starts_M=places_M, ends_M=places_M + 1, continues_M=continues_M
    )
    found = find_spans(logits_RL, tokens, LABELS, aggregation, frozenset())
    assert [*found.starts, len(places_M)] == [0, *found.ends]
    assert all(1 / NUM_LABELS - 1e-6 <= value <= 1 + 1e-6 for value in found.scores), "the best label has the most"


@given(logits_SL=rows, pooling=st.sampled_from(Pooling))
def test_windows_are_joined_without_overflow(logits_SL: NDArray[np.float32], pooling: Pooling) -> None:
    weights = [[1] * len(logits_SL)]
    (merged_L,) = merge_windows(logits_SL.tobytes(), NUM_LABELS, weights, pooling)
    wanted_L = logits_SL.astype(np.float64).mean(axis=0) if pooling is Pooling.MEAN else logits_SL.max(axis=0)
    assert merged_L == pytest.approx(wanted_L, abs=1e-8)
