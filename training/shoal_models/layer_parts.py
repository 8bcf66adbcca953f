"""What a post-norm layer of transformers is made of, whatever its class calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

_BERT_LIKE = frozenset({"BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer", "ErnieLayer"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
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


def parts_of(layer: Any) -> LayerParts | None:
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


def _bert_parts(layer: Any) -> LayerParts:
    attention = layer.attention
    return LayerParts(
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


def _distilbert_parts(layer: Any) -> LayerParts:
    attention = layer.attention
    return LayerParts(
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


def _albert_parts(layer: Any) -> LayerParts:
    attention = layer.attention
    return LayerParts(
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
