"""Reads a version's weights in small pieces, so that a thread that paces itself can rest between any two.

Fresh memory is costly where a hypervisor hands it out: up to 10 s a GB were measured, so nothing is copied twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

_PIECE = 2**20  # weights that are copied or rounded at once


def read_weights(folder: Path, *, share: bool = False) -> dict[str, Tensor]:
    """All tensors of the safetensors files in `folder`, by name; numbers become float32, in memory of their own.

    With `share` those that are float32 already stay in the file's pages, which all processes that map it hold once
    (written to, a page becomes the writer's own). The files must then never be changed in place: a process that reads
    beyond the new end of one is killed.

    Raises:
        OSError, SafetensorError: a file cannot be read.
    """
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt", device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                mapped = opened.get_tensor(name)
                dtype = torch.float32 if mapped.is_floating_point() else mapped.dtype
                weights[name] = mapped if share and mapped.dtype == dtype else _copy(mapped, dtype)
    return weights


def rounded(weight: Tensor, through: torch.dtype, dtype: torch.dtype) -> Tensor:
    """`weight` rounded to `through`, as `dtype`; in place where it has that dtype already."""
    if through == weight.dtype == dtype:
        return weight
    if not weight.is_contiguous():
        return weight.to(through).to(dtype)
    result = weight if weight.dtype == dtype else torch.empty_like(weight, dtype=dtype)
    for target, source in zip(_pieces(result), _pieces(weight), strict=True):
        target.copy_(source.to(through))
    return result


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=dtype)
    for target, source in zip(_pieces(copy), _pieces(tensor), strict=True):
        target.copy_(source)
    return copy


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    yield from torch.split(tensor.view(-1), _PIECE)
