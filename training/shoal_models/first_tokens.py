"""The last layer of an encoder whose head reads first tokens only: nothing but those is computed behind its keys.

S sequences, T packed tokens, E hidden size, H heads, D head size, N chunks of a group, C tokens of a chunk, M first
tokens of a chunk.

Of a layer's twelve E x E products per token the last one then needs two, keys and values, so that an encoder of six
layers does a seventh less and gives the same answers. On a CPU only: the layer takes its chunks, see chunks.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from shoal_models.chunk_attention import mask_apart
from shoal_models.chunks import ChunkGroup, Chunking
from shoal_models.dense_attention import FirstGroup, attend_first_in_chunks, attend_lone_first, by_head
from shoal_models.layer_parts import LayerParts
from shoal_models.linears import ACTIVATIONS, FusedLinear
from shoal_models.plan import AttentionPlan
from shoal_models.sizes import few_sizes


class FirstTokenLayer(nn.Module):
    """A post-norm layer (see post_norm.py) that fills in the rows of first tokens; the others are left zero."""

    def __init__(self, parts: LayerParts) -> None:
        super().__init__()
        self.query = FusedLinear(parts.query.weight, parts.query.bias)
        both = (parts.key, parts.value)
        self.kv = FusedLinear(torch.cat([one.weight for one in both]), torch.cat([one.bias for one in both]))
        self.output = FusedLinear(parts.output.weight, parts.output.bias)
        self.attention_norm = parts.attention_norm
        self.up = FusedLinear(parts.up.weight, parts.up.bias, ACTIVATIONS[parts.activation])
        self.down = FusedLinear(parts.down.weight, parts.down.bias)
        self.norm = parts.norm
        self.num_heads = parts.num_heads

    def forward(self, hidden_1TE: Tensor, *_: Any, packed_plan: AttentionPlan, **__: Any) -> Tensor:
        """(1, T, E), of which only the first tokens' rows mean anything."""
        hidden_TE = hidden_1TE[0]
        packed_plan.num_calls += 1
        firsts_S = torch.tensor(packed_plan.row.starts[:-1])
        hidden_SE = hidden_TE.index_select(0, firsts_S)
        mixed_SE = attend_first(packed_plan, self.query(hidden_SE), self.kv(hidden_TE), self.num_heads)
        hidden_SE = self.attention_norm(self.output(mixed_SE, hidden_SE))
        outputs_SE = self.norm(self.down(self.up(hidden_SE), hidden_SE))
        return torch.zeros_like(hidden_TE).index_copy_(0, firsts_S, outputs_SE.to(hidden_TE.dtype))[None]


class FirstChunks:
    """What attention of first tokens in chunks needs to know of a row."""

    def __init__(self, chunking: Chunking, *, num_heads: int, dtype: torch.dtype) -> None:
        queries = [_queries_of(group) for group in chunking.groups]
        num_sequences = sum(len(one.sequences) for one in queries)
        places_S, first_place = np.empty(num_sequences, dtype=np.int64), 0
        for one in queries:
            places_S[one.sequences] = first_place + one.places
            first_place += one.owners_NM.size
        self.places_S = torch.from_numpy(places_S)  # of each sequence among the places of all groups
        pairs = zip(chunking.groups, queries, strict=True)
        self.groups = [_first_group(group, one, num_heads, dtype) for group, one in pairs]


def attend_first(plan: AttentionPlan, query_SE: Tensor, kv_T2E: Tensor, num_heads: int) -> Tensor:
    """Attention of one query of each sequence to all of its tokens; returns (S, E)."""
    size = query_SE.shape[1] // num_heads
    if plan.lone_tokens:
        return attend_lone_first(query_SE, kv_T2E, plan.lone_tokens, size)
    chunking = plan.chunking()
    if chunking is None:
        return _attend_each(plan.row.starts, query_SE, kv_T2E, size)
    chunks = FirstChunks(chunking, num_heads=num_heads, dtype=query_SE.dtype)
    return attend_first_in_chunks(query_SE, kv_T2E, chunks.groups, chunks.places_S, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queries:
    """The first tokens in the chunks of a group, M places for each chunk."""

    owners_NM: NDArray[np.int64]  # whose query stands in each place
    sequences: NDArray[np.int64]  # the sequences of the group ...
    places: NDArray[np.int64]  # ... and the place of each


def _queries_of(group: ChunkGroup) -> _Queries:
    owners_NC = group.owners_NC
    is_first_NC = owners_NC >= 0
    is_first_NC[:, 1:] &= owners_NC[:, 1:] != owners_NC[:, :-1]
    chunks, at = np.nonzero(is_first_NC)
    counts_N = is_first_NC.sum(1)
    num_places = few_sizes(int(counts_N.max()))
    inside = np.arange(len(chunks)) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
    owners_NM = np.repeat(owners_NC[:, :1], num_places, axis=1)  # what is left over repeats the first
    owners_NM[chunks, inside] = owners_NC[chunks, at]
    return _Queries(owners_NM=owners_NM, sequences=owners_NC[chunks, at], places=chunks * num_places + inside)


def _first_group(group: ChunkGroup, queries: _Queries, num_heads: int, dtype: torch.dtype) -> FirstGroup:
    apart = torch.from_numpy(queries.owners_NM[:, :, None] != group.owners_NC[:, None, :])
    return FirstGroup(
        width=group.width,
        rows=torch.from_numpy(group.rows),
        num_first=queries.owners_NM.shape[1],
        sequences=torch.from_numpy(np.maximum(queries.owners_NM, 0).reshape(-1)),
        mask=mask_apart(apart, num_heads, dtype),
    )


def _attend_each(starts: tuple[int, ...], query_SE: Tensor, kv_T2E: Tensor, size: int) -> Tensor:
    found = []
    for (start, end), query in zip(itertools.pairwise(starts), torch.split(query_SE, 1), strict=True):
        key, value = by_head(kv_T2E[start:end], size).tensor_split(2)
        found.append(F.scaled_dot_product_attention(by_head(query, size)[None], key[None], value[None]).view(1, -1))
    return torch.cat(found)
