"""Linear layers that stay what they are, because others than themselves read their weights.

T5 looks at the dtype of a layer's weight, DeBERTa cuts one in pieces, Jamba hands some to a kernel: a layer whose
weight lies in a layout of our own would break them. Which ones do is seen in a forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class KeptLinear(nn.Linear):
    """A linear layer that `prepack_linears`, which replaces nothing but plain ones, leaves alone."""


class _Watched(nn.Linear):
    """A linear layer that notes when someone else reads its weight."""

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self._parameters["weight"]
        assert weight is not None, "a linear layer has a weight"
        return F.linear(inputs, weight, self._parameters["bias"])

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            self.__dict__["is_read"] = True
        return super().__getattr__(name)


def keep_linears_read_by_others(model: nn.Module, forward: Callable[[], object]) -> int:
    """Make `KeptLinear` of the linear layers of `model` whose weights `forward` reads; returns how many."""
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.__class__ = _Watched
    num_kept = 0
    try:
        forward()
    finally:
        for layer in layers:
            is_read = layer.__dict__.pop("is_read", False)
            layer.__class__ = KeptLinear if is_read else nn.Linear
            num_kept += is_read
    return num_kept
