"""The packed row: all tokens of one step side by side, and the paged cache that decoders keep between steps.

S sequences, T packed tokens, L layers, N blocks, P tokens of a block, H key/value heads, D head size.

Knows nothing of requests or of how a step was chosen.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """What one token takes of a decoder's cache; every layer is alike."""

    num_layers: int
    num_heads: int  # key/value heads
    head_size: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Keys and values of all layers."""
        return 2 * self.num_layers * self.num_heads * self.head_size * dtype.itemsize


class PagedCache:
    """Keys and values of all layers in blocks; who owns which block is the caller's affair.

    `blocks` is (L, 2, H, N, P, D). Heads lie outside blocks, so that the gathered blocks of a batch are one contiguous
    (H, sequences, tokens, D) that a batched matrix product reads without a copy.
    """

    __slots__ = ("_scratch", "block_rows", "block_tokens", "blocks", "keys", "num_blocks", "values")

    def __init__(
        self, shape: CacheShape, *, num_blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        heads, size = shape.num_heads, shape.head_size
        self.blocks = _zeros((shape.num_layers, 2, heads, num_blocks, block_tokens, size), dtype, device)
        slots = self.blocks.view(shape.num_layers, 2, heads, num_blocks * block_tokens, size)
        self.keys = [layer[0] for layer in slots.unbind(0)]  # per layer, (H, N*P, D)
        self.values = [layer[1] for layer in slots.unbind(0)]
        rows = self.blocks.view(shape.num_layers, 2 * heads, num_blocks, block_tokens * size)
        self.block_rows = list(rows.unbind(0))  # per layer, (2H, N, P*D)
        self._scratch = self.blocks.new_empty(0)

    @property
    def num_bytes(self) -> int:
        """Memory of all layers."""
        return self.blocks.numel() * self.blocks.element_size()

    def gather(self, layer: int, blocks: Tensor) -> Tensor:
        """Copies of some blocks (int64), (2H, blocks, P*D), in memory that the next call takes over.

        Fresh memory for every layer would cost as much as the copy.
        """
        rows = self.block_rows[layer]
        heads, _, width = rows.shape
        needed = heads * len(blocks) * width
        if self._scratch.numel() < needed:
            self._scratch = self.blocks.new_empty(needed)
        gathered = self._scratch[:needed].view(heads, len(blocks), width)
        return torch.index_select(rows, 1, blocks, out=gathered)

    def clear(self, blocks: Tensor) -> None:
        """Zero some blocks (int64), so that nothing of their last owner, not even a NaN, reaches the next."""
        self.blocks.index_fill_(3, blocks, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """What one forward works on. Tensors lie on the model's device, or on the host until `to` takes them there."""

    ids_T: Tensor  # int64
    positions_T: Tensor  # int64, position inside its sequence, context included, from 0
    starts: tuple[int, ...]  # S+1 offsets into T, from 0 to T
    type_ids_T: Tensor | None = None  # int64; encoders trained on pairs; None: all zero
    starts_S1: Tensor | None = None  # int64, `starts` beside the other tensors; None: they are made of `starts`
    cache: PagedCache | None = None  # decoders
    block_tables: tuple[tuple[int, ...], ...] = ()  # per sequence, the blocks covering context and new tokens, in order
    context_lens: tuple[int, ...] = ()  # tokens of each sequence that are in the cache already
    has_filler: bool = False  # nobody reads the last sequence, see `fill_up`
    is_captured: bool = False  # later rows are written over the tensors, see graphs.py

    @property
    def num_sequences(self) -> int:
        """Sequences in the row."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """New tokens of each sequence."""
        return tuple(end - start for start, end in zip(self.starts, self.starts[1:], strict=False))

    @property
    def is_readable(self) -> bool:
        """Whether the host may look at values: they are there without waiting and what is found holds."""
        return self.ids_T.device.type == "cpu" and not self.is_captured

    def starts_on_device(self) -> Tensor:
        """`starts` (S+1), int64. A GPU must not make them itself: it would wait for all that it has been given."""
        return torch.tensor(self.starts, device=self.ids_T.device) if self.starts_S1 is None else self.starts_S1

    def first_places(self) -> Tensor:
        """Where in the row the sequence of each token begins; (T), int64."""
        return torch.arange(len(self.ids_T), device=self.ids_T.device) - self.positions_T

    def to(self, device: torch.device) -> PackedRow:
        """The row, without a cache, on a device; nobody waits for the transfer to a GPU."""
        if self.ids_T.device == device:
            return self
        if device.type != "cuda":
            return self._changed(lambda tensor: tensor.to(device))
        return self._changed(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> PackedRow:
        return replace(
            self,
            ids_T=change(self.ids_T),
            positions_T=change(self.positions_T),
            type_ids_T=None if self.type_ids_T is None else change(self.type_ids_T),
            starts_S1=change(self.starts_on_device()),
        )


def pack(
    sequences: Sequence[Sequence[int]], *, device: torch.device, second_starts: Sequence[int] | None = None
) -> PackedRow:
    """Whole sequences, without a cache, as one row.

    `second_starts` holds for each sequence the index of the first token of its second text, or -1.
    """
    starts = [0]
    for sequence in sequences:
        starts.append(starts[-1] + len(sequence))
    ids_T = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
    positions_T = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    return PackedRow(
        ids_T=ids_T.to(device),
        positions_T=positions_T.to(device),
        starts=tuple(starts),
        type_ids_T=_type_ids(starts, second_starts, device) if second_starts is not None else None,
    )


def fill_up(row: PackedRow, num_tokens: int) -> PackedRow:
    """The row, without a cache, made `num_tokens` long by one more sequence that nobody reads."""
    missing = num_tokens - row.starts[-1]
    if missing == 0:
        return row
    assert row.cache is None, "a sequence of nobody has no place in a cache"
    ids_T = torch.nn.functional.pad(row.ids_T, (0, missing), value=int(row.ids_T[-1]))
    return PackedRow(
        ids_T=ids_T,
        positions_T=torch.cat([row.positions_T, torch.arange(missing, device=ids_T.device)]),
        starts=(*row.starts, num_tokens),
        type_ids_T=None if row.type_ids_T is None else torch.nn.functional.pad(row.type_ids_T, (0, missing)),
        has_filler=True,
    )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that on a CPU take memory only page by page as they are written to; torch's own are written at once.

    Without huge pages, of which a first block would take one for every layer and head.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not num_bytes:
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_bytes)  # the tensor keeps it
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages knows no such advice
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _type_ids(starts: Sequence[int], second_starts: Sequence[int], device: torch.device) -> Tensor | None:
    if max(second_starts) < 0:
        return None
    type_ids_T = torch.zeros(starts[-1], dtype=torch.int64)
    for start, end, second in zip(starts, starts[1:], second_starts, strict=False):
        if second >= 0:
            type_ids_T[start + second : end] = 1
    return type_ids_T.to(device)
