"""Made-up sequences of unlike lengths, and what transformers itself answers to them, one after the other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from tiny_models import VOCABULARY
from torch import Tensor

NUM_SPECIALS = 4


def ragged(seed: int, count: int, longest: int) -> list[list[int]]:
    """Sequences of 1 to `longest` token ids, none of them special."""
    chooser = random.Random(seed)
    return [
        [chooser.randrange(NUM_SPECIALS, VOCABULARY) for _ in range(chooser.randint(1, longest))] for _ in range(count)
    ]


def second_starts(seed: int, sequences: Sequence[Sequence[int]]) -> list[int]:
    """Where the second text of each begins; of about every third there is none."""
    chooser = random.Random(seed)
    return [-1 if chooser.random() < 0.3 else chooser.randrange(len(ids)) for ids in sequences]


@torch.no_grad()
def alone(model: Any, sequences: Sequence[Sequence[int]], seconds: Sequence[int] | None = None) -> Tensor:
    """Logits of each sequence alone: a row for each, or for each of its tokens where the head is for tokens."""
    found = []
    for index, ids in enumerate(sequences):
        inputs = {"input_ids": torch.tensor([ids])}
        if seconds is not None:
            start = seconds[index] if seconds[index] >= 0 else len(ids)
            inputs["token_type_ids"] = torch.tensor([[0] * start + [1] * (len(ids) - start)])
        logits = model(**inputs).logits
        found.append(logits.flatten(0, -2))
    return torch.cat(found)
