"""A loaded classifier: packed rows where the architecture can, padded batches or single sequences where it cannot.

S sequences, T packed tokens, E hidden size, L labels.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shoal_models.attention import PACKED
from shoal_models.attention_cuda import HALF, varlen_attn
from shoal_models.body import PackedBody, takes_types
from shoal_models.compute import Compute, convert
from shoal_models.describe import end_id_of, has_token_head
from shoal_models.execution import ONE_BY_ONE, Execution
from shoal_models.graphs import Capture, CapturedForwards
from shoal_models.graphs_cuda import CudaCapture, most_tokens
from shoal_models.heads import Head
from shoal_models.int8_model import largest_inputs, quantise_lean_layers, quantise_linears
from shoal_models.kept_linears import keep_linears_read_by_others
from shoal_models.linears import prepack_linears
from shoal_models.manifest import Manifest
from shoal_models.packed import PackedRow, fill_up, pack
from shoal_models.padded import PlainForward
from shoal_models.plan import Kernel
from shoal_models.post_norm import LeanLayers, lean_layer_weights
from shoal_models.probe import made_up_sequences, plain_id_of, special_ids
from shoal_models.sizes import few_sizes

_TRIAL_TOKENS = 8
_CLASS_TYPE = 2


class LoadedClassifier:
    """Weights and forward of one version; called by one thread at a time."""

    def __init__(self, model: Any, manifest: Manifest) -> None:
        """Takes over `model`, in float32 and in eval mode; one by one until `run` finds it another way."""
        self.manifest = manifest
        self.compute_dtype = "float32"
        self.device: torch.device = next(model.parameters()).device
        self.takes_types = takes_types(model, manifest.class_token_id)
        self.end_id = end_id_of(model.config)  # what every sequence must end with; None: nothing
        self._plain_id = plain_id_of(model.config.get_text_config())
        if hasattr(model.base_model, "set_attention_type"):  # BigBird's would depend on the lengths that came before
            model.base_model.set_attention_type("original_full")
        self._model: Any = model
        self.way = ONE_BY_ONE  # see `run`
        self._own_attention = str(model.config._attn_implementation)  # noqa: SLF001
        self._plain = PlainForward(
            model, is_token_head=has_token_head(type(model).__name__), takes_types=self.takes_types
        )
        self._body = PackedBody(model, takes_types=self.takes_types)
        self._lean = LeanLayers(model)
        self._head = Head(model, self.way.reads)
        self._captured: CapturedForwards | None = None

    @property
    def execution(self) -> str:
        """For people: "packed", "padded: <why>" or "one by one: <why>"."""
        return self.way.text

    @property
    def captured_bytes(self) -> int:
        """Device memory that nothing but captured forwards can use."""
        return 0 if self._captured is None else self._captured.num_bytes

    @property
    def has_lean_layers(self) -> bool:
        """Whether layers of this model can run lean."""
        return self._lean.num_layers > 0

    def run(self, way: Execution) -> None:
        """Take sequences this way from now on."""
        self.way = way
        self._lean.use(way.lean, first_only=way.reads == "first" and self.device.type == "cpu")
        self._body = PackedBody(self._model, takes_types=self.takes_types)
        self._model.set_attn_implementation(PACKED if way.way == "packed" else self._own_attention)
        self._head = Head(self._model, way.reads)

    def logits(self, row: PackedRow) -> Tensor:
        """Logits, float32, on the model's device: (T, L) of a token head, (S, L) of all others."""
        with torch.inference_mode():
            if self.manifest.class_token_id >= 0:
                row = _with_class_type(row, self.manifest.class_token_id)
            captured = None if self._captured is None else self._captured.run(row)
            if captured is not None:
                return captured
            row = row.to(self.device)
            if self.way.way == "packed":
                logits = self._head(row, self._hidden(row))
            elif self.way.way == "padded":
                logits = self._plain.padded(row, side=self.way.side, forward_tokens=self.way.forward_tokens)
            else:
                logits = self._plain.one_by_one(row)
            return logits.float()

    def trial_row(self, num_tokens: int) -> PackedRow:
        """One sequence that means nothing, for a forward whose answer does not matter."""
        ids = [self._plain_id] * num_tokens
        if self.end_id is not None:
            ids[-1] = self.end_id
        return pack([ids], device=self.device)

    def cast(self, compute: Compute, sample: PackedRow | None = None) -> None:
        """Bring the weights, still as they were loaded, into the form they are served in.

        A model with a step that is not to be had in that dtype, such as a Fourier transform in bfloat16, keeps the
        rounded weights and computes in float32. Layers are quantised from weights that have not been rounded, and fixed
        steps are found by `sample`. On a GPU small forwards are captured here, before a version serves, since a capture
        would hold up what it serves.
        """
        self._lean.settle()
        if self.device.type == "cpu" or compute.int8:
            keep_linears_read_by_others(self._model, self._try)
        if compute.int8:
            compute = self._quantise(compute, sample)
        convert(self._model, compute)
        if compute.computed != torch.float32 and not self._runs():
            compute = compute.in_float32()
            convert(self._model, compute)
        if self.device.type == "cpu":
            prepack_linears(self._model)
            self._body.settle()
        self._head = Head(self._model, self.way.reads)
        is_half = compute.computed in HALF and not compute.int8
        if self.device.type == "cuda" and self.way.lean and is_half and varlen_attn is not None:
            self.capture_forwards(CudaCapture(self.device), varlen_attn, most_tokens(lean_layer_weights(self._model)))
        self.compute_dtype = compute.name

    def _quantise(self, compute: Compute, sample: PackedRow | None) -> Compute:
        """What has come of `compute` in this model."""
        num_fixed = 0
        if compute.fixed_steps and sample is not None:
            largest = largest_inputs(self._model, lambda: self.logits(sample))
            num_fixed = quantise_lean_layers(self._model, largest, compute.computed)
        if not quantise_linears(self._model) + num_fixed:
            return compute.without_int8()
        return compute if num_fixed else compute.with_row_steps()

    def capture_forwards(self, capture: Capture, kernel: Kernel, max_tokens: int) -> None:
        """Capture forwards, with `kernel` for attention, and replay them for rows up to `max_tokens` from now on."""
        assert self.way.reads in {"first", "tokens"}, "other heads go by the lengths that they were captured with"
        assert not self._lean.ends_early, "a layer of first tokens goes by them, too"
        self._captured = CapturedForwards(
            lambda row: self._head(row, self._body(row, kernel)).float(),
            capture=capture,
            device=self.device,
            max_tokens=max_tokens,
            longest=self.manifest.max_tokens,
            reads_tokens=self.way.reads == "tokens",
        )
        config = self._model.config.get_text_config()
        most = self._captured.most_tokens
        (ids,) = made_up_sequences((most,), int(config.vocab_size), frozenset(special_ids(config)))
        with torch.inference_mode():
            self._captured.capture_all(lambda lengths: self._made_up_row(ids, lengths))

    def release_captured(self) -> None:
        """Run every forward in the ordinary way from now on."""
        self._captured = None

    def _made_up_row(self, ids: Sequence[int], lengths: Sequence[int]) -> PackedRow:
        """`ids` cut into sequences of such lengths, of pairs where the model tells them apart; in host memory."""
        sequences = [ids[start:end] for start, end in itertools.pairwise((0, *itertools.accumulate(lengths)))]
        seconds = [length // 2 for length in lengths] if self.takes_types else None
        return pack(sequences, device=torch.device("cpu"), second_starts=seconds)

    def _runs(self) -> bool:
        """Whether a forward comes to its end."""
        try:
            self._try()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError):
            return False
        return True

    def _try(self) -> None:
        self.logits(self.trial_row(min(_TRIAL_TOKENS, self.manifest.max_tokens)))

    def _hidden(self, row: PackedRow) -> Tensor:
        """Hidden rows (T, E); on a CPU the row is filled up to one of few sizes for the kernels' sake."""
        if self.device.type != "cpu":
            return self._body(row)
        num_tokens = row.starts[-1]
        return self._body(fill_up(row, few_sizes(num_tokens)))[:num_tokens]


def _with_class_type(row: PackedRow, class_token_id: int) -> PackedRow:
    """The row with token type 2 wherever the class token stands."""
    types_T = torch.zeros_like(row.ids_T) if row.type_ids_T is None else row.type_ids_T
    types_T = torch.where(row.ids_T == class_token_id, _CLASS_TYPE, types_T)
    return dataclasses.replace(row, type_ids_T=types_T)
