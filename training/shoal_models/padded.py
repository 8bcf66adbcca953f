"""Transformers' own forward over batches of sequences of like length, where rows cannot be packed.

S sequences, T packed tokens, N sequences of a batch, P tokens of its longest, L labels.

Sequences are sorted by length and cut into batches so that padding costs less than the forwards it saves. Answers
are put back in the row's order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from shoal_models.packed import PackedRow

Side = Literal["right", "left"]
"""Where padding goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences that run together, by their index in the row, shortest first."""

    members: tuple[int, ...]
    num_tokens: int  # of the longest: what each is padded to


def cut(lengths: Sequence[int], forward_tokens: int) -> list[Batch]:
    """The batches with the least padding plus `forward_tokens` for each: what a forward costs beside its tokens.

    Sequences of one length always stay together. So over one batch for each length, no more than `forward_tokens` of
    padding are taken in for every forward that is saved. Cost: the square of the number of different lengths.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = [tuple(group) for _, group in itertools.groupby(order, key=lengths.__getitem__)]
    counts = [0, *itertools.accumulate(map(len, groups))]
    costs, begins = [0], [0]  # of the best cut of the first so many groups; where its last batch begins
    for end in range(1, len(groups) + 1):
        longest = lengths[groups[end - 1][0]]
        choices = [costs[begin] + forward_tokens + (counts[end] - counts[begin]) * longest for begin in range(end)]
        best = min(range(end), key=choices.__getitem__)
        costs.append(choices[best])
        begins.append(best)
    batches: list[Batch] = []
    end = len(groups)
    while end:
        members = tuple(itertools.chain.from_iterable(groups[begins[end] : end]))
        batches.append(Batch(members=members, num_tokens=lengths[members[-1]]))
        end = begins[end]
    return batches


class PlainForward:
    """A model's own forward over batches; with `forward_tokens` 0 of sequences of one length only."""

    def __init__(self, model: Any, *, is_token_head: bool, takes_types: bool) -> None:
        self._model = model
        self._is_token_head = is_token_head
        self._takes_types = takes_types
        self._padding_id = _padding_id(model.config.get_text_config())

    def padded(self, row: PackedRow, *, side: Side, forward_tokens: int) -> Tensor:
        """Logits of a row, (T, L) or (S, L), in batches that `cut` finds."""
        return self._in_batches(row, cut(row.lengths, forward_tokens), side)

    def one_by_one(self, row: PackedRow) -> Tensor:
        """Logits of a row, (T, L) or (S, L), sequence after sequence."""
        lengths = row.lengths
        batches = [Batch(members=(index,), num_tokens=length) for index, length in enumerate(lengths)]
        return self._in_batches(row, batches, "right")

    def _in_batches(self, row: PackedRow, batches: list[Batch], side: Side) -> Tensor:
        found, places = [], []
        for batch in batches:
            index_NP, is_real_NP = _places(row, batch, side)
            logits = self._run(row, index_NP, is_real_NP, is_padded=row.lengths[batch.members[0]] < batch.num_tokens)
            if self._is_token_head:
                found.append(logits[is_real_NP])
                places.append(index_NP[is_real_NP])
            else:
                found.append(logits)
                places.append(torch.tensor(batch.members, device=logits.device))
        logits = torch.cat(found)
        return torch.empty_like(logits).index_copy_(0, torch.cat(places), logits)

    def _run(self, row: PackedRow, index_NP: Tensor, is_real_NP: Tensor, *, is_padded: bool) -> Tensor:
        inputs = {"input_ids": row.ids_T[index_NP]}
        if is_padded:
            inputs["input_ids"] = torch.where(is_real_NP, inputs["input_ids"], self._padding_id)
            inputs["attention_mask"] = is_real_NP.long()
        if self._takes_types and row.type_ids_T is not None:
            inputs["token_type_ids"] = torch.where(is_real_NP, row.type_ids_T[index_NP], 0)
        logits: Tensor = self._model(**inputs).logits
        return logits


def _places(row: PackedRow, batch: Batch, side: Side) -> tuple[Tensor, Tensor]:
    """Where in the row each place of a batch takes its token from (N, P), and which places do (N, P)."""
    device = row.ids_T.device
    starts_N = torch.tensor([row.starts[index] for index in batch.members], device=device)
    lengths_N = torch.tensor([row.lengths[index] for index in batch.members], device=device)
    inside_NP = torch.arange(batch.num_tokens, device=device).expand(len(batch.members), -1)
    if side == "left":
        inside_NP = inside_NP - (batch.num_tokens - lengths_N[:, None])
    is_real_NP = (inside_NP >= 0) & (inside_NP < lengths_N[:, None])
    return torch.where(is_real_NP, starts_N[:, None] + inside_NP, 0), is_real_NP


def _padding_id(config: Any) -> int:
    padding_id = getattr(config, "pad_token_id", None)
    return padding_id if isinstance(padding_id, int) else 0
