"""A loaded classifier: packed rows where the architecture can, padded batches or single sequences where it cannot.

S sequences, T packed tokens, E hidden size, L labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoal_models.attention import PACKED
from shoal_models.body import PackedBody, takes_types
from shoal_models.compute import Compute, convert, prepack_linears
from shoal_models.describe import has_token_head
from shoal_models.execution import ONE_BY_ONE, Execution
from shoal_models.heads import Head
from shoal_models.manifest import Manifest
from shoal_models.packed import PackedRow
from shoal_models.padded import PlainForward
from shoal_models.probe import end_id_of


class LoadedClassifier:
    """Weights and forward of one version; called by one thread at a time."""

    def __init__(self, model: Any, manifest: Manifest) -> None:
        """Takes over `model`, in float32 and in eval mode; one by one until `run` finds it another way."""
        self.manifest = manifest
        self.compute_dtype = "float32"
        self.device: torch.device = next(model.parameters()).device
        self.takes_types = takes_types(model)
        self.end_id = end_id_of(model.config)  # what every sequence must end with; None: nothing
        self._model: Any = model
        self.way = ONE_BY_ONE  # see `run`
        self._own_attention = str(model.config._attn_implementation)  # noqa: SLF001
        self._plain = PlainForward(
            model, is_token_head=has_token_head(type(model).__name__), takes_types=self.takes_types
        )
        self._body = PackedBody(model)
        self._head = Head(model, self.way.reads)

    @property
    def execution(self) -> str:
        """For people: "packed", "padded: <why>" or "one by one: <why>"."""
        return self.way.text

    def run(self, way: Execution) -> None:
        """Take sequences this way from now on."""
        self.way = way
        self._model.set_attn_implementation(PACKED if way.way == "packed" else self._own_attention)
        self._head = Head(self._model, way.reads)

    def logits(self, row: PackedRow) -> Tensor:
        """Logits, float32, on the model's device: (T, L) of a token head, (S, L) of all others."""
        with torch.inference_mode():
            if self.way.way == "packed":
                logits = self._head(row, self._body(row))
            elif self.way.way == "padded":
                logits = self._plain.padded(row, side=self.way.side, forward_tokens=self.way.forward_tokens)
            else:
                logits = self._plain.one_by_one(row)
            return logits.float()

    def cast(self, compute: Compute) -> None:
        """Bring the weights, still as they were loaded, into the form they are served in."""
        convert(self._model, compute)
        if self.device.type == "cpu" and compute.computed == torch.bfloat16:
            prepack_linears(self._model)
            self._head = Head(self._model, self.way.reads)
        self.compute_dtype = compute.name
