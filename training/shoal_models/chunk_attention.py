"""Attention of whole sequences in chunks, by batched matrix products: the fast way on a CPU.

H heads, T packed tokens, N chunks of a group, C tokens of a chunk, P = H * N products, D head size. How chunks are cut:
chunks.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shoal_models.chunks import ChunkGroup, Chunking
from shoal_models.dense_attention import Group, attend_dense, by_token

Select = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Queries, keys and values of some tokens (int64, their places in the row), each (H, tokens, D)."""


class Chunks:
    """The tensors that all layers of one forward share."""

    def __init__(self, chunking: Chunking, *, num_heads: int, dtype: torch.dtype) -> None:
        self.groups = [_group(group, num_heads, dtype) for group in chunking.groups]
        self.places_T = torch.from_numpy(chunking.places_T)  # of each token among the places of all groups

    def attend(self, select: Select, scale: float) -> Tensor:
        """Attention of every token to its own sequence; returns (T, H, D)."""
        parts: list[Tensor] = []
        for group in self.groups:
            query, key, value = (part.view(-1, group.width, part.shape[-1]) for part in select(group.rows))
            parts.append(by_token(attend_dense(query, key, value, group.mask, scale, group.width), len(group.rows)))
        places_PE = parts[0] if len(parts) == 1 else torch.cat(parts)
        return places_PE.index_select(0, self.places_T).view(len(self.places_T), -1, value.shape[-1])


def _group(group: ChunkGroup, num_heads: int, dtype: torch.dtype) -> Group:
    mask = None
    if not group.is_full:
        owners_NC = torch.from_numpy(group.owners_NC)
        mask = mask_apart(owners_NC[:, :, None] != owners_NC[:, None, :], num_heads, dtype)
    return Group(width=group.width, rows=torch.from_numpy(group.rows), mask=mask)


def mask_apart(apart: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """What to add to scores, (H*N, ., .): -inf where `apart` (bool, (N, ., .)) tells places of different sequences."""
    return torch.zeros(apart.shape, dtype=dtype).masked_fill_(apart, float("-inf")).repeat(num_heads, 1, 1)
