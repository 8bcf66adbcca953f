"""What attention has on CUDA alone: one variable-length flash-attention call for a whole packed row.

H query heads, K key/value heads, T packed tokens, S sequences, C cached and new tokens of all sequences, D head size.

Has been run against a reference stand-in on a CPU only, never on a GPU.
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_models.plan import AttentionPlan, Kernel

try:
    from torch.nn.attention import varlen
except ImportError:  # PyTorch builds without it fall back to attention sequence by sequence
    varlen_attn: Kernel | None = None
else:
    varlen_attn = varlen.varlen_attn

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class VarlenIndex:
    """Offsets of the sequences among new tokens and among cached and new ones."""

    new_S1: Tensor  # int32
    total_S1: Tensor  # int32
    max_new: int
    max_total: int
    slots_C: Tensor | None  # int64, places in the cache; None: nothing is cached


def varlen_kernel(query: Tensor) -> Kernel | None:
    """The kernel for such a tensor, if there is one: on a GPU, in half precision, heads of at most 256."""
    size = query.shape[-1]
    fits = query.is_cuda and query.dtype in HALF and size <= 256 and size % 8 == 0
    return varlen_attn if fits else None


def attend_varlen(
    plan: AttentionPlan,
    layer: int,
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    kernel: Kernel,
) -> Tensor:
    """Attention of all sequences in one call; returns (T, H, D). New keys are already in the cache, if there is one."""
    index = _index(plan)
    keys, values = key_KTD, value_KTD
    if index.slots_C is not None and plan.cache is not None:
        keys = plan.cache.keys[layer].index_select(1, index.slots_C)
        values = plan.cache.values[layer].index_select(1, index.slots_C)
    groups = query_HTD.shape[0] // keys.shape[0]
    options: dict[str, object] = {"scale": scale, "window_size": _window(causal=causal, window=window)}
    if groups > 1 and "enable_gqa" in inspect.signature(kernel).parameters:
        options["enable_gqa"] = True
    elif groups > 1:
        keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
    out = kernel(
        query_HTD.transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        index.new_S1,
        index.total_S1,
        index.max_new,
        index.max_total,
        **options,
    )
    assert isinstance(out, Tensor), "no auxiliary outputs were asked for"
    return out


def _window(*, causal: bool, window: int | None) -> tuple[int, int]:
    """Flash attention's inclusive (left, right); `window` counts the token itself."""
    left = -1 if window is None else window - 1
    return left, 0 if causal else left


def _index(plan: AttentionPlan) -> VarlenIndex:
    if isinstance(plan.varlen, VarlenIndex):
        return plan.varlen
    row = plan.row
    device = row.ids_T.device
    new_S1 = row.starts_on_device().int()
    totals = list(row.lengths)
    total_S1, slots_C = new_S1, None
    if row.cache is not None:
        totals = [new + context for new, context in zip(row.lengths, row.context_lens, strict=True)]
        size = row.cache.block_tokens
        places = [
            table[at // size] * size + at % size
            for table, total in zip(row.block_tables, totals, strict=True)
            for at in range(total)
        ]
        slots_C = torch.tensor(places, dtype=torch.int64, device=device)
        total_S1 = torch.tensor([0, *itertools.accumulate(totals)], dtype=torch.int32, device=device)
    plan.varlen = VarlenIndex(
        new_S1=new_S1,
        total_S1=total_S1,
        max_new=max(row.lengths),
        max_total=max(totals),
        slots_C=slots_C,
    )
    return plan.varlen
