"""Golden outputs: logits recorded in float32 when a version was published, met again before it is served.

Recorded through transformers' own plain forward, one input after the other, so that they bind packed rows too. The
archive's layout is told in `manifest.Golden`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from shoal_models.classifier import LoadedClassifier
from shoal_models.describe import end_id_of, has_token_head
from shoal_models.generator import LoadedGenerator
from shoal_models.int8_linear import Quantised, quantise_rows
from shoal_models.int8_model import linears_in_layers
from shoal_models.manifest import GOLDEN_NAME, Golden, Manifest
from shoal_models.packed import PackedRow, pack
from shoal_models.probe import made_up_sequences, plain_logits

NUM_INPUTS = 8
SYNTHETIC_LENGTHS = (4, 24, 9, 6, 17, 12, 5, 20)
MAX_DATA_TOKENS = 64
_BLOCK_TOKENS = 8
_SPREAD_SHARE = 0.05  # of the largest golden logit: what computing in bfloat16 may add
_ROUNDING_FACTOR = 3.0  # over what rounding weights and layers to bfloat16, or to 8-bit integers, was seen to add


class GoldenMismatch(Exception):
    """A loaded version does not compute what it computed when published; the message says where and by how much."""


def record_golden(
    model: Any, folder: Path, *, avoid_ids: frozenset[int] = frozenset(), inputs: Sequence[Sequence[int]] | None = None
) -> Golden:
    """Write `golden.npz` into `folder` from `model`, in float32 and eval mode; tells how it must be met.

    `inputs` are token ids of real data (the first eight count, cut to 64 tokens); None makes them up, always alike,
    without `avoid_ids`.
    """
    assert next(model.parameters()).dtype == torch.float32, "golden outputs are recorded in float32"
    if inputs:
        sequences = [list(ids[:MAX_DATA_TOKENS]) for ids in inputs[:NUM_INPUTS] if ids]
    else:
        size = int(model.config.get_text_config().vocab_size)
        sequences = made_up_sequences(SYNTHETIC_LENGTHS, size, avoid_ids)
    end_id = end_id_of(model.config)
    if end_id is not None:
        for sequence in sequences:
            sequence[-1] = end_id
    logits = _golden_logits(model, sequences)
    np.savez(
        folder / GOLDEN_NAME,
        ids=np.concatenate([np.asarray(ids, dtype=np.int32) for ids in sequences]),
        lengths=np.asarray([len(ids) for ids in sequences], dtype=np.int32),
        logits=logits,
    )
    default = Golden(source="")
    spread = _SPREAD_SHARE * float(np.abs(logits).max())
    rounding = _error_of(_rounded_to_bfloat16(model), model, sequences, logits)
    quantising = _error_of(_rounded_to_int8(model), model, sequences, logits)
    return Golden(
        source="data" if inputs else "synthetic",
        serving_tolerance=max(default.serving_tolerance, spread, _ROUNDING_FACTOR * rounding),
        int8_tolerance=max(default.int8_tolerance, spread, _ROUNDING_FACTOR * (rounding + quantising)),
    )


def check_golden(loaded: LoadedClassifier | LoadedGenerator, path: Path, manifest: Manifest) -> None:
    """Recompute the golden outputs in the dtype that `loaded` computes in now.

    Compared at `fp32_tolerance` where that is plain float32, at `int8_tolerance` with 8-bit integers, else at
    `serving_tolerance`.

    Raises:
        GoldenMismatch: an output differs by more, is not finite, or the archive is unreadable.
    """
    if manifest.golden is None:
        raise GoldenMismatch(f"{manifest.model}@{manifest.version} has no golden outputs")
    sequences, expected = _read(path / GOLDEN_NAME, is_token_head=manifest.head == "token")
    tolerance = _tolerance(manifest.golden, loaded.compute_dtype)
    found = _logits(loaded, sequences).cpu()
    if found.shape != expected.shape:
        raise GoldenMismatch(f"golden outputs have shape {tuple(expected.shape)}; the model gives {tuple(found.shape)}")
    differences = (found - expected).abs().amax(1)
    for index, difference in enumerate(differences.tolist()):
        if not difference <= tolerance:  # NaN fails too
            raise GoldenMismatch(
                f"golden output {index} differs by {difference:.3g} in {loaded.compute_dtype}; tolerance {tolerance:g}"
            )


def golden_row(path: Path, manifest: Manifest) -> PackedRow:
    """All golden inputs of a version, to calibrate by.

    Raises:
        GoldenMismatch: the archive is unreadable.
    """
    sequences, _ = _read(path / GOLDEN_NAME, is_token_head=manifest.head == "token")
    return pack(sequences, device=torch.device("cpu"))


def _tolerance(golden: Golden, compute_dtype: str) -> float:
    if compute_dtype == "float32":
        return golden.fp32_tolerance
    return golden.int8_tolerance if compute_dtype.startswith("int8") else golden.serving_tolerance


def _golden_logits(model: Any, sequences: list[list[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the plain forward answers, in the archive's layout."""
    answers = plain_logits(model, sequences)
    if has_token_head(type(model).__name__):
        return torch.cat(answers).cpu().numpy()
    return torch.stack([answer if answer.dim() == 1 else answer[-1] for answer in answers]).cpu().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rounding:
    """What a number type does to a model: weights to be replaced for a while, and hooks to be removed again."""

    weights: tuple[tuple[nn.Parameter, Tensor], ...]
    hooks: tuple[RemovableHandle, ...]


def _error_of(
    rounding: _Rounding, model: Any, sequences: list[list[int]], logits: np.ndarray[Any, np.dtype[np.float32]]
) -> float:
    """By how much the logits move with `rounding`, after which the model is what it was."""
    originals = [weight.data for weight, _ in rounding.weights]
    try:
        for weight, rounded in rounding.weights:
            weight.data = rounded
        return float(np.abs(_golden_logits(model, sequences) - logits).max())
    finally:
        for (weight, _), original in zip(rounding.weights, originals, strict=True):
            weight.data = original
        for hook in rounding.hooks:
            hook.remove()


def _rounded_to_bfloat16(model: Any) -> _Rounding:
    """Weights, and what layers put out, rounded."""
    weights = {id(p): p for p in model.parameters() if p.is_floating_point()}.values()
    leaves = [m for m in model.modules() if not any(m.children())]
    return _Rounding(
        weights=tuple((weight, weight.data.bfloat16().float()) for weight in weights),
        hooks=tuple(leaf.register_forward_hook(_round_output) for leaf in leaves),
    )


def _rounded_to_int8(model: Any) -> _Rounding:
    """Weights and inputs of what would multiply 8-bit integers, rounded to them."""
    layers = {id(place.layer): place.layer for place in linears_in_layers(model)}.values()
    return _Rounding(
        weights=tuple((layer.weight, _as_int8(layer.weight, type(layer) is Conv1D)) for layer in layers),
        hooks=tuple(layer.register_forward_pre_hook(_quantise_input) for layer in layers),
    )


def _as_int8(weight: Tensor, is_transposed: bool) -> Tensor:
    if is_transposed:
        return _as_int8(weight.t(), False).t()
    return _floats(quantise_rows(weight.detach()))


def _quantise_input(_: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (_floats(quantise_rows(inputs[0])), *inputs[1:])


def _floats(rows: Quantised) -> Tensor:
    return rows.values_TI.float() * rows.steps_T1


def _round_output(_: object, __: object, output: object) -> object:
    return output.bfloat16().float() if isinstance(output, Tensor) and output.is_floating_point() else output


def _read(file: Path, *, is_token_head: bool) -> tuple[list[list[int]], Tensor]:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as archive:
            ids, lengths, logits = archive["ids"], archive["lengths"], archive["logits"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise GoldenMismatch(f"{GOLDEN_NAME} is unreadable: {type(error).__name__}") from None
    num_rows = len(ids) if is_token_head else len(lengths)
    if int(lengths.sum()) != len(ids) or num_rows != len(logits) or len(lengths) == 0:
        raise GoldenMismatch(f"{GOLDEN_NAME} contradicts itself")
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    return [part.tolist() for part in parts], torch.from_numpy(logits.astype(np.float32))


def _logits(loaded: LoadedClassifier | LoadedGenerator, sequences: list[list[int]]) -> Tensor:
    if isinstance(loaded, LoadedClassifier):
        return loaded.logits(pack(sequences, device=torch.device("cpu")))
    device = loaded.device
    row = pack(sequences, device=device)
    tables, used = [], 0
    for ids in sequences:
        num_blocks = -(-len(ids) // _BLOCK_TOKENS)
        tables.append(tuple(range(used, used + num_blocks)))
        used += num_blocks
    cached = PackedRow(
        ids_T=row.ids_T,
        positions_T=row.positions_T,
        starts=row.starts,
        cache=loaded.new_cache(used, _BLOCK_TOKENS),
        block_tables=tuple(tables),
        context_lens=(0,) * len(sequences),
    )
    return loaded.logits(cached, torch.tensor(row.starts[1:], device=device) - 1)
