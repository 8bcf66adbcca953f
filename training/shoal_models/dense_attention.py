"""Attention of whole sequences as plain functions over tensors, which TorchScript compiles as they stand.

H heads, T packed tokens, S sequences, N chunks of a group, C tokens of a chunk, M first tokens of a chunk, P = H * N
products, D head size, E = H * D.

Annotations are not postponed in this file: TorchScript reads those of named tuples as objects.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Group(NamedTuple):
    """Chunks of one width, for tokens that attend to their own sequence."""

    width: int  # C
    rows: Tensor  # int64, (N*C): which token of the row stands in each place
    mask: Tensor | None  # (P, C, C): 0 where both places belong to one sequence, else -inf; None: all do


class FirstGroup(NamedTuple):
    """Chunks of one width, of which only first tokens attend."""

    width: int  # C
    rows: Tensor  # int64, (N*C): which token of the row stands in each place
    num_first: int  # M
    sequences: Tensor  # int64, (N*M): whose first token stands in each place
    mask: Tensor  # (P, M, C): 0 where both places belong to one sequence, else -inf


def attend_dense(
    query_PMD: Tensor, key_PCD: Tensor, value_PCD: Tensor, mask: Tensor | None, scale: float, num_keys: int
) -> Tensor:
    """Attention by batched products; (P, M, D).

    Weights are powers of two of the scores as they are, divided by their sum behind the product with the values: that
    takes half the time of a softmax. Where a sum comes near the ends of what a float holds, the softmax it is. Only the
    first `num_keys` keys are looked at.
    """
    log2_e = 1.4426950408889634
    safe = 2.0**100  # weights 2^-20 of a sum's largest are then still as precise as the others
    num_others = key_PCD.size(1) - num_keys
    weights_PMC = scores_of(query_PMD, key_PCD, mask, scale * log2_e).exp2_()
    if num_others > 0:
        weights_PMC.narrow(2, num_keys, num_others).zero_()
    sums_PM1 = weights_PMC.sum(-1, keepdim=True)
    least, most = torch.aminmax(sums_PM1)
    if float(least) > 1 / safe and float(most) < safe:
        return torch.bmm(weights_PMC, value_PCD).div_(sums_PM1)
    scores_PMC = scores_of(query_PMD, key_PCD, mask, scale)
    if num_others > 0:
        scores_PMC.narrow(2, num_keys, num_others).fill_(-float("inf"))
    return torch.bmm(torch.softmax(scores_PMC, -1), value_PCD)


def scores_of(query_PMD: Tensor, key_PCD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(P, M, C)."""
    key_PDC = key_PCD.transpose(1, 2)
    if mask is None:  # the product takes its scale along for nothing
        ignored = query_PMD.new_zeros(1).expand(query_PMD.size(0), query_PMD.size(1), key_PCD.size(1))
        return torch.baddbmm(ignored, query_PMD, key_PDC, beta=0.0, alpha=scale)
    return torch.baddbmm(mask, query_PMD, key_PDC, alpha=scale)


def attend_own(qkv_T3E: Tensor, groups: list[Group], places_T: Tensor, lone_tokens: int, size: int) -> Tensor:
    """Attention of every token to its own sequence; (T, E): in chunks, or to `lone_tokens` where that is not 0."""
    if lone_tokens > 0:
        return attend_lone_fused(qkv_T3E, lone_tokens, size)
    return attend_in_chunks(qkv_T3E, groups, places_T, size)


def attend_first_own(
    query_SE: Tensor, kv_T2E: Tensor, groups: list[FirstGroup], places_S: Tensor, lone_tokens: int, size: int
) -> Tensor:
    """The same for one query of each sequence; (S, E)."""
    if lone_tokens > 0:
        return attend_lone_first(query_SE, kv_T2E, lone_tokens, size)
    return attend_first_in_chunks(query_SE, kv_T2E, groups, places_S, size)


def attend_in_chunks(qkv_T3E: Tensor, groups: list[Group], places_T: Tensor, size: int) -> Tensor:
    """Attention of every token to its own sequence, out of one product's queries, keys and values; (T, E).

    `places_T` tells where each token lies among the places of all groups.
    """
    parts: list[Tensor] = []
    for group in groups:
        rows_HPD = by_head(qkv_T3E.index_select(0, group.rows), size)
        query, key, value = rows_HPD.view(3, -1, group.width, size).unbind(0)
        outputs_PCD = attend_dense(query, key, value, group.mask, size**-0.5, group.width)
        parts.append(by_token(outputs_PCD, len(group.rows)))
    places_PE = parts[0] if len(parts) == 1 else torch.cat(parts)
    return places_PE.index_select(0, places_T)


def attend_first_in_chunks(
    query_SE: Tensor, kv_T2E: Tensor, groups: list[FirstGroup], places_S: Tensor, size: int
) -> Tensor:
    """Attention of one query of each sequence to all of its tokens; (S, E)."""
    parts: list[Tensor] = []
    for group in groups:
        query = by_head(query_SE.index_select(0, group.sequences), size).view(-1, group.num_first, size)
        rows_HPD = by_head(kv_T2E.index_select(0, group.rows), size)
        key, value = rows_HPD.view(2, -1, group.width, size).unbind(0)
        outputs_PMD = attend_dense(query, key, value, group.mask, size**-0.5, group.width)
        parts.append(by_token(outputs_PMD, len(group.sequences)))
    places_PE = parts[0] if len(parts) == 1 else torch.cat(parts)
    return places_PE.index_select(0, places_S)


def attend_lone_fused(qkv_T3E: Tensor, num_tokens: int, size: int) -> Tensor:
    """Attention of all queries to the first `num_tokens` tokens, the only sequence that is read; (T, E).

    PyTorch's fused kernel is the faster one for a few tokens, and needs no memory for the scores of many: 12 heads of
    32 over 28, 64 and 224 tokens, bfloat16, 0.07, 0.14 and 1.1 ms on one core; dense 0.06, 0.09 and 0.42.
    """
    fewest, most = 40, 512  # above, scores take too much memory, as chunks' do
    num_rows = len(qkv_T3E)
    if fewest <= num_rows <= most:
        query, key, value = by_head(qkv_T3E, size).view(3, -1, num_rows, size).unbind(0)
        return by_token(attend_dense(query, key, value, None, size**-0.5, num_tokens), num_rows)
    query, key, value = qkv_T3E.view(num_rows, 3, -1, size).permute(1, 2, 0, 3).unbind(0)
    return attend_lone(query, key[:, :num_tokens], value[:, :num_tokens])


def attend_lone_first(query_SE: Tensor, kv_T2E: Tensor, num_tokens: int, size: int) -> Tensor:
    """The same for some queries only; (S, E)."""
    key, value = kv_T2E[:num_tokens].view(num_tokens, 2, -1, size).permute(1, 2, 0, 3).unbind(0)
    return attend_lone(query_SE.view(len(query_SE), -1, size).transpose(0, 1), key, value)


def attend_lone(query_HTD: Tensor, key_HtD: Tensor, value_HtD: Tensor) -> Tensor:
    """Attention both ways of all queries to the t tokens of one sequence; (T, E).

    Queries that nobody reads may be among them. Any strides will do, so that nothing is copied.
    """
    outputs_HTD = F.scaled_dot_product_attention(query_HTD[None], key_HtD[None], value_HtD[None])[0]
    return outputs_HTD.transpose(0, 1).reshape(query_HTD.size(1), -1)


def by_head(rows_TW: Tensor, size: int) -> Tensor:
    """(W / D, T, D)."""
    return rows_TW.view(len(rows_TW), -1, size).transpose(0, 1).contiguous()


def by_token(outputs_PMD: Tensor, num_places: int) -> Tensor:
    """(N*M, E), in the order of the group's places."""
    outputs_HPD = outputs_PMD.view(-1, num_places, outputs_PMD.size(2))
    return outputs_HPD.transpose(0, 1).reshape(num_places, -1)
