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
from shoal_models.linears import ACTIVATIONS, FusedLinear
from shoal_models.plan import AttentionPlan

_BERT_LIKE = frozenset({"BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer", "ErnieLayer"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a layer of transformers is made of, whatever it calls it."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: str
    down: nn.Linear
    norm: nn.LayerNorm
    num_heads: int


class PostNormLayer(nn.Module):
    """Attention and feed-forward of one layer over a packed row."""

    def __init__(self, parts: _Parts) -> None:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a layer of transformers stands in its model."""

    owner: nn.Module
    name: str
    layer: Any


class LeanLayers:
    """The layers of a model that lean ones can stand for, and which of both it runs."""

    def __init__(self, model: nn.Module) -> None:
        """Changes nothing yet."""
        self._places = [
            _Place(owner=owner, name=name, layer=layer)
            for owner in model.modules()
            for name, layer in owner.named_children()
            if (parts := _parts(layer)) is not None and parts.activation in ACTIVATIONS
        ]
        self._are_lean = False

    @property
    def num_layers(self) -> int:
        """How many layers can be replaced."""
        return len(self._places)

    def use(self, lean: bool) -> None:
        """Put lean layers in the places of transformers' own, or those back. They share weights but for one copy."""
        if lean != self._are_lean:
            for place in self._places:
                parts = _parts(place.layer)
                assert parts is not None, "it had parts when it was found"
                setattr(place.owner, place.name, PostNormLayer(parts) if lean else place.layer)
            self._are_lean = lean

    def settle(self) -> None:
        """Stay as it is from now on, and free what is not used."""
        self._places = []


def _parts(layer: Any) -> _Parts | None:
    """The parts of a layer that a lean one can stand for; None for all others, such as one that was changed."""
    name = type(layer).__name__
    try:
        if name in _BERT_LIKE and not layer.is_decoder:
            return _bert_parts(layer)
        if name == "TransformerBlock":
            return _distilbert_parts(layer)
        return _albert_parts(layer) if name == "AlbertLayer" else None
    except AttributeError:
        return None


def _bert_parts(layer: Any) -> _Parts:
    attention = layer.attention
    return _Parts(
        query=attention.self.query,
        key=attention.self.key,
        value=attention.self.value,
        output=attention.output.dense,
        attention_norm=attention.output.LayerNorm,
        up=layer.intermediate.dense,
        activation=str(attention.self.config.hidden_act),
        down=layer.output.dense,
        norm=layer.output.LayerNorm,
        num_heads=attention.self.num_attention_heads,
    )


def _distilbert_parts(layer: Any) -> _Parts:
    attention = layer.attention
    return _Parts(
        query=attention.q_lin,
        key=attention.k_lin,
        value=attention.v_lin,
        output=attention.out_lin,
        attention_norm=layer.sa_layer_norm,
        up=layer.ffn.lin1,
        activation=str(attention.config.activation),
        down=layer.ffn.lin2,
        norm=layer.output_layer_norm,
        num_heads=attention.n_heads,
    )


def _albert_parts(layer: Any) -> _Parts:
    attention = layer.attention
    return _Parts(
        query=attention.query,
        key=attention.key,
        value=attention.value,
        output=attention.dense,
        attention_norm=attention.LayerNorm,
        up=layer.ffn,
        activation=str(attention.config.hidden_act),
        down=layer.ffn_output,
        norm=layer.full_layer_layer_norm,
        num_heads=attention.num_attention_heads,
    )
