"""What a classifier computes after its body: from the hidden rows of a packed row to logits.

S sequences, T packed tokens, E hidden size, L labels.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from shoal_models.describe import has_token_head
from shoal_models.packed import PackedRow

Reads = Literal["tokens", "first", "mean", "last", "sequence"]
"""What of a sequence's hidden rows a head reads: each for itself, one, their mean, or in its own way all of them."""


def reads_of(model: Any) -> Reads:
    """What a model of this kind most likely reads; the probe finds out whether it is true."""
    if has_token_head(type(model).__name__):
        return "tokens"
    if isinstance(getattr(model, "score", None), nn.Module):
        return "last"
    return "mean" if getattr(model.config, "classifier_pooling", "") == "mean" else "first"


class Head:
    """The head of a classifier, which shares every weight with it. Made anew when the model's layers are replaced."""

    def __init__(self, model: Any, reads: Reads) -> None:
        self._model = model
        self._alone = _without_body(model)
        self._reads = reads
        self._padding_id = getattr(model.config.get_text_config(), "pad_token_id", None)

    def __call__(self, row: PackedRow, hidden_TE: Tensor) -> Tensor:
        """Logits: (T, L) of a token head, (S, L) of all others."""
        if self._reads == "tokens":
            logits: Tensor = self._alone(inputs_embeds=hidden_TE[None]).logits[0]
        elif self._reads == "last":
            logits = self._model.score(hidden_TE[_last_tokens(row, self._padding_id)])
        elif self._reads == "sequence":
            logits = self._of_each_sequence(row, hidden_TE)
        else:
            pooled_SE = _means(row, hidden_TE) if self._reads == "mean" else hidden_TE[_first_tokens(row)]
            logits = self._alone(inputs_embeds=pooled_SE[:, None]).logits
        return logits

    def _of_each_sequence(self, row: PackedRow, hidden_TE: Tensor) -> Tensor:
        ids = torch.split(row.ids_T, list(row.lengths))
        hidden = torch.split(hidden_TE, list(row.lengths))
        found = [self._alone(input_ids=i[None], inputs_embeds=h[None]).logits for i, h in zip(ids, hidden, strict=True)]
        return torch.cat(found)


class _HasRun(nn.Module):
    """Stands in the place of a model's body and hands on the hidden states that the body has made."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self._pooler: Any = getattr(body, "pooler", None)
        self._activation: Any = getattr(body, "pooler_activation", None)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """`inputs_embeds` are hidden states: (S, 1, E), one pooled row for each sequence, or (1, tokens, E)."""
        pooled = None
        if self._activation is not None:  # ALBERT, whose pooler is a mere linear layer
            pooled = self._activation(self._pooler(inputs_embeds[:, 0]))
        elif self._pooler is not None:
            pooled = self._pooler(inputs_embeds)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=inputs_embeds, pooler_output=pooled)


def _without_body(model: Any) -> Any:
    """`model` with its body replaced: its own forward then computes the head alone."""
    body = model.base_model
    head = copy.copy(model)
    head._modules = {name: _HasRun(body) if child is body else child for name, child in model._modules.items()}  # noqa: SLF001
    return head


def _first_tokens(row: PackedRow) -> Tensor:
    """The first token of each sequence; an empty one at the end of a bucket, which has none, takes another's."""
    firsts_S = row.starts_on_device()[:-1]
    ends_empty = row.starts[-2] == row.starts[-1]
    return firsts_S.clamp(max=row.starts[-1] - 1) if ends_empty else firsts_S


def _last_tokens(row: PackedRow, padding_id: int | None) -> Tensor:
    """The last token of each sequence that is no padding token, as transformers finds it; if all are, the first."""
    starts_S1 = row.starts_on_device()
    ends_S = starts_S1[1:] - 1
    if padding_id is None or (row.is_readable and bool((row.ids_T[ends_S] != padding_id).all())):
        return ends_S
    real_T = (row.ids_T != padding_id) * row.positions_T
    last_T = torch.zeros_like(real_T).scatter_reduce(0, row.first_places(), real_T, "amax")
    firsts_S = starts_S1[:-1]
    return firsts_S + last_T[firsts_S]


def _means(row: PackedRow, hidden_TE: Tensor) -> Tensor:
    return torch.stack([part.mean(0) for part in torch.split(hidden_TE, list(row.lengths))])
