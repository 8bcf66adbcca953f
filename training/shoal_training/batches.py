"""Token rows and how they become batches: alike lengths together, padded to the longest of each batch.

B rows of a batch, T tokens of its longest row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Ids = npt.NDArray[np.int32]
_GROUP_BATCHES = 50  # batches among whose rows alike lengths are put together


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One sequence, special tokens included."""

    ids: Ids
    type_ids: Ids | None = None  # pairs, where the model tells the texts apart
    label: int | None = None


class TokenRows(Dataset[TokenRow]):
    """Sequences in memory."""

    def __init__(self, rows: list[TokenRow]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenRow:
        return self.rows[index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.ids) for row in self.rows]


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of row indices in an order that follows from seed and epoch alone, so that a resumed run repeats it.

    Rows are shuffled, ordered by length within groups of 50 batches (fewer when there are few rows, so that batches
    still differ from epoch to epoch), cut into batches, and the batches shuffled.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.epoch = 0  # set before each pass
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        chooser = random.Random(f"{self._seed}:order:{self.epoch}")  # noqa: S311
        order = list(range(len(self._lengths)))
        chooser.shuffle(order)
        group = self._batch_size * max(1, min(len(self) // 4, _GROUP_BATCHES))
        ordered: list[int] = []
        for start in range(0, len(order), group):
            ordered += sorted(order[start : start + group], key=self._lengths.__getitem__, reverse=True)
        batches = [ordered[start : start + self._batch_size] for start in range(0, len(ordered), self._batch_size)]
        chooser.shuffle(batches)
        return iter(batches)


def batches_by_length(rows: list[TokenRow], max_tokens: int) -> Iterator[list[int]]:
    """Indices of rows in batches of at most `max_tokens` padded tokens (at least one row), longest first."""
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i].ids), reverse=True):
        longest = longest or len(rows[index].ids)
        if batch and longest * (len(batch) + 1) > max_tokens:
            yield batch
            batch, longest = [], len(rows[index].ids)
        batch.append(index)
    if batch:
        yield batch


def pad_batch(rows: list[TokenRow], pad_id: int) -> dict[str, Tensor]:
    """input_ids, attention_mask and, where rows have them, token_type_ids: each (B, T) int64, padded on the right."""
    batch = {
        "input_ids": _pad([row.ids for row in rows], pad_id),
        "attention_mask": _pad([np.ones(len(row.ids), dtype=np.int32) for row in rows], 0),
    }
    if rows[0].type_ids is not None:
        batch["token_type_ids"] = _pad([row.type_ids for row in rows if row.type_ids is not None], 0)
    return batch


def _pad(values: list[Ids], fill: int) -> Tensor:
    padded_BT = np.full((len(values), max(len(value) for value in values)), fill, dtype=np.int64)
    for index, value in enumerate(values):
        padded_BT[index, : len(value)] = value
    return torch.from_numpy(padded_BT)


def take_chunks(items: list[Any], size: int, check: Callable[[], None]) -> Iterator[list[Any]]:
    """The items in chunks; `check` is called before each, and may raise to end the work."""
    for start in range(0, len(items), size):
        check()
        yield items[start : start + size]
