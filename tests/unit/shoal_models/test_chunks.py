"""Sequences in chunks: every token has one place, and nobody sees anybody else's tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal_models.chunk_attention import Chunks
from shoal_models.chunks import MAX_WIDTH, SHARED_WIDTH, cut_into_chunks
from shoal_models.dense_attention import attend_dense, attend_lone_fused, scores_of
from torch import Tensor

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=40)


def _starts(lengths: list[int]) -> tuple[int, ...]:
    return tuple(itertools.accumulate(lengths, initial=0))


@given(lengths=LENGTHS)
@settings(max_examples=300, deadline=None)
def test_every_token_has_one_place_owned_by_its_sequence(lengths: list[int]) -> None:
    chunking = cut_into_chunks(_starts(lengths))
    assert chunking is not None
    rows = np.concatenate([group.rows for group in chunking.groups])
    owners = np.concatenate([group.owners_NC.reshape(-1) for group in chunking.groups])
    assert (rows[chunking.places_T] == np.arange(sum(lengths))).all()
    assert (owners[chunking.places_T] == np.repeat(np.arange(len(lengths)), lengths)).all()
    assert (owners >= 0).sum() == sum(lengths)


@given(lengths=LENGTHS)
@settings(max_examples=300, deadline=None)
def test_a_sequence_lies_in_one_chunk(lengths: list[int]) -> None:
    chunking = cut_into_chunks(_starts(lengths))
    assert chunking is not None
    homes = [
        {int(owner) for owner in chunk if owner >= 0} for group in chunking.groups for chunk in group.owners_NC.tolist()
    ]
    assert sum(map(len, homes)) == len(lengths)
    for group in chunking.groups:
        assert group.width <= SHARED_WIDTH or all(len({o for o in c if o >= 0}) <= 1 for c in group.owners_NC.tolist())
        full = all(0 <= c[0] == c[-1] for c in group.owners_NC.tolist())
        assert group.is_full == full


def test_a_sequence_that_is_too_long_is_not_for_chunks() -> None:
    assert cut_into_chunks(_starts([3, MAX_WIDTH])) is not None
    assert cut_into_chunks(_starts([3, MAX_WIDTH + 1])) is None


@pytest.mark.parametrize(
    "lengths", [[5], [16], [64], [65], [1, 2, 3], [64, 64], [70, 80, 128], [20, 300, 1, 64, 90, 9]]
)
def test_attention_in_chunks_is_attention_of_each_sequence_alone(lengths: list[int]) -> None:
    torch.manual_seed(0)
    starts, num_heads, size = _starts(lengths), 3, 8
    query, key, value = torch.randn(3, num_heads, starts[-1], size) * 3

    def select(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return query[:, rows], key[:, rows], value[:, rows]

    chunking = cut_into_chunks(starts)
    assert chunking is not None
    found_THD = Chunks(chunking, num_heads=num_heads, dtype=torch.float32).attend(select, 0.3)
    for start, end in itertools.pairwise(starts):
        weights = torch.softmax(query[:, start:end] @ key[:, start:end].transpose(1, 2) * 0.3, -1)
        torch.testing.assert_close(
            found_THD[start:end].transpose(0, 1), weights @ value[:, start:end], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("size_of_scores", [1.0, 60.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_attention_holds_for_scores_of_any_size(size_of_scores: float, dtype: torch.dtype) -> None:
    """Sums of 2^x of such scores overflow, and those of their negatives are zero."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 6, 16, 8).to(dtype)
    for sign in (1.0, -1.0):
        key = torch.where(torch.arange(16)[:, None] < 9, sign * query.abs(), key)
        scale = size_of_scores / 8
        for mask in (
            None,
            torch.zeros(6, 16, 16, dtype=dtype).masked_fill_(torch.eye(16, dtype=torch.bool), -torch.inf),
        ):
            scores = scores_of(query, key, mask, scale).double()
            expected = torch.softmax(scores, -1) @ value.double()
            found = attend_dense(query, key, value, mask, scale, key.shape[1])
            assert found.isfinite().all()
            if dtype is torch.float32 or size_of_scores == 1.0:
                tolerance = 0.02 if dtype is torch.bfloat16 else 1e-4
                torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("num_tokens", "num_rows"), [(5, 5), (38, 40), (40, 40), (70, 80), (300, 304), (520, 544)])
@pytest.mark.parametrize("size_of_scores", [1.0, 1e4])
def test_a_lone_sequence_attends_to_itself_and_not_to_what_fills_its_row(
    num_tokens: int, num_rows: int, size_of_scores: float
) -> None:
    torch.manual_seed(0)
    num_heads, size = 3, 8
    qkv = torch.randn(num_rows, 3, num_heads, size)
    qkv[:, 0] *= size_of_scores
    qkv[num_tokens:] = 1e3
    query, key, value = qkv[:num_tokens].permute(1, 2, 0, 3)
    weights = torch.softmax(query @ key.transpose(1, 2) * size**-0.5, -1)
    found = attend_lone_fused(qkv.view(num_rows, -1), num_tokens, size)[:num_tokens]
    torch.testing.assert_close(found, (weights @ value).transpose(0, 1).reshape(num_tokens, -1), atol=1e-4, rtol=0)
