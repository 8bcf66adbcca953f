"""Publishes a transformers model as a version: weights, tokenizer, golden outputs, manifest.

The one way into a repository, for imports and for training alike. What is published is opened again from its files
before its golden outputs are recorded, so a version that could not be loaded never appears.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal_models import manifest as manifests
from shoal_models.describe import Description, describe
from shoal_models.golden import record_golden
from shoal_models.load import open_model, silence_progress_bars
from shoal_models.manifest import Golden, Manifest
from shoal_models.probe import first_line
from shoal_models.tokenizer import write_tokenizer

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_READABLE = 0o644


class PublishError(Exception):
    """A model cannot become a version; the message says why."""


def publish_model(
    model: Any,
    tokenizer: Any,
    repository: Path,
    manifest: Manifest,
    *,
    golden_inputs: Sequence[Sequence[int]] | None = None,
) -> Manifest:
    """Write `model` and `tokenizer` as the next version of `manifest.model`; returns the completed manifest.

    Of `manifest` only `model`, `kind` and `weight_dtype` must be meant; what is empty or zero of family, architecture,
    head, labels, max_tokens, vocabulary_size, chat, eos_token_ids and packages is read off the model. `golden_inputs`
    are token ids of real data; None makes up inputs. The model may be of any floating dtype; it is not changed.

    Raises:
        PublishError: the weight dtype or kind is not one that versions have.
        TokenizerError: `tokenizer.json` would not tokenize as the original does.
        LoadError: what was written cannot be opened again.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    if manifest.weight_dtype not in _DTYPES:
        raise PublishError(f"weights are published in {' or '.join(_DTYPES)}, not in {manifest.weight_dtype!r}")
    if manifest.kind not in {"classifier", "generator", "base"}:
        raise PublishError(f"a version is a classifier, a generator or a base, not {manifest.kind!r}")
    if not hasattr(model.config.get_text_config(), "vocab_size"):
        raise PublishError(f"a {type(model).__name__} has no vocabulary of tokens")
    silence_progress_bars()
    description = describe(model, tokenizer, manifest.kind)
    if manifest.kind == "classifier":
        _check_ends(tokenizer, description)
    draft = _complete(manifest, description)

    def write(folder: Path) -> Manifest:
        _write_weights(model, folder, _DTYPES[manifest.weight_dtype])
        _write_eos(folder, description.eos_token_ids)
        write_tokenizer(tokenizer, folder)
        golden = None
        reopened = open_model(folder, draft.architecture)
        if draft.kind != "base":
            golden = _record_golden(reopened, tokenizer, folder, golden_inputs)
        for file in folder.iterdir():
            file.chmod(_READABLE)
        return dataclasses.replace(draft, golden=golden)

    return manifests.publish(repository, draft, write)


def _check_ends(tokenizer: Any, found: Description) -> None:
    """Raises PublishError unless texts end with the token at which the model reads, if there is one."""
    last = tokenizer("a")["input_ids"][-1:]
    if found.eos_token_ids and last != list(found.eos_token_ids):
        raise PublishError(
            f"a {found.architecture} reads at token {found.eos_token_ids[0]}; its tokenizer ends a text with {last}"
        )


def _complete(manifest: Manifest, found: Description) -> Manifest:
    return dataclasses.replace(
        manifest,
        family=manifest.family or found.family,
        architecture=manifest.architecture or found.architecture,
        head=manifest.head or found.head,
        labels=manifest.labels or found.labels,
        max_tokens=manifest.max_tokens or found.max_tokens,
        vocabulary_size=manifest.vocabulary_size or found.vocabulary_size,
        chat=manifest.chat or found.chat,
        eos_token_ids=manifest.eos_token_ids or found.eos_token_ids,
        packages=manifest.packages or {name: importlib.metadata.version(name) for name in _PACKAGES},
    )


def _record_golden(model: Any, tokenizer: Any, folder: Path, inputs: Sequence[Sequence[int]] | None) -> Golden:
    try:
        return record_golden(model, folder, avoid_ids=frozenset(tokenizer.all_special_ids), inputs=inputs)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise PublishError(f"{type(model).__name__} does not run on token ids alone: {first_line(error)}") from error


def _write_weights(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Configuration and safetensors; tied weights stay tied in the cast."""
    cast: dict[tuple[int, torch.Size], Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in cast or tensor.numel() == 0:
            cast[key] = tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        state[name] = cast[key]
    model.save_pretrained(folder, state_dict=state, max_shard_size="20GB")
    _edit_json(folder / "config.json", {"dtype": str(dtype).removeprefix("torch.")}, drop=("_name_or_path",))


def _write_eos(folder: Path, eos_token_ids: Sequence[int]) -> None:
    file = folder / "generation_config.json"
    if file.is_file() and eos_token_ids:
        _edit_json(file, {"eos_token_id": list(eos_token_ids)})


def _edit_json(file: Path, values: dict[str, Any], *, drop: Iterable[str] = ()) -> None:
    tree = json.loads(file.read_bytes()) | values
    for name in drop:
        tree.pop(name, None)
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
    os.replace(temporary, file)  # noqa: PTH105
