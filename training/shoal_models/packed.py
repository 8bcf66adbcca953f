"""The packed row: all tokens of one step side by side, and the paged cache that decoders keep between steps.

S sequences, T packed tokens, L layers, N blocks, P tokens of a block, H key/value heads, D head size.

Knows nothing of requests or of how a step was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class PagedCache:
    """Keys and values of all layers in blocks; who owns which block is the caller's affair.

    One tensor for each layer, (N, P, 2, H, D): the keys and values of a token lie side by side, so that gathering a
    sequence is one `index_select` of long rows.
    """

    __slots__ = ("block_tokens", "layers", "num_blocks")

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_tokens: int,
        num_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        shape = (num_blocks, block_tokens, 2, num_heads, head_size)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    @property
    def num_bytes(self) -> int:
        """Memory of all layers."""
        return sum(layer.numel() * layer.element_size() for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """What one forward works on. Tensors lie on the model's device."""

    ids_T: Tensor  # int64
    positions_T: Tensor  # int64, position inside its sequence, context included, from 0
    starts: tuple[int, ...]  # S+1 offsets into T, from 0 to T
    type_ids_T: Tensor | None = None  # int64; encoders trained on pairs; None: all zero
    cache: PagedCache | None = None  # decoders
    block_tables: tuple[tuple[int, ...], ...] = ()  # per sequence, the blocks covering context and new tokens, in order
    context_lens: tuple[int, ...] = ()  # tokens of each sequence that are in the cache already

    @property
    def num_sequences(self) -> int:
        """Sequences in the row."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """New tokens of each sequence."""
        return tuple(end - start for start, end in zip(self.starts, self.starts[1:], strict=False))


def pack(sequences: list[list[int]], *, device: torch.device, second_starts: list[int] | None = None) -> PackedRow:
    """Whole sequences, without cache, as one row.

    `second_starts` holds for each sequence the index of the first token of its second text, or -1.
    """
    starts = [0]
    for sequence in sequences:
        starts.append(starts[-1] + len(sequence))
    ids_T = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
    positions_T = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    type_ids_T = None
    if second_starts is not None and max(second_starts) >= 0:
        type_ids_T = torch.zeros_like(ids_T)
        for start, end, second in zip(starts, starts[1:], second_starts, strict=False):
            if second >= 0:
                type_ids_T[start + second : end] = 1
        type_ids_T = type_ids_T.to(device)
    return PackedRow(
        ids_T=ids_T.to(device), positions_T=positions_T.to(device), starts=tuple(starts), type_ids_T=type_ids_T
    )
