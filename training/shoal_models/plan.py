"""What attention needs to know of a packed row, worked out once for a row and used by every layer.

S sequences, T packed tokens, B sequences of a decode group, N blocks, P tokens of a block, M blocks of the longest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal_models.chunk_attention import Chunks
from shoal_models.chunks import Chunking, cut_into_chunks
from shoal_models.packed import PackedRow, PagedCache

Kernel = Callable[..., Any]
"""Variable-length attention, called as `torch.nn.attention.varlen.varlen_attn` is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A sequence with its new tokens at [start, end) of the row, attending to `context` cached tokens before them."""

    start: int
    end: int
    context: int
    slots: Tensor | None  # int64, (context + new): its places in the cache; None: nothing is cached before it


class DecodeGroup:
    """Sequences of one new token each and of like length, gathered together."""

    __slots__ = ("_lens_B", "_masks", "blocks", "max_tokens", "num_sequences", "rows_B")

    def __init__(self, row: PackedRow, members: list[int], block_tokens: int) -> None:
        device = row.ids_T.device
        tables = [row.block_tables[i][: row.context_lens[i] // block_tokens + 1] for i in members]
        widest = max(len(table) for table in tables)
        padded = [(*table, *itertools.repeat(table[0], widest - len(table))) for table in tables]
        self.num_sequences = len(members)
        self.max_tokens = widest * block_tokens
        self.blocks = torch.tensor(padded, dtype=torch.int64, device=device).view(-1)  # (B*M)
        self._lens_B = torch.tensor([row.context_lens[i] + 1 for i in members], device=device)
        starts = [row.starts[i] for i in members]
        in_order = starts == list(range(len(row.ids_T)))
        self.rows_B = None if in_order else torch.tensor(starts, dtype=torch.int64, device=device)
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def mask(self, window: int | None, num_heads: int, dtype: torch.dtype) -> Tensor:
        """What to add to the scores: (num_heads * B, 1, max_tokens), 0 or -inf."""
        key = (window, dtype)
        if key not in self._masks:
            places = torch.arange(self.max_tokens, device=self._lens_B.device)[None]
            seen = places < self._lens_B[:, None]
            if window is not None:
                seen &= places > self._lens_B[:, None] - 1 - window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[key] = mask[:, None].repeat(num_heads, 1, 1)
        return self._masks[key]


class AttentionPlan:
    """Index tensors for one forward over `row`; counts the attention calls that used it."""

    __slots__ = (
        "_chunking",
        "_chunks",
        "_is_cut",
        "_is_whole_on_cpu",
        "_masks",
        "cache",
        "decodes",
        "kernel",
        "num_calls",
        "num_tokens",
        "row",
        "slots_T",
        "spans",
        "varlen",
    )

    def __init__(self, row: PackedRow, kernel: Kernel | None = None) -> None:
        """`kernel` is the one to attend with; None: whichever is the fastest for the tensors."""
        self.row = row
        self.kernel = kernel
        self.cache: PagedCache | None = row.cache
        self.num_calls = 0
        self.num_tokens = row.starts[-1]
        self.slots_T: Tensor | None = None
        self.decodes: tuple[DecodeGroup, ...] = ()
        self.varlen: object | None = None  # index tensors of the CUDA kernel, see attention_cuda.py
        self._masks: dict[tuple[int, int, bool, int | None], Tensor | None] = {}
        self._is_whole_on_cpu = kernel is None and row.cache is None and row.ids_T.device.type == "cpu"
        self._is_cut = False
        self._chunking: Chunking | None = None  # once it is cut
        self._chunks: dict[tuple[int, torch.dtype], Chunks] = {}
        if row.cache is None:
            self.spans = tuple(_plain_spans(row))
        else:
            self._plan_cached(row, row.cache)

    def mask(self, span: Span, *, causal: bool, window: int | None) -> Tensor | None:
        """What new tokens of `span` see: bool (new, context + new); None where plain causal or full will do."""
        new, total = span.end - span.start, span.end - span.start + span.context
        if window is not None and window >= total:
            window = None
        if window is None and (not causal or span.context == 0 or new == 1):
            return None
        key = (span.context, new, causal, window)
        if key not in self._masks:
            self._masks[key] = _mask(span.context, new, causal=causal, window=window, device=self.row.ids_T.device)
        return self._masks[key]

    @property
    def lone_tokens(self) -> int:
        """Tokens of the one sequence that is read, on a CPU and without a cache; 0 where there are more."""
        return self.row.starts[1] if self._is_whole_on_cpu and self._num_read == 1 else 0

    def chunking(self) -> Chunking | None:
        """The row in chunks; None where they are not the fast way: on a GPU, over a cache, too long, one sequence."""
        if not self._is_cut:
            self._is_cut = True
            if self._is_whole_on_cpu and self._num_read > 1:
                self._chunking = cut_into_chunks(self.row.starts)
        return self._chunking

    def chunks(self, num_heads: int, dtype: torch.dtype) -> Chunks | None:
        """What layers of so many heads share to attend in chunks; None where there is no `chunking`."""
        chunking, key = self.chunking(), (num_heads, dtype)
        if chunking is not None and key not in self._chunks:
            self._chunks[key] = Chunks(chunking, num_heads=num_heads, dtype=dtype)
        return self._chunks.get(key)

    @property
    def _num_read(self) -> int:
        return self.row.num_sequences - self.row.has_filler

    def _plan_cached(self, row: PackedRow, cache: PagedCache) -> None:
        size, device = cache.block_tokens, row.ids_T.device
        slots: list[list[int]] = []
        opened: list[int] = []
        for table, context, new in zip(row.block_tables, row.context_lens, row.lengths, strict=True):
            slots.append([table[at // size] * size + at % size for at in range(context, context + new)])
            opened.extend(table[-(-context // size) : (context + new - 1) // size + 1])
        self.slots_T = torch.tensor(list(itertools.chain.from_iterable(slots)), dtype=torch.int64, device=device)
        if opened:
            cache.clear(torch.tensor(opened, dtype=torch.int64, device=device))
        self.decodes = tuple(_decode_groups(row, size))
        self.spans = tuple(_cached_span(row, i, size) for i, new in enumerate(row.lengths) if new > 1)


def _plain_spans(row: PackedRow) -> list[Span]:
    return [Span(start=start, end=end, context=0, slots=None) for start, end in itertools.pairwise(row.starts)]


def _cached_span(row: PackedRow, index: int, block_tokens: int) -> Span:
    context, start, end = row.context_lens[index], row.starts[index], row.starts[index + 1]
    slots = None
    if context > 0:
        blocks = torch.tensor(row.block_tables[index], dtype=torch.int64, device=row.ids_T.device)
        within = torch.arange(block_tokens, device=blocks.device)
        slots = (blocks[:, None] * block_tokens + within).view(-1)[: context + end - start]
    return Span(start=start, end=end, context=context, slots=slots)


def _decode_groups(row: PackedRow, block_tokens: int) -> list[DecodeGroup]:
    """Sequences of one new token, by length: a group's shortest has over half the blocks of its longest."""
    singles = [i for i, new in enumerate(row.lengths) if new == 1]
    num_blocks = {i: row.context_lens[i] // block_tokens + 1 for i in singles}
    longest = max(num_blocks.values(), default=0)
    groups: dict[int, list[int]] = {}
    for i in singles:
        groups.setdefault((longest // num_blocks[i]).bit_length(), []).append(i)
    return [DecodeGroup(row, members, block_tokens) for members in groups.values()]


def _mask(context: int, new: int, *, causal: bool, window: int | None, device: torch.device) -> Tensor:
    queries = torch.arange(context, context + new, device=device)[:, None]
    keys = torch.arange(context + new, device=device)[None]
    distance = queries - keys
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        seen &= distance.abs() < window
    return seen
