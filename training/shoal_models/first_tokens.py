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

from shoal_models.attention import attend_lone
from shoal_models.chunks import ChunkGroup
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
        return torch.zeros_like(hidden_TE).index_copy_(0, firsts_S, outputs_SE)[None]


def attend_first(plan: AttentionPlan, query_SE: Tensor, kv_T2E: Tensor, num_heads: int) -> Tensor:
    """Attention of one query of each sequence to all of its tokens; returns (S, E)."""
    size = query_SE.shape[1] // num_heads
    if plan.lone_tokens:
        key, value = kv_T2E[: plan.lone_tokens].view(plan.lone_tokens, 2, num_heads, size).permute(1, 2, 0, 3).unbind(0)
        query = query_SE.view(len(query_SE), num_heads, size).transpose(0, 1)
        return attend_lone(query, key, value).view(len(query_SE), -1)
    chunking = plan.chunking()
    if chunking is None:
        return _attend_each(plan.row.starts, query_SE, kv_T2E, size)
    parts, places_S, first_place = [], np.empty(len(query_SE), dtype=np.int64), 0
    for group in chunking.groups:
        queries = _queries_of(group)
        places_S[queries.sequences] = first_place + queries.places
        first_place += len(queries.rows)
        parts.append(_attend_group(group, queries, query_SE, kv_T2E, size))
    outputs_PE = parts[0] if len(parts) == 1 else torch.cat(parts)
    return outputs_PE.index_select(0, torch.from_numpy(places_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queries:
    """The first tokens in the chunks of a group, M places for each chunk."""

    rows: NDArray[np.int64]  # (N*M): whose query stands in each place
    owners_NM: NDArray[np.int64]  # the same, by chunk
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
    return _Queries(
        rows=np.maximum(owners_NM, 0).reshape(-1),
        owners_NM=owners_NM,
        sequences=owners_NC[chunks, at],
        places=chunks * num_places + inside,
    )


def _attend_group(group: ChunkGroup, queries: _Queries, query_SE: Tensor, kv_T2E: Tensor, size: int) -> Tensor:
    """(N*M, E)."""
    query_SE = query_SE.index_select(0, torch.from_numpy(queries.rows))
    query = _by_head(query_SE, size).view(-1, queries.owners_NM.shape[1], size)
    keys_values = _by_head(kv_T2E.index_select(0, torch.from_numpy(group.rows)), size).view(2, -1, group.width, size)
    apart = torch.from_numpy(queries.owners_NM[:, :, None] != group.owners_NC[:, None, :])
    mask = torch.zeros(apart.shape, dtype=query.dtype).masked_fill_(apart, float("-inf"))
    mask = mask.repeat(len(query) // group.num_chunks, 1, 1)
    scores = torch.baddbmm(mask, query, keys_values[0].transpose(1, 2), alpha=size**-0.5)
    outputs = torch.bmm(torch.softmax(scores, -1), keys_values[1])
    return outputs.view(-1, len(query_SE), size).transpose(0, 1).reshape(len(query_SE), -1)


def _attend_each(starts: tuple[int, ...], query_SE: Tensor, kv_T2E: Tensor, size: int) -> Tensor:
    found = []
    for (start, end), query in zip(itertools.pairwise(starts), torch.split(query_SE, 1), strict=True):
        key, value = _by_head(kv_T2E[start:end], size).tensor_split(2)
        found.append(F.scaled_dot_product_attention(_by_head(query, size)[None], key[None], value[None]).view(1, -1))
    return torch.cat(found)


def _by_head(rows: Tensor, size: int) -> Tensor:
    """(heads, rows, D)."""
    return rows.view(len(rows), -1, size).transpose(0, 1).contiguous()
