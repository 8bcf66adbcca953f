"""A loaded generator: packed rows over a paged cache.

T packed tokens, W wanted rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoal_models.attention import PACKED, PackedAttentionError
from shoal_models.compute import Compute, convert
from shoal_models.linears import prepack_linears
from shoal_models.manifest import Manifest
from shoal_models.packed import CacheShape, PackedRow, PagedCache
from shoal_models.plan import AttentionPlan


class LoadedGenerator:
    """Weights and forward of one version; called by one thread at a time."""

    def __init__(self, model: Any, manifest: Manifest, shape: CacheShape) -> None:
        """Takes over `model`, in float32 and in eval mode."""
        self.manifest = manifest
        self.execution = "packed"
        self.compute_dtype = "float32"
        self.device: torch.device = next(model.parameters()).device
        self._dtype = torch.float32
        self._shape = shape
        self._model: Any = model
        self._model.set_attn_implementation(PACKED)

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        return self._shape.bytes_per_token(self._dtype)

    def new_cache(self, num_blocks: int, block_tokens: int) -> PagedCache:
        """An empty cache for this model, on its device."""
        return PagedCache(
            self._shape, num_blocks=num_blocks, block_tokens=block_tokens, dtype=self._dtype, device=self.device
        )

    def logits(self, row: PackedRow, wanted_W: Tensor) -> Tensor:
        """Logits (W, V), float32, after the packed tokens whose indices into T are `wanted_W`.

        Writes the keys and values of all tokens of the row to its cache.
        """
        assert row.cache is not None, "a generator's row has a cache"
        with torch.inference_mode():
            plan = AttentionPlan(row)
            output = self._model(
                input_ids=row.ids_T[None],
                position_ids=row.positions_T[None],
                use_cache=False,
                logits_to_keep=wanted_W,
                packed_plan=plan,
            )
            if plan.num_calls != self._shape.num_layers:
                raise PackedAttentionError(
                    f"{plan.num_calls} calls of packed attention; {self._shape.num_layers} expected"
                )
            logits_WV: Tensor = output.logits[0].float()
            return logits_WV

    def cast(self, compute: Compute) -> None:
        """Bring the weights, still as they were loaded, into the form they are served in; linear layers stay floats."""
        assert not compute.int8, "8-bit integers are for classifiers"
        convert(self._model, compute)
        if self.device.type == "cpu":
            prepack_linears(self._model)
        self._dtype = compute.computed
        self.compute_dtype = compute.name
