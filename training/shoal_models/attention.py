"""The attention function of packed rows, registered with transformers under `PACKED`.

H query heads, K key/value heads, G = H / K, T packed tokens, B sequences of a decode group, D head size.

The name is absent from transformers' mask registry, so no mask is ever built for it. It takes the plan of the row as
the keyword `packed_plan`, which transformers' models hand through their layers; a model that loses it on the way is
noticed by the number of calls that the plan counts. Plain PyTorch throughout, for any device; what only CUDA has is in
attention_cuda.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from shoal_models.attention_cuda import attend_varlen, varlen_kernel
from shoal_models.chunk_attention import Chunks
from shoal_models.dense_attention import attend_in_chunks, attend_lone_fused
from shoal_models.packed import PagedCache
from shoal_models.plan import AttentionPlan, DecodeGroup, Span

PACKED = "shoal_packed"
_UNKNOWN_TO_US = ("s_aux", "position_bias", "sinks", "head_mask", "cache")


class PackedAttentionError(Exception):
    """A model asks attention for something that packed rows do not offer."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed_plan: AttentionPlan | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of every new token to its own sequence; `query` (1, H, T, D), `key` and `value` (1, K, T, D).

    With a cache the new keys and values are written to it first. Returns (1, T, H, D).

    Raises:
        PackedAttentionError: the plan is missing, or the model asks for what packed rows do not offer.
    """
    plan = _checked_plan(packed_plan, query, attention_mask, dropout, others)
    plan.num_calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = plan.cache is not None or (bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal)
    heads = _Heads(scale=scale, causal=causal, window=sliding_window, softcap=softcap)
    layer = int(getattr(module, "layer_idx", 0) or 0)
    query_HTD, key_KTD, value_KTD = query[0], key[0], value[0]
    if plan.cache is not None and plan.slots_T is not None:
        plan.cache.keys[layer].index_copy_(1, plan.slots_T, key_KTD)
        plan.cache.values[layer].index_copy_(1, plan.slots_T, value_KTD)
    return _attend_any(plan, layer, heads, query_HTD, key_KTD, value_KTD)[None], None


def attend_fused(plan: AttentionPlan, qkv_T3E: Tensor, num_heads: int) -> Tensor:
    """Attention both ways of every token to its own sequence, out of one product's queries, keys and values; (T, E)."""
    plan.num_calls += 1
    num_tokens, width = qkv_T3E.shape
    size = width // (3 * num_heads)
    if plan.lone_tokens:
        return attend_lone_fused(qkv_T3E, plan.lone_tokens, size)
    chunks = plan.chunks(num_heads, qkv_T3E.dtype)
    if chunks is not None:
        return attend_in_chunks(qkv_T3E, chunks.groups, chunks.places_T, size)
    qkv_HTD = qkv_T3E.view(num_tokens, -1, size).transpose(0, 1)
    if not qkv_T3E.is_cuda:  # whose kernel takes any strides
        qkv_HTD = qkv_HTD.contiguous()
    query, key, value = qkv_HTD.tensor_split(3)
    heads = _Heads(scale=size**-0.5, causal=False, window=None, softcap=None)
    return _attend_any(plan, 0, heads, query, key, value).reshape(num_tokens, -1)


class _Heads:
    """How scores become weights; the same for all sequences of a call."""

    __slots__ = ("causal", "scale", "softcap", "window")

    def __init__(self, *, scale: float, causal: bool, window: int | None, softcap: float | None) -> None:
        self.scale, self.causal, self.window, self.softcap = scale, causal, window, softcap


def _checked_plan(
    plan: AttentionPlan | None, query: Tensor, attention_mask: Tensor | None, dropout: float, others: dict[str, Any]
) -> AttentionPlan:
    if plan is None:
        raise PackedAttentionError("the model does not hand the packed plan to attention")
    if attention_mask is not None:
        raise PackedAttentionError("the model builds an attention mask of its own")
    if query.shape[0] != 1 or query.shape[2] != plan.num_tokens or dropout:
        raise PackedAttentionError("the model reshapes the packed row or drops attention weights")
    for name in _UNKNOWN_TO_US:
        if others.get(name) is not None:
            raise PackedAttentionError(f"the model's attention needs {name}")
    return plan


def _attend_any(
    plan: AttentionPlan, layer: int, heads: _Heads, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor
) -> Tensor:
    """By the fastest kernel that there is for these tensors; (T, H, D)."""
    kernel = None if heads.softcap is not None else plan.kernel or varlen_kernel(query_HTD)
    if kernel is not None:
        return attend_varlen(
            plan,
            layer,
            query_HTD,
            key_KTD,
            value_KTD,
            scale=heads.scale,
            causal=heads.causal,
            window=heads.window,
            kernel=kernel,
        )
    chunks = _chunks(plan, heads, query_HTD, key_KTD)
    if chunks is None:
        return _attend(plan, layer, heads, query_HTD, key_KTD, value_KTD)

    def select(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return query_HTD.index_select(1, rows), key_KTD.index_select(1, rows), value_KTD.index_select(1, rows)

    return chunks.attend(select, heads.scale)


def _chunks(plan: AttentionPlan, heads: _Heads, query_HTD: Tensor, key_KTD: Tensor) -> Chunks | None:
    """The row in chunks, where attention is plain: both ways, with a key for each query, as wide as the sequences."""
    if heads.causal or heads.softcap is not None or len(key_KTD) != len(query_HTD):
        return None
    if heads.window is not None and heads.window < max(plan.row.lengths):
        return None
    return plan.chunks(len(query_HTD), query_HTD.dtype)


def _attend(
    plan: AttentionPlan, layer: int, heads: _Heads, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor
) -> Tensor:
    if not plan.spans and len(plan.decodes) == 1 and plan.decodes[0].rows_B is None and plan.cache is not None:
        return _decode(plan.cache, layer, plan.decodes[0], heads, query_HTD)
    out_THD = torch.empty_like(query_HTD.transpose(0, 1), memory_format=torch.contiguous_format)
    for group in plan.decodes:
        assert plan.cache is not None, "decode groups come of a cache"
        assert group.rows_B is not None, "only a group alone is the whole row"
        out_THD[group.rows_B] = _decode(plan.cache, layer, group, heads, query_HTD[:, group.rows_B])
    for span in plan.spans:
        keys, values = key_KTD[:, span.start : span.end], value_KTD[:, span.start : span.end]
        if span.slots is not None:
            assert plan.cache is not None, "a context lies in a cache"
            keys = plan.cache.keys[layer].index_select(1, span.slots)
            values = plan.cache.values[layer].index_select(1, span.slots)
        span_HtD = _attend_span(plan, span, heads, query_HTD[:, span.start : span.end], keys, values)
        out_THD[span.start : span.end] = span_HtD.transpose(0, 1)
    return out_THD


def _attend_span(
    plan: AttentionPlan, span: Span, heads: _Heads, query_HtD: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    mask = plan.mask(span, causal=heads.causal, window=heads.window)
    plain_causal = heads.causal and mask is None and span.end - span.start > 1
    if heads.softcap is not None:
        return _capped(heads, query_HtD, keys, values, mask, plain_causal=plain_causal)
    return F.scaled_dot_product_attention(
        query_HtD[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=plain_causal,
        scale=heads.scale,
        enable_gqa=query_HtD.shape[0] != keys.shape[0],
    )[0]


def _capped(
    heads: _Heads, query_HtD: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, plain_causal: bool
) -> Tensor:
    """Attention with scores squeezed by tanh (Gemma 2), which no fused kernel of PyTorch offers."""
    assert heads.softcap is not None, "called for softcap only"
    groups = query_HtD.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
    scores = torch.matmul(query_HtD, keys.transpose(1, 2)) * heads.scale
    scores = torch.tanh(scores / heads.softcap) * heads.softcap
    if plain_causal:
        mask = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype), values)


def _decode(cache: PagedCache, layer: int, group: DecodeGroup, heads: _Heads, query_HBD: Tensor) -> Tensor:
    """One new token of each sequence against its gathered blocks; returns (B, H, D)."""
    num_heads, size = cache.keys[layer].shape[0], cache.keys[layer].shape[2]
    both = cache.gather(layer, group.blocks).view(2, -1, group.max_tokens, size)
    keys, values = both[0], both[1]  # (K*B, tokens, D)
    batch = group.num_sequences
    query = query_HBD.view(num_heads, -1, batch, size).transpose(1, 2).reshape(num_heads * batch, -1, size)
    mask = group.mask(heads.window, num_heads, query.dtype)
    if heads.softcap is None:
        scores = torch.baddbmm(mask, query, keys.transpose(1, 2), alpha=heads.scale)
    else:
        scores = torch.bmm(query, keys.transpose(1, 2)) * heads.scale
        scores = torch.tanh(scores / heads.softcap) * heads.softcap + mask
    out = torch.bmm(torch.softmax(scores, -1), values)  # (K*B, G, D)
    return out.view(num_heads, batch, -1, size).transpose(0, 1).reshape(batch, -1, size)


AttentionInterface.register(PACKED, packed_attention)
