"""Sequences are sorted by length and cut into batches with little padding; answers come back in the row's order."""

from __future__ import annotations

import dataclasses
import itertools
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ragged import ragged
from shoal_models.packed import pack
from shoal_models.padded import PlainForward, Side, cut
from tiny_models import CPU
from torch import Tensor, nn


def _cost(lengths: list[int], forward_tokens: int) -> int:
    return sum(forward_tokens + len(b.members) * b.num_tokens for b in cut(lengths, forward_tokens))


def _best_cost(lengths: list[int], forward_tokens: int) -> int:
    """The cheapest of all cuts of the sorted sequences, tried one after the other."""
    ordered = sorted(lengths)
    costs = []
    for flags in itertools.product((False, True), repeat=len(ordered) - 1):
        borders = [0, *(i + 1 for i, flag in enumerate(flags) if flag), len(ordered)]
        costs.append(sum(forward_tokens + (b - a) * ordered[b - 1] for a, b in itertools.pairwise(borders)))
    return min(costs)


@pytest.mark.parametrize("seed", range(40))
def test_every_sequence_is_in_one_batch_and_none_is_longer_than_its_batch(seed: int) -> None:
    chooser = random.Random(seed)
    lengths = [chooser.randint(1, 60) for _ in range(chooser.randint(1, 50))]
    batches = cut(lengths, chooser.choice((0, 1, 16, 2048)))
    assert sorted(itertools.chain.from_iterable(b.members for b in batches)) == list(range(len(lengths)))
    for batch in batches:
        inside = [lengths[i] for i in batch.members]
        assert inside == sorted(inside)
        assert batch.num_tokens == inside[-1]


@pytest.mark.parametrize("seed", range(40))
def test_no_cut_is_cheaper(seed: int) -> None:
    chooser = random.Random(seed)
    lengths = [chooser.randint(1, 25) for _ in range(chooser.randint(1, 9))]
    forward_tokens = chooser.choice((0, 3, 16, 100))
    assert _cost(lengths, forward_tokens) == _best_cost(lengths, forward_tokens)


@pytest.mark.parametrize("forward_tokens", [0, 16, 64])
def test_padding_is_bounded_by_the_forwards_that_it_saves(forward_tokens: int) -> None:
    """A batch for each length has none; whatever is merged from there must pay."""
    chooser = random.Random(9)
    for _ in range(50):
        lengths = [min(256, int(chooser.lognormvariate(3.3, 0.8)) + 1) for _ in range(32)]
        batches = cut(lengths, forward_tokens)
        padding = sum(b.num_tokens - lengths[i] for b in batches for i in b.members)
        assert padding <= forward_tokens * (len(set(lengths)) - len(batches))


def test_sequences_of_one_length_share_a_forward() -> None:
    assert [b.members for b in cut([3, 5, 3, 5, 3], 0)] == [(1, 3), (0, 2, 4)]
    assert len(cut([3, 5, 3, 5, 3], 100)) == 1


class Echo(nn.Module):
    """Answers with each sequence's token ids summed, or with each token's own id; notes what it was given."""

    def __init__(self, *, is_token_head: bool) -> None:
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(pad_token_id=777))
        self.is_token_head = is_token_head
        self.calls: list[dict[str, Tensor]] = []

    def forward(self, **inputs: Tensor) -> Any:
        self.calls.append(inputs)
        ids_NP = inputs["input_ids"]
        if self.is_token_head:
            return SimpleNamespace(logits=ids_NP[..., None].float())
        mask_NP = inputs.get("attention_mask", torch.ones_like(ids_NP))
        return SimpleNamespace(logits=(ids_NP * mask_NP).sum(-1, keepdim=True).float())


@dataclasses.dataclass(frozen=True)
class Case:
    side: Side
    forward_tokens: int


CASES = [Case(side, tokens) for side in ("right", "left") for tokens in (0, 16, 10**6)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("is_token_head", [False, True])
def test_answers_come_back_in_order(case: Case, is_token_head: bool) -> None:
    sequences = ragged(11, 20, 30)
    model = Echo(is_token_head=is_token_head)
    forward = PlainForward(model, is_token_head=is_token_head, takes_types=False)
    found = forward.padded(pack(sequences, device=CPU), side=case.side, forward_tokens=case.forward_tokens)
    tokens = [token for ids in sequences for token in ids]
    assert found[:, 0].tolist() == (tokens if is_token_head else [sum(ids) for ids in sequences])
    assert torch.equal(found, forward.one_by_one(pack(sequences, device=CPU)))


@pytest.mark.parametrize(("side", "places"), [("right", [0, 1, 2]), ("left", [2, 3, 4])])
def test_padding_is_masked_and_goes_to_one_side(side: Side, places: list[int]) -> None:
    model = Echo(is_token_head=False)
    forward = PlainForward(model, is_token_head=False, takes_types=True)
    row = pack([[4, 5, 6, 7, 8], [9, 10, 11]], device=CPU, second_starts=[3, 1])
    forward.padded(row, side=side, forward_tokens=100)
    (call,) = model.calls
    assert call["input_ids"][0, places].tolist() == [9, 10, 11], "the shortest comes first"
    assert call["input_ids"][0].tolist().count(777) == 2
    assert call["attention_mask"].tolist() == [[int(i in places) for i in range(5)], [1] * 5]
    assert call["token_type_ids"][0, places].tolist() == [0, 1, 1]
    assert call["token_type_ids"][1].tolist() == [0, 0, 0, 1, 1]


def test_a_batch_without_padding_carries_no_mask() -> None:
    model = Echo(is_token_head=False)
    PlainForward(model, is_token_head=False, takes_types=False).padded(
        pack([[4, 5], [6, 7], [8]], device=CPU), side="right", forward_tokens=0
    )
    assert [sorted(call) for call in model.calls] == [["input_ids"], ["input_ids"]]
