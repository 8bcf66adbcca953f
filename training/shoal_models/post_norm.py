"""A lean layer for encoders that normalise after each half, as BERT does: few calls, each with its neighbours fused in.

T packed tokens, E hidden size, H heads, D head size.

Takes the place of transformers' own layers of BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT, ALBERT and their kin once
their weights are loaded; embeddings, poolers and heads stay transformers' own. The probe compares it with the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal_models.attention import attend_fused
from shoal_models.first_tokens import FirstTokenLayer
from shoal_models.layer_parts import LayerParts, parts_of
from shoal_models.linears import ACTIVATIONS, FusedLinear
from shoal_models.plan import AttentionPlan


class PostNormLayer(nn.Module):
    """Attention and feed-forward of one layer over a packed row."""

    def __init__(self, parts: LayerParts) -> None:
        super().__init__()
        three = (parts.query, parts.key, parts.value)
        self.qkv = FusedLinear(torch.cat([one.weight for one in three]), torch.cat([one.bias for one in three]))
        self.output = FusedLinear(parts.output.weight, parts.output.bias)
        self.attention_norm = parts.attention_norm
        self.up = FusedLinear(parts.up.weight, parts.up.bias, ACTIVATIONS[parts.activation])
        self.down = FusedLinear(parts.down.weight, parts.down.bias)
        self.norm = parts.norm
        self.num_heads = parts.num_heads

    def forward(self, hidden_1TE: Tensor, *_: Any, packed_plan: AttentionPlan, **__: Any) -> Tensor:
        """One layer; what transformers hands over beside the plan (masks, caches) is empty for packed rows."""
        hidden_TE = hidden_1TE[0]
        mixed_TE = attend_fused(packed_plan, self.qkv(hidden_TE), self.num_heads)
        hidden_TE = self.attention_norm(self.output(mixed_TE, hidden_TE))
        outputs_TE: Tensor = self.norm(self.down(self.up(hidden_TE), hidden_TE))
        return outputs_TE[None]


def lean_layer_weights(model: nn.Module) -> int:
    """Weights of the largest lean layer that `model` runs; 0 when it runs none."""
    layers = (module for module in model.modules() if isinstance(module, PostNormLayer))
    return max((sum(weight.numel() for weight in layer.state_dict().values()) for layer in layers), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a layer of transformers stands in its model."""

    owner: nn.Module
    name: str
    layer: Any


class LeanLayers:
    """The layers of a model that lean ones can stand for, and which of both it runs."""

    def __init__(self, model: Any) -> None:
        """Changes nothing yet."""
        self._places = [
            _Place(owner=owner, name=name, layer=layer)
            for owner in model.modules()
            for name, layer in owner.named_children()
            if (parts := parts_of(layer)) is not None and parts.activation in ACTIVATIONS
        ]
        self._are_lean = self._ends_early = False
        # A layer that runs several times (ALBERT's) is never the last alone.
        self._can_end_early = len(self._places) == getattr(model.config, "num_hidden_layers", 0)

    @property
    def num_layers(self) -> int:
        """How many layers can be replaced."""
        return len(self._places)

    @property
    def ends_early(self) -> bool:
        """Whether the last layer computes first tokens only."""
        return self._ends_early

    def use(self, lean: bool, *, first_only: bool) -> None:
        """Put lean layers in the places of transformers' own, or those back. They share weights but for one copy.

        With `first_only` the last layer computes first tokens only, where that is faster.
        """
        ends_early = lean and first_only and self._can_end_early
        if (lean, ends_early) == (self._are_lean, self._ends_early):
            return
        for place in self._places:
            parts = parts_of(place.layer)
            assert parts is not None, "it had parts when it was found"
            kind = FirstTokenLayer if ends_early and place is self._places[-1] else PostNormLayer
            setattr(place.owner, place.name, kind(parts) if lean else place.layer)
        self._are_lean, self._ends_early = lean, ends_early

    def settle(self) -> None:
        """Stay as it is from now on, and free what is not used."""
        self._places = []
