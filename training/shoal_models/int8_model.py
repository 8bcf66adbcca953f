"""Which layers of a classifier multiply 8-bit integers, and which of them do so in fixed steps.

T rows, I inputs and O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shoal_models.first_tokens import FirstTokenLayer
from shoal_models.int8_activated import ActivatedInt8Linear
from shoal_models.int8_fixed import FixedInt8Linear, Float32Norm
from shoal_models.int8_linear import Int8Linear
from shoal_models.linears import NO_ACTIVATION, Activation, FusedLinear
from shoal_models.post_norm import PostNormLayer

_BEHIND_ACTIVATION = "down"  # of a lean layer; what comes there has no largest value that could be told before


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearPlace:
    """Where a linear layer stands in its model."""

    owner: nn.Module
    name: str
    layer: Any


def linears_in_layers(model: Any) -> Iterator[LinearPlace]:
    """Linear layers in the repeated layers of a classifier's body: neither embeddings nor pooler nor head."""
    seen: set[int] = set()
    stacks = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    for owner in (module for stack in stacks for module in stack.modules()):
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for name, layer in list(owner.named_children()):
            if type(layer) in {nn.Linear, FusedLinear, Conv1D}:
                yield LinearPlace(owner=owner, name=name, layer=layer)


def largest_inputs(model: nn.Module, forward: Callable[[], object]) -> dict[nn.Module, Tensor]:
    """The largest absolute inputs (I) that `forward` brings those layers that can have fixed steps."""
    found: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest_I = inputs[0].abs().amax(0).float()
        found[layer] = torch.maximum(found[layer], largest_I) if layer in found else largest_I

    hooks = [
        linear.register_forward_pre_hook(note)
        for layer in _lean_layers(model)
        for name, linear in layer.named_children()
        if type(linear) is FusedLinear and name != _BEHIND_ACTIVATION
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def quantise_lean_layers(model: nn.Module, largest: Mapping[nn.Module, Tensor], dtype: torch.dtype) -> int:
    """Bring lean layers into 8-bit integers with fixed steps where `largest` tells them; returns how many layers.

    Between their parts everything is float32 but queries, keys and values, which have `dtype`.
    """
    layers = _lean_layers(model)
    with torch.inference_mode():
        for layer in layers:
            behind = layer.up.activation
            for name, part in list(layer.named_children()):
                if type(part) is nn.LayerNorm:
                    setattr(layer, name, Float32Norm(part))
                elif type(part) is FusedLinear:
                    setattr(layer, name, _fixed(part, largest.get(part), dtype, behind))
    return len(layers)


def quantise_linears(model: Any) -> int:
    """Replace the linear layers in a classifier's layers by ones in 8-bit integers; returns how many."""
    replaced: dict[int, Int8Linear] = {}
    with torch.inference_mode():
        for place in list(linears_in_layers(model)):
            layer = place.layer
            if id(layer) not in replaced:
                weight_OI = layer.weight.t() if type(layer) is Conv1D else layer.weight
                activation = layer.activation if type(layer) is FusedLinear else NO_ACTIVATION
                replaced[id(layer)] = Int8Linear(weight_OI, layer.bias, activation)
            setattr(place.owner, place.name, replaced[id(layer)])
    return len(replaced)


def _fixed(linear: FusedLinear, largest_I: Tensor | None, dtype: torch.dtype, behind: Activation) -> nn.Module:
    if largest_I is None:
        return ActivatedInt8Linear(linear.weight, linear.bias, behind)
    return FixedInt8Linear(linear.weight, linear.bias, largest_I, activation=linear.activation, dtype=dtype)


def _lean_layers(model: nn.Module) -> list[PostNormLayer | FirstTokenLayer]:
    return [module for module in model.modules() if isinstance(module, PostNormLayer | FirstTokenLayer)]
