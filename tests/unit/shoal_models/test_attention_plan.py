"""Index tensors of a row: padding is bounded, blocks are cleared as they open, and the CUDA path indexes alike."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shoal_models.attention import PACKED, PackedAttentionError, packed_attention
from shoal_models.attention_cuda import attend_varlen
from shoal_models.packed import CacheShape, PackedRow, PagedCache, pack
from shoal_models.plan import AttentionPlan
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

HEADS, KV_HEADS, SIZE, BLOCK = 6, 2, 16, 4


def _cache(num_blocks: int) -> PagedCache:
    shape = CacheShape(num_layers=1, num_heads=KV_HEADS, head_size=SIZE)
    return PagedCache(shape, num_blocks=num_blocks, block_tokens=BLOCK, dtype=torch.float32, device=torch.device("cpu"))


def _row(lens: list[tuple[int, int]], cache: PagedCache, seed: int = 0) -> PackedRow:
    """A row of (context, new) sequences over shuffled blocks."""
    free = list(range(cache.num_blocks))
    random.Random(seed).shuffle(free)
    starts = [0]
    for _, new in lens:
        starts.append(starts[-1] + new)
    return PackedRow(
        ids_T=torch.zeros(starts[-1], dtype=torch.int64),
        positions_T=torch.cat([torch.arange(context, context + new) for context, new in lens]),
        starts=tuple(starts),
        cache=cache,
        block_tables=tuple(tuple(free.pop() for _ in range(-(-(c + n) // BLOCK))) for c, n in lens),
        context_lens=tuple(context for context, _ in lens),
    )


def _reference_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """What `varlen_attn` documents: sequences by offsets, masks aligned at the last token, windows inclusive."""
    left, right = window_size
    parts = []
    for i in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[i] : cu_seq_q[i + 1]].transpose(0, 1)
        k = key[cu_seq_k[i] : cu_seq_k[i + 1]].transpose(0, 1)
        v = value[cu_seq_k[i] : cu_seq_k[i + 1]].transpose(0, 1)
        assert q.shape[1] <= max_q
        assert k.shape[1] <= max_k
        distance = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1] - torch.arange(k.shape[1])[None]
        seen = (distance <= left) | torch.tensor(left < 0)
        seen &= (distance >= -right) | torch.tensor(right < 0)
        out = F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


class _Layer(torch.nn.Module):
    layer_idx = 0
    num_key_value_groups = HEADS // KV_HEADS

    def __init__(self, *, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal


def _qkv(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return (
        torch.randn(1, HEADS, num_tokens, SIZE),
        torch.randn(1, KV_HEADS, num_tokens, SIZE),
        torch.randn(1, KV_HEADS, num_tokens, SIZE),
    )


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_cached_rows_of_all_shapes_agree_with_the_kernel_of_the_gpu(window: int | None) -> None:
    """Decodes, fresh prefills and chunks with context in one row; what lies in the cache is random."""
    lens = [(5, 1), (0, 7), (9, 4), (0, 1), (30, 1), (31, 1), (2, 1)]
    cache = _cache(40)
    row = _row(lens, cache)
    cache.blocks.normal_()
    q, k, v = _qkv(row.starts[-1])
    plan = AttentionPlan(row)
    found, _ = packed_attention(_Layer(is_causal=True), q, k, v, None, packed_plan=plan, sliding_window=window)
    expected = attend_varlen(
        plan, 0, q[0], k[0], v[0], scale=SIZE**-0.5, causal=True, window=window, kernel=_reference_kernel
    )
    assert found.shape == (1, row.starts[-1], HEADS, SIZE)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_rows_without_cache_agree_with_the_kernel_of_the_gpu(window: int | None, causal: bool) -> None:
    row = pack([[1] * n for n in (3, 1, 12, 7)], device=torch.device("cpu"))
    q, k, v = _qkv(row.starts[-1])
    plan = AttentionPlan(row)
    found, _ = packed_attention(_Layer(is_causal=causal), q, k, v, None, packed_plan=plan, sliding_window=window)
    expected = attend_varlen(
        plan, 0, q[0], k[0], v[0], scale=SIZE**-0.5, causal=causal, window=window, kernel=_reference_kernel
    )
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


def test_a_long_sequence_does_not_pad_short_ones() -> None:
    """Gathered blocks stay within twice what the sequences hold, however unlike they are."""
    lens = [(400, 1), (3, 1), (3, 1), (7, 1), (90, 1), (120, 1), (5, 1)]
    plan = AttentionPlan(_row(lens, _cache(200)))
    gathered = sum(len(group.blocks) for group in plan.decodes)
    held = sum(context // BLOCK + 1 for context, _ in lens)
    assert gathered < 2 * held
    assert sum(group.num_sequences for group in plan.decodes) == len(lens)


def test_blocks_are_cleared_when_their_first_token_is_written_and_not_before() -> None:
    cache = _cache(8)
    cache.blocks.fill_(7.0)
    row = _row([(4, 2), (2, 1)], cache)  # opens the second block of one; goes on in the only block of the other
    AttentionPlan(row)
    cleared = {block for block in range(8) if not cache.blocks[:, :, :, block].any()}
    assert cleared == {row.block_tables[0][1]}


def test_transformers_builds_no_mask_for_packed_attention() -> None:
    assert PACKED not in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"packed_plan": None}, "does not hand the packed plan"),
        ({"attention_mask": torch.ones(1)}, "an attention mask of its own"),
        ({"s_aux": torch.ones(1)}, "needs s_aux"),
        ({"query": torch.ones(1, HEADS, 3, SIZE)}, "reshapes the packed row"),
        ({"dropout": 0.1}, "reshapes the packed row or drops"),
    ],
)
def test_what_packed_rows_do_not_offer_is_an_error(changes: dict[str, Any], words: str) -> None:
    row = pack([[1, 2], [3, 4]], device=torch.device("cpu"))
    q, k, v = _qkv(4)
    arguments: dict[str, Any] = {
        "module": _Layer(is_causal=True),
        "query": q,
        "key": k,
        "value": v,
        "attention_mask": None,
        "packed_plan": AttentionPlan(row),
    }
    with pytest.raises(PackedAttentionError, match=words):
        packed_attention(**(arguments | changes))
