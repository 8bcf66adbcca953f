"""A loaded classifier: packed rows where the architecture can, one sequence after the other where it cannot.

S sequences, T packed tokens, E hidden size, L labels.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from shoal_models.attention import PACKED, PackedAttentionError
from shoal_models.compute import Compute, convert, prepack_linears
from shoal_models.describe import has_token_head
from shoal_models.manifest import Manifest
from shoal_models.packed import PackedRow
from shoal_models.plan import AttentionPlan

PACKED_EXECUTION = "packed"


class LoadedClassifier:
    """Weights and forward of one version; called by one thread at a time."""

    def __init__(self, model: Any, manifest: Manifest) -> None:
        """Takes over `model`, in float32 and in eval mode; packed until `run_one_by_one` says otherwise."""
        self.manifest = manifest
        self.execution = PACKED_EXECUTION  # or "one by one: <why>"
        self.compute_dtype = "float32"
        self.device: torch.device = next(model.parameters()).device
        self._model: Any = model
        self._body: Any = model.base_model
        self._head = _head_alone(model, self._body)
        names = set(inspect.signature(self._body.forward).parameters)
        self._takes_types = "token_type_ids" in names and getattr(model.config, "type_vocab_size", 2) > 1
        self._is_token_head = has_token_head(type(model).__name__)
        self._num_calls = int(model.config.num_hidden_layers)
        self._pools_mean = getattr(model.config, "classifier_pooling", "cls") == "mean"
        self._padding_id = _offset_padding_id(model)
        model.set_attn_implementation(PACKED)

    def logits(self, row: PackedRow) -> Tensor:
        """Logits, float32, on the model's device: (T, L) of a token head, (S, L) of all others."""
        with torch.inference_mode():
            logits = self._packed(row) if self.execution == PACKED_EXECUTION else self._one_by_one(row)
            return logits.float()

    def run_one_by_one(self, reason: str, attention: str) -> None:
        """Give up packing: from now on transformers' own forward, with its own `attention`, for each sequence."""
        self.execution = f"one by one: {reason}"
        self._model.set_attn_implementation(attention)

    def cast(self, compute: Compute) -> None:
        """Bring the weights, still as they were loaded, into the form they are served in."""
        convert(self._model, compute)
        if self.device.type == "cpu" and compute.computed == torch.bfloat16:
            prepack_linears(self._model)
            self._head = _head_alone(self._model, self._body)
        self.compute_dtype = compute.name

    def _packed(self, row: PackedRow) -> Tensor:
        plan = AttentionPlan(row)
        hidden_TE = self._body(**self._inputs(row), packed_plan=plan).last_hidden_state[0]
        if plan.num_calls != self._num_calls:
            raise PackedAttentionError(f"{plan.num_calls} calls of packed attention; {self._num_calls} expected")
        return self._head_logits(row, hidden_TE)

    def _head_logits(self, row: PackedRow, hidden_TE: Tensor) -> Tensor:
        """From what a body made of a row to logits."""
        if self._is_token_head:
            logits_TL: Tensor = self._head(inputs_embeds=hidden_TE[None]).logits[0]
            return logits_TL
        logits_SL: Tensor = self._head(inputs_embeds=self._pool(row, hidden_TE)[:, None]).logits
        return logits_SL

    def _pool(self, row: PackedRow, hidden_TE: Tensor) -> Tensor:
        """What stands for each sequence before its head, (S, E): its first token, or its mean."""
        if self._pools_mean:
            return torch.stack([part.mean(0) for part in torch.split(hidden_TE, list(row.lengths))])
        return hidden_TE[torch.tensor(row.starts[:-1], device=hidden_TE.device)]

    def _inputs(self, row: PackedRow) -> dict[str, Tensor]:
        positions_T = row.positions_T
        if self._padding_id is not None:
            positions_T = _offset_positions(row, self._padding_id)
        inputs = {"input_ids": row.ids_T[None], "position_ids": positions_T[None]}
        if self._takes_types:
            types_T = torch.zeros_like(row.ids_T) if row.type_ids_T is None else row.type_ids_T
            inputs["token_type_ids"] = types_T[None]
        return inputs

    def _one_by_one(self, row: PackedRow) -> Tensor:
        found = []
        for start, end in zip(row.starts, row.starts[1:], strict=False):
            inputs = {"input_ids": row.ids_T[None, start:end]}
            if self._takes_types and row.type_ids_T is not None:
                inputs["token_type_ids"] = row.type_ids_T[None, start:end]
            found.append(self._model(**inputs).logits[0])
        return torch.cat(found) if self._is_token_head else torch.stack(found)


class _HasRun(nn.Module):
    """Stands in the place of a model's body and hands on the hidden states that the body has made."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self._pooler = getattr(body, "pooler", None)
        self._activation = getattr(body, "pooler_activation", None)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPooling:
        """`inputs_embeds` is (S, 1, E), one pooled row for each sequence, or (1, T, E) for a token head."""
        pooled = None
        if isinstance(self._pooler, nn.Linear) and self._activation is not None:  # ALBERT
            pooled = self._activation(self._pooler(inputs_embeds[:, 0]))
        elif self._pooler is not None:
            pooled = self._pooler(inputs_embeds)
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)


def _head_alone(model: Any, body: nn.Module) -> Any:
    """`model` with its body replaced, sharing every weight: its own forward then computes the head alone."""
    head = copy.copy(model)
    head._modules = {name: _HasRun(body) if child is body else child for name, child in model._modules.items()}  # noqa: SLF001
    return head


def _offset_padding_id(model: Any) -> int | None:
    """RoBERTa and its kin count positions from padding id + 1 and skip padding tokens; None for everyone else."""
    embeddings = getattr(model.base_model, "embeddings", None)
    if embeddings is None or not hasattr(embeddings, "create_position_ids_from_input_ids"):
        return None
    return int(embeddings.padding_idx)


def _offset_positions(row: PackedRow, padding_id: int) -> Tensor:
    real_T = row.ids_T != padding_id
    if bool(real_T.all()):
        return row.positions_T + padding_id + 1
    parts = [part.cumsum(0) * part + padding_id for part in torch.split(real_T.long(), list(row.lengths))]
    return torch.cat(parts)
