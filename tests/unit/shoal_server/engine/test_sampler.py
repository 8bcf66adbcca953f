"""The sampler against a plain reference, its seeds, and its distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal_server.engine import sampler
from shoal_server.engine.sampler import NotFiniteLogits, choose, uniform
from shoal_server.ipc.messages import Sampling

V = 50


def logits_of(seed: int, rows: int = 1, vocabulary: int = V, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def reference_weights(logits: np.ndarray, params: Sampling, seen: set[int]) -> np.ndarray:
    """Filtered probabilities of one row, step by step as generate.proto words it, in float64."""
    values = logits.astype(np.float64).copy()
    for token_id in seen:
        factor = params.repetition_penalty
        values[token_id] = values[token_id] / factor if values[token_id] > 0 else values[token_id] * factor
    values /= params.temperature
    if 0 < params.top_k < len(values):
        values[values < np.sort(values)[-params.top_k]] = -np.inf
    probabilities = np.exp(values - values.max())
    probabilities /= probabilities.sum()
    if params.top_p < 1.0:
        kept, total = [], 0.0
        for token_id in np.argsort(-probabilities, kind="stable"):
            kept.append(token_id)
            total += probabilities[token_id]
            if total >= params.top_p:
                break
        mask = np.zeros(len(values), dtype=bool)
        mask[kept] = True
        probabilities[~mask] = 0.0
    probabilities[probabilities < params.min_p * probabilities.max()] = 0.0
    return probabilities / probabilities.sum()


PARAMS = st.builds(
    Sampling,
    temperature=st.floats(0.1, 3.0),
    top_k=st.sampled_from([0, 0, 1, 3, 20, V, 500]),
    top_p=st.sampled_from([1.0, 1.0, 0.1, 0.5, 0.9, 0.99]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.5]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=300, deadline=None)
@given(
    all_params=st.lists(PARAMS, min_size=1, max_size=4),
    data_seed=st.integers(0, 10_000),
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=6),
    candidates=st.sampled_from([1, 4, 16, 1024]),
)
def test_each_row_draws_from_the_distribution_that_a_plain_reference_filters(all_params, data_seed, prompt, candidates):
    """The token at which the reference's cumulated probability, in order of ids, passes the row's uniform number.

    A row is skipped where rounding may decide: the uniform number within 1e-5 of a boundary, or a filter's.
    """
    logits = logits_of(data_seed, rows=len(all_params))
    requests = [request(params, prompt) for params in all_params]
    original, sampler._NUM_CANDIDATES = sampler._NUM_CANDIDATES, candidates
    try:
        chosen = choose(logits.clone(), requests).token_ids
    finally:
        sampler._NUM_CANDIDATES = original
    for row, params in enumerate(all_params):
        weights = reference_weights(logits[row].numpy(), params, set(prompt))
        cumulated = np.cumsum(weights)
        target = uniform(params.seed, 0)
        if np.abs(cumulated - target).min() > 1e-5 and not is_close_call(logits[row].numpy(), params, set(prompt)):
            assert chosen[row] == int(np.searchsorted(cumulated, target, side="right"))


def is_close_call(logits: np.ndarray, params: Sampling, seen: set[int]) -> bool:
    """Whether a bound of top_p or min_p lies within rounding of a token's place."""
    bare = Sampling(
        temperature=params.temperature, top_k=params.top_k, repetition_penalty=params.repetition_penalty, min_p=0.0
    )
    weights = np.sort(reference_weights(logits, bare, seen))[::-1]
    near_p = params.top_p < 1.0 and np.abs(np.cumsum(weights) - params.top_p).min() < 1e-5
    near_min = params.min_p > 0 and np.abs(weights[1:] / weights[0] - params.min_p).min() < 1e-5
    return bool(near_p or near_min)


def request(params: Sampling, prompt: list[int], **changes):
    from shoal_server.engine.request import CallKey, GenerateRequest, VersionKey, order_of
    from shoal_server.ipc.messages import Priority

    tokens = np.zeros(64, dtype=np.int32)
    tokens[: len(prompt)] = prompt
    fields = {
        "key": CallKey(1, 1),
        "version": VersionKey("m", 1),
        "tokens": tokens,
        "num_prompt": len(prompt),
        "num_tokens": len(prompt),
        "max_new_tokens": 10,
        "min_new_tokens": 0,
        "sampling": params,
        "end_ids": frozenset(),
        "stop_ids": frozenset(),
        "num_logprobs": None,
        "order": order_of(Priority.NORMAL, None, 0),
        "received_s": 0.0,
    }
    return GenerateRequest(**{**fields, **changes})


GREEDY = Sampling(temperature=0.0)


def test_greedy_rows_take_the_best_and_the_lowest_id_among_equals():
    logits = torch.zeros(2, V)
    logits[0, [7, 9]] = 5.0
    logits[1, 3] = 1.0
    assert choose(logits, [request(GREEDY, [1]), request(GREEDY, [1])]).token_ids == [7, 3]


def test_greedy_and_drawn_rows_share_a_batch():
    logits = logits_of(1, rows=3)
    best = logits.argmax(-1).tolist()
    mixed = [request(GREEDY, [1]), request(Sampling(seed=3), [1]), request(GREEDY, [1])]
    alone = choose(logits[1:2].clone(), [mixed[1]]).token_ids
    assert choose(logits.clone(), mixed).token_ids == [best[0], alone[0], best[2]]


def test_a_vanishing_temperature_is_greedy_and_not_a_division_by_nothing():
    logits = logits_of(2)
    assert choose(logits.clone(), [request(Sampling(temperature=1e-30), [1])]).token_ids == logits.argmax(-1).tolist()


def test_the_same_seed_draws_the_same_whatever_else_is_in_the_batch():
    logits = logits_of(3, rows=8, vocabulary=1000)
    requests = [request(Sampling(seed=row, top_p=0.9 if row % 2 else 1.0), [1]) for row in range(8)]
    together = choose(logits.clone(), requests).token_ids
    alone = [choose(logits[row : row + 1].clone(), [requests[row]]).token_ids[0] for row in range(8)]
    assert together == alone


def test_other_tokens_and_other_seeds_draw_other_numbers():
    """2,000 numbers of neighbouring seeds and indices: all distinct, mean and variance of a uniform within 4 sigma."""
    numbers = np.array([uniform(seed, index) for seed in range(40) for index in range(50)])
    assert len(set(numbers.tolist())) == len(numbers)
    assert 0.0 <= numbers.min() <= numbers.max() < 1.0
    assert abs(numbers.mean() - 0.5) < 4 * math.sqrt(1 / 12 / len(numbers))
    assert abs(numbers.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / len(numbers))


def test_draws_over_many_seeds_follow_the_softmax():
    """4,000 draws of 8 tokens: chi-squared with 7 degrees of freedom stays below 24.3 (p = 0.001)."""
    logits = logits_of(4, vocabulary=8, scale=1.0)
    rows = 4000
    drawn = choose(logits.repeat(rows, 1), [request(Sampling(seed=seed), [1]) for seed in range(rows)]).token_ids
    expected = torch.softmax(logits[0], -1).numpy() * rows
    counts = np.bincount(drawn, minlength=8)
    assert float(((counts - expected) ** 2 / expected).sum()) < 24.3


def test_a_flat_distribution_with_top_p_looks_at_more_candidates():
    """5,000 nearly equal tokens: top_p 0.5 keeps about half of them, far more than the candidates looked at first."""
    logits = logits_of(5, vocabulary=5000, scale=0.01)
    rows = 300
    params = [Sampling(seed=seed, top_p=0.5) for seed in range(rows)]
    drawn = choose(logits.repeat(rows, 1), [request(p, [1]) for p in params]).token_ids
    kept = set(np.nonzero(reference_weights(logits[0].numpy(), params[0], set()))[0].tolist())
    assert 2400 < len(kept) < 2600
    assert set(drawn) <= kept
    assert len(set(drawn)) > 200


def test_before_min_new_tokens_no_end_and_no_stop_is_chosen():
    logits = torch.zeros(2, V)
    logits[:, 3], logits[:, 4], logits[:, 5] = 9.0, 8.0, 7.0
    ends = {"end_ids": frozenset({3}), "stop_ids": frozenset({4, 10_000})}
    held = request(GREEDY, [1], min_new_tokens=1, **ends)
    free = request(GREEDY, [1], min_new_tokens=0, **ends)
    assert choose(logits, [held, free]).token_ids == [5, 3]


def test_a_repetition_penalty_sees_prompt_and_output_and_counts_a_token_once():
    """Token 2 stands twice: 4 / 2 = 2 < 3, so 9 wins; penalised twice or not at all it would be 1 or 4."""
    logits = torch.full((1, V), -10.0)
    logits[0, 2], logits[0, 9], logits[0, 8] = 4.0, 3.0, 1.5
    params = Sampling(temperature=0.0, repetition_penalty=2.0)
    assert choose(logits.clone(), [request(params, [2, 2])]).token_ids == [9]
    assert choose(logits.clone(), [request(params, [2, 2, 9])]).token_ids == [2]


def test_logprobs_are_those_of_the_model_before_penalty_temperature_and_filters():
    logits = logits_of(6, rows=2)
    params = Sampling(temperature=0.5, top_k=3, repetition_penalty=1.7, seed=11)
    requests = [request(params, [1, 2, 3], num_logprobs=4), request(GREEDY, [1])]
    choices = choose(logits.clone(), requests)
    expected = torch.log_softmax(logits[0].double(), -1)
    found = choices.logprobs[0]
    assert set(choices.logprobs) == {0}
    assert found.logprob == pytest.approx(float(expected[choices.token_ids[0]]), abs=1e-5)
    assert found.token_ids == expected.topk(4).indices.tolist()
    assert found.logprobs == pytest.approx(expected.topk(4).values.tolist(), abs=1e-5)


def test_logprobs_without_alternatives_name_the_chosen_token_only():
    choices = choose(logits_of(7), [request(GREEDY, [1], num_logprobs=0)])
    assert choices.logprobs[0].token_ids == []
    assert choices.logprobs[0].logprob <= 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_named(bad):
    logits = logits_of(8, rows=3)
    logits[1, 5] = bad
    with pytest.raises(NotFiniteLogits) as caught:
        choose(logits, [request(GREEDY, [1]), request(Sampling(seed=1), [1]), request(GREEDY, [1])])
    assert caught.value.rows == [1]


def test_a_token_without_weight_is_never_drawn_at_the_edges():
    """Uniform numbers of 0 and next to 1, weights at the ends of blocks and of a vocabulary that is no multiple."""
    weights = torch.zeros(3, 300)
    weights[0, [127, 128]] = 1.0
    weights[1, 299] = 1.0
    weights[2, [0, 255]] = 1.0
    for number in (0.0, 0.5, 1.0 - 2**-53):
        drawn = sampler._invert(weights, torch.full((3,), number, dtype=torch.float64))
        assert drawn[0] in {127, 128}
        assert drawn[1] == 299
        assert drawn[2] in {0, 255}
