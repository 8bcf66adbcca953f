"""Attention of whole sequences in chunks, by batched matrix products: the fast way on a CPU.

H heads, T packed tokens, N chunks of a group, C tokens of a chunk, D head size. How chunks are cut: chunks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_models.chunks import ChunkGroup, Chunking

Select = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Queries, keys and values of some tokens (int64, their places in the row), each (H, tokens, D)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    width: int
    num_chunks: int
    rows: Tensor  # int64, (N*C)
    mask: Tensor | None  # (H*N, C, C): 0 where both places belong to one sequence, else -inf


class Chunks:
    """The tensors that all layers of one forward share."""

    def __init__(self, chunking: Chunking, *, num_heads: int, dtype: torch.dtype) -> None:
        self._num_heads = num_heads
        self._groups = [_group(group, num_heads, dtype) for group in chunking.groups]
        self._places_T = torch.from_numpy(chunking.places_T)

    def attend(self, select: Select, scale: float) -> Tensor:
        """Attention of every token to its own sequence; returns (T, H, D)."""
        parts = [self._attend_group(group, select, scale) for group in self._groups]
        places_PHD = parts[0] if len(parts) == 1 else torch.cat(parts)
        return places_PHD.index_select(0, self._places_T)

    def _attend_group(self, group: _Group, select: Select, scale: float) -> Tensor:
        """Outputs in the order of the group's places, (N*C, H, D)."""
        query, key, value = (part.view(-1, group.width, part.shape[-1]) for part in select(group.rows))
        if group.mask is None:
            scores = torch.bmm(query, key.transpose(1, 2)).mul_(scale)
        else:
            scores = torch.baddbmm(group.mask, query, key.transpose(1, 2), alpha=scale)
        outputs = torch.bmm(torch.softmax(scores, -1), value)
        return outputs.view(self._num_heads, -1, value.shape[-1]).transpose(0, 1).contiguous()


def _group(group: ChunkGroup, num_heads: int, dtype: torch.dtype) -> _Group:
    mask = None
    if not group.is_full:
        owners_NC = torch.from_numpy(group.owners_NC)
        apart = owners_NC[:, :, None] != owners_NC[:, None, :]
        mask = torch.zeros(apart.shape, dtype=dtype).masked_fill_(apart, float("-inf")).repeat(num_heads, 1, 1)
    return _Group(width=group.width, num_chunks=group.num_chunks, rows=torch.from_numpy(group.rows), mask=mask)
