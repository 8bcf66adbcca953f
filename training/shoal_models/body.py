"""The body of a classifier over a packed row: transformers' own, or the lean forward where its layers are lean.

T packed tokens, E hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoal_models.attention import PackedAttentionError
from shoal_models.lean_encoder import lean_encoder
from shoal_models.packed import PackedRow
from shoal_models.plan import AttentionPlan, Kernel


class PackedBody:
    """Hidden rows (T, E) of a packed row. The model's attention is set to `PACKED`.

    Made anew when the model's layers are replaced.
    """

    def __init__(self, model: Any, *, takes_types: bool) -> None:
        self._body: Any = model.base_model
        self._num_calls = _num_attention_calls(model.config.get_text_config())
        self._padding_id = _offset_padding_id(model)
        self._takes_types = takes_types
        self._options = {"use_cache": False} if "use_cache" in _parameters(self._body) else {}
        self._obstacle = _obstacle(self._body)
        self._encoder = lean_encoder(self._body)

    def __call__(self, row: PackedRow, kernel: Kernel | None = None) -> Tensor:
        """`kernel` as in `AttentionPlan`.

        Raises:
            PackedAttentionError: attention did not take the row as packed.
        """
        if self._obstacle:
            raise PackedAttentionError(self._obstacle)
        plan, inputs = AttentionPlan(row, kernel), self._inputs(row)
        if self._encoder is not None:
            hidden_TE = self._encoder(inputs, plan)
        else:
            hidden_TE = self._body(**inputs, **self._options, packed_plan=plan).last_hidden_state[0]
        if plan.num_calls != self._num_calls:
            raise PackedAttentionError(
                f"attention took the packed row {plan.num_calls} times in a forward of {self._num_calls} layers"
            )
        return hidden_TE

    def settle(self) -> None:
        """The layers' weights are in the form that they stay in: prepare what goes by it."""
        if self._encoder is not None:
            self._encoder.settle()

    def _inputs(self, row: PackedRow) -> dict[str, Tensor]:
        positions_T = row.positions_T
        if self._padding_id is not None:
            positions_T = _offset_positions(row, self._padding_id)
        inputs = {"input_ids": row.ids_T[None], "position_ids": positions_T[None]}
        if self._takes_types:
            types_T = torch.zeros_like(row.ids_T) if row.type_ids_T is None else row.type_ids_T
            inputs["token_type_ids"] = types_T[None]
        return inputs


def takes_types(model: Any, class_token_id: int) -> bool:
    """Whether a model tells the first text of a pair from the second, or its class token, by token types."""
    num_types = int(getattr(model.config, "type_vocab_size", None) or 0)
    return "token_type_ids" in _parameters(model.base_model) and (num_types > 1 or class_token_id >= 0)


def _parameters(body: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(body.forward).parameters


def _obstacle(body: Any) -> str:
    """Why this body cannot even be tried; empty where it can."""
    parameters = _parameters(body)
    if "position_ids" not in parameters:
        return f"{type(body).__name__} takes no positions"
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return f"{type(body).__name__} hands nothing on to its attention"
    return ""


def _num_attention_calls(config: Any) -> int:
    """Each layer calls attention once; ALBERT's layers are groups of `inner_group_num`."""
    return int(getattr(config, "num_hidden_layers", 0)) * int(getattr(config, "inner_group_num", 1))


def _offset_padding_id(model: Any) -> int | None:
    """RoBERTa and its kin count positions from padding id + 1 and skip padding tokens; None for everyone else."""
    embeddings = getattr(model.base_model, "embeddings", None)
    if embeddings is None or not hasattr(embeddings, "create_position_ids_from_input_ids"):
        return None
    return int(embeddings.padding_idx)


def _offset_positions(row: PackedRow, padding_id: int) -> Tensor:
    is_real_T = row.ids_T != padding_id
    if row.is_readable and bool(is_real_T.all()):
        return row.positions_T + (padding_id + 1)
    real_T = is_real_T.long()
    counts_T = real_T.cumsum(0)
    before_T = (counts_T - real_T)[row.first_places()]
    return (counts_T - before_T) * real_T + padding_id
