"""Loads a published version so that it runs packed rows, or refuses it with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from shoal_models.manifest import Manifest
from shoal_models.packed import PackedRow, PagedCache


class LoadError(Exception):
    """A version cannot be run; the message says why."""


class LoadedClassifier(Protocol):
    """S sequences, L labels."""

    manifest: Manifest
    execution: str  # "packed", or "one by one: <why>"
    compute_dtype: str  # "float32", "bfloat16" or "float32 (bfloat16 weights)"

    def logits(self, row: PackedRow) -> Tensor:
        """Logits (S, L), float32, on the model's device."""


class LoadedGenerator(Protocol):
    """W wanted rows, V vocabulary."""

    manifest: Manifest
    execution: str
    compute_dtype: str
    cache_bytes_per_token: int  # of all layers, keys and values

    def new_cache(self, num_blocks: int, block_tokens: int) -> PagedCache:
        """An empty cache for this model, on its device."""

    def logits(self, row: PackedRow, wanted_W: Tensor) -> Tensor:
        """Logits (W, V), float32, after the packed tokens whose indices into T are `wanted_W`; fills the cache."""


def load_version(
    path: Path, manifest: Manifest, *, dtype: torch.dtype, device: torch.device
) -> LoadedClassifier | LoadedGenerator:
    """Load the version folder `path`, whose files have been verified.

    Raises:
        LoadError: the architecture or head is not one that can be served.
    """
    raise LoadError(f"{manifest.architecture} of kind {manifest.kind} cannot be served")
